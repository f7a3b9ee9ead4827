"""Sweeps: axes, engines, what an exit code means, and tasks that are killed and run again."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, TINY
from test_resume import outcome, without_times, write_config

import dartformer
from dartformer.cli.main import main
from dartformer.config import load_config
from dartformer.engines import base, make, processes, runner
from dartformer.engines.base import Handle, Limits, Task
from dartformer.engines.processes import Processes, Share
from dartformer.errors import InputError
from dartformer.machine.workdir import LockedFolder, write_json
from dartformer.results import Results
from dartformer.sweeps import axes
from dartformer.sweeps.page import headline
from dartformer.sweeps.sweep import sweep
from dartformer.training.loop import Interrupted

QUICK = {**TINY, "model.layers": 1, "space.candidates": ("full", "uniform"), "search.steps": 4}
FEW = {"retrain.steps": 4, "retrain.seeds": (0,), "baselines.homogeneous": False}
"""Of a whole run: as few trainings as there can be."""


# Axes.


def test_axes_are_ranges_and_lists_outside_brackets():
    parsed = axes.parse(["seed=-1..1", "space.candidates=[full,uniform],[full,local(window=2)]"])
    assert [axis.values for axis in parsed] == [
        ("-1", "0", "1"),
        ("[full,uniform]", "[full,local(window=2)]"),
    ]
    choices = axes.product(parsed)
    assert len(choices) == 6
    assert choices[1] == {"seed": "-1", "space.candidates": "[full,local(window=2)]"}


def test_names_are_short_safe_and_different():
    assert axes.name({"search.strategy.name": "darts", "seed": "0"}) == "strategy=darts,seed=0"
    assert axes.name({"search.steps": "1", "retrain.steps": "2"}) == (
        "search.steps=1,retrain.steps=2"
    )
    a, b = axes.name({"task.path": "../a/b"}), axes.name({"task.path": "../a_b"})
    assert a != b
    assert "/" not in a + b
    long = axes.name({"space.candidates": "full," * 100})
    assert len(long) < 200


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["seed"], "takes FIELD=VALUES"),
        (["seed="], "axis seed is empty"),
        (["seed=3..1"], "3..1 ends before it begins"),
        (["seed=1,1"], "'1' twice"),
        (["seed=0..1", "seed=2"], "axis seed is there twice"),
        (["seed=0..999999999"], "more than 10,000 values"),
        (["seed=0..999", "retrain.steps=1..999"], "999,000 tasks"),
    ],
)
def test_axes_that_cannot_be(texts, message):
    with pytest.raises(InputError, match=message):
        axes.parse(texts)


# What an exit code means, with an engine that runs nothing.


class Fake:
    """Ends tasks at once, with the next of the exit codes that are listed for each."""

    def __init__(self, codes):
        self.codes = {name: list(listed) for name, listed in codes.items()}
        self.submitted = []

    def submit(self, task):
        code = self.codes[task.folder.name].pop(0)
        self.submitted.append(task.folder.name)
        write_json(
            task.folder / runner.ENDS,
            {task.name: {"code": code, "seconds": 1.0, "processor_seconds": 2.0}},
        )
        (task.folder / runner.LOG).write_text(f"dartformer: error: code {code}.\n")
        if code == 0:
            self.score(task)
        return Handle(task, code)

    def score(self, task):
        """Seed 1 is best on valid and worst on test; its results are those of a whole run."""
        seed = int(task.folder.name.removeprefix("seed="))
        valid = {"accuracy": 0.5 + 0.1 * (seed == 1), "per_seed": [0.5]}
        test = {"accuracy": 0.9 - 0.1 * (seed == 1), "spread": None, "per_seed": [], "loss": 1.0}
        data = {"task": "listops", "valid": valid, "test": {**test, "examples": 10}}
        write_json(task.folder / "results.json", data)

    def wait(self, handles, seconds):
        return handles[0]

    def cancel(self, handle):
        handle.code = base.STOPPED


def swept(folder, engine, over=("seed=0..3",), **options):
    source = (write_config(folder), {})
    return sweep(source, folder / "sweep", axes.parse(over), engine, **options)


def test_exit_codes_decide_what_runs_again(tmp_path, capsys):
    engine = Fake({"seed=0": [2], "seed=1": [137, 4, 0], "seed=2": [3], "seed=3": [1, 1, 1]})
    record = swept(tmp_path, engine)
    assert sorted(engine.submitted) == ["seed=0"] + 3 * ["seed=1"] + ["seed=2"] + 3 * ["seed=3"]
    states = {task.name: task.state for task in record.tasks}
    assert states == {
        "seed=0": "refused",
        "seed=1": "done",
        "seed=2": "diverged",
        "seed=3": "failed",
    }
    # What diverged is a result, and the last of them.
    assert [task.name for task in record.tasks][:2] == ["seed=1", "seed=2"]
    said = capsys.readouterr().err
    assert "seed=0 refused, 1 s: code 2." in said
    assert "exit code 1 in 3 tries: code 1." in said
    # Again: what has a result stays, what was refused or failed is tried.
    again = Fake({"seed=0": [0], "seed=3": [0]})
    record = swept(tmp_path, again)
    assert again.submitted == ["seed=0", "seed=3"]
    assert record.groups[0].finished == 3
    assert record.groups[0].diverged == 1
    saved = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [task["name"] for task in saved["tasks"]][-1] == "seed=2"


def test_the_rank_is_that_on_valid(tmp_path):
    codes = {f"seed={seed}": [0] for seed in range(4)}
    record = swept(tmp_path, Fake(codes))
    assert record.tasks[0].name == record.groups[0].best == "seed=1"
    (group,) = record.groups
    assert (group.mean, group.spread) == pytest.approx((0.525, 0.05))
    page = (tmp_path / "sweep/sweep.html").read_text()
    assert "52.5% on valid (sd 5.0 points over 4 seeds)" in page
    # Links lead to reports that are there.
    assert "report.html" not in page
    (tmp_path / "sweep/seed=1/report.html").write_text("")
    swept(tmp_path, Fake({}))
    assert 'href="seed%3D1/report.html"' in (tmp_path / "sweep/sweep.html").read_text()


def test_more_values_may_be_added_and_other_fields_not(tmp_path):
    swept(tmp_path, Fake({"seed=0": [0]}), ["seed=0"])
    more = Fake({"seed=1": [0]})
    assert len(swept(tmp_path, more, ["seed=0..1"]).tasks) == 2
    with pytest.raises(InputError, match="belongs to a sweep over seed, and this one is over"):
        swept(tmp_path, Fake({}), ["search.steps=1,2"])


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["sead=0,1"], "sead=0: unknown config field 'sead'. Did you mean 'seed'"),
        (["seed=0,x"], "seed=x: config field 'seed' takes a whole number"),
        (["search.steps=10,-1"], "search.steps must be"),
        (["data.dir=a", "seed=0"], "is set by --config.data.dir and is an axis"),
    ],
)
def test_values_that_cannot_be_start_nothing(tmp_path, over, message):
    source = (write_config(tmp_path), {"data.dir": "somewhere"})
    with pytest.raises(InputError, match=message):
        sweep(source, tmp_path / "sweep", axes.parse(over), Fake({}))
    assert not (tmp_path / "sweep").exists()


def test_a_kernel_of_the_devices_of_tasks_is_not_refused_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dartformer.cli.sweep.make", lambda *_: Fake({"seed=0": [0]}))
    config = write_config(tmp_path, **{"model.kernel": "cudnn", "model.head_dim": 8})
    words = ["sweep", f"--config={config}", f"--workdir={tmp_path / 'sweep'}", "--over=seed=0"]
    assert main(words) == 2
    assert "it needs bfloat16 or float16, got float32" in capsys.readouterr().err
    half = {"model.dtype": "bfloat16"}
    assert main([*words, "--config.model.dtype=bfloat16"]) == 0
    with pytest.raises(InputError, match="it needs a CUDA GPU"):
        load_config(config, half)


def test_folders_that_cannot_be(tmp_path):
    folder = tmp_path / "sweep"
    folder.mkdir()
    lock = LockedFolder(folder)
    with pytest.raises(InputError, match="in use by another process"):
        swept(tmp_path, Fake({}))
    lock.close()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files \(notes.txt\) and no sweep.json"):
        swept(tmp_path, Fake({}))


def test_a_missing_extra_or_an_unknown_engine_is_one_line(tmp_path, monkeypatch):
    for module in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, extra in (("ray", "ray"), ("slurm", "slurm")):
        with pytest.raises(InputError, match=rf"pip install 'dartformer\[{extra}\]'"):
            make(name, Limits())
    with pytest.raises(InputError, match=r"unknown engine 'rey'\. Did you mean 'ray'"):
        make("rey", Limits())
    with pytest.raises(InputError, match=r"--memory does not work with --engine=processes"):
        make("processes", Limits(memory=1))
    with pytest.raises(InputError, match="tries must be at least 1"):
        Limits(tries=0)


# Processes.


def task_of(folder, code, **environment):
    folder.mkdir(parents=True, exist_ok=True)
    return Task("work", (sys.executable, "-c", code), folder, folder, environment)


def all_ended(engine, handles):
    waiting = list(handles)
    while waiting:
        ended = engine.wait(waiting, 60)
        assert ended is not None
        waiting.remove(ended)
    return [handle.code for handle in handles]


SHOW = (
    "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.sched_getaffinity(0), os.getcwd())"
)


def test_processes_share_devices_and_keep_output_and_codes(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    engine = Processes(Limits())
    codes = (SHOW, "raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)")
    handles = []
    for number, code in enumerate(codes):
        handles.append(engine.submit(task_of(tmp_path / str(number), code)))
    assert all_ended(engine, handles) == [0, 3, 137]
    device, *_, folder = (tmp_path / "0" / runner.LOG).read_text().split()
    assert device in ("3", "5")
    assert folder == str(tmp_path / "0")
    assert runner.ends(tmp_path / "1")["work"]["code"] == 3
    # Shares are given back.
    assert sorted(share.devices for share in engine._free) == [("3",), ("5",)]


@pytest.mark.parametrize(
    ("limits", "devices", "expected"),
    [
        (Limits(), [], [Share()]),
        (Limits(jobs=2), [], [Share((), (0, 1)), Share((), (2, 3))]),
        (Limits(jobs=2, cpus=1), [], [Share((), (0,)), Share((), (1,))]),
        (Limits(), ["a", "b"], [Share(("a",), (0, 1)), Share(("b",), (2, 3))]),
        (Limits(devices=2), ["a", "b"], [Share(("a", "b"))]),
        (Limits(jobs=8), [], 8 * [Share()]),
    ],
)
def test_shares(limits, devices, expected):
    assert processes.shares(limits, devices, range(4)) == expected


@pytest.mark.parametrize(
    ("limits", "devices", "message"),
    [
        (Limits(devices=1), [], "this process sees none"),
        (Limits(devices=3), ["0"], "more than the 1 GPUs"),
        (Limits(jobs=2), ["0"], "needs 2 GPUs, and there are 1"),
        (Limits(jobs=2, cpus=3), [], "needs 6 cores, and this process can bind 4"),
    ],
)
def test_shares_that_cannot_be(limits, devices, message):
    with pytest.raises(InputError, match=message):
        processes.shares(limits, devices, range(4))


SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").write_text("")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path("begun").write_text("")
time.sleep(600)
"""


def wait_for(file, seconds=60):
    limit = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < limit, file
        time.sleep(0.05)


def test_cancelled_tasks_save_and_queued_ones_never_start(tmp_path):
    engine = Processes(Limits())
    handles = [engine.submit(task_of(tmp_path / name, SAVES)) for name in ("a", "b")]
    assert engine.wait(handles, 0) is None
    wait_for(tmp_path / "a/begun")
    for handle in handles:
        engine.cancel(handle)
    assert all_ended(engine, handles) == [143, 143]
    assert (tmp_path / "a/saved").exists()
    assert not (tmp_path / "b/begun").exists()
    # It is not at its end.
    assert runner.ends(tmp_path / "a") == {}


def test_a_task_stops_with_the_process_that_wanted_it(tmp_path):
    """And waits for a folder that another process still holds."""
    task = task_of(tmp_path / "a", SAVES)
    lock = LockedFolder(task.folder)
    code = f"import subprocess, time; subprocess.Popen({task.command()!r}); time.sleep(600)"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    time.sleep(1)
    assert not (task.folder / "begun").exists()
    lock.close()
    wait_for(task.folder / "begun")
    parent.kill()
    parent.wait()
    wait_for(task.folder / "saved")


def test_a_task_that_ended_meanwhile_does_not_run_again(tmp_path):
    """A sweep that was killed may leave a task, for whose folder the next one waits."""
    task = task_of(tmp_path / "a", SAVES)
    lock = LockedFolder(task.folder)
    engine = Processes(Limits())
    handle = engine.submit(task)
    assert engine.wait([handle], 1) is None
    end = {"code": 0, "seconds": 1.0, "processor_seconds": 1.0}
    write_json(task.folder / runner.ENDS, {"work": end})
    lock.close()
    assert all_ended(engine, [handle]) == [0]
    assert not (task.folder / "begun").exists()


def test_a_signal_to_a_sweep_saves_its_tasks(tmp_path):
    class Endless(Fake):
        def submit(self, task):
            return Handle(task)

        def wait(self, handles, seconds):
            ended = [handle for handle in handles if handle.code is not None]
            if not ended:
                os.kill(os.getpid(), signal.SIGTERM)
                return None
            return ended[0]

    with pytest.raises(Interrupted) as stopped:
        swept(tmp_path, Endless({}))
    assert stopped.value.signal == signal.SIGTERM
    saved = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert {task["state"] for task in saved["tasks"]} == {"open"}


# Whole sweeps.


def test_tasks_equal_plain_runs(tmp_path, data_dir):
    """Bit for bit."""
    config = write_config(tmp_path, **QUICK, **{"data.dir": data_dir})
    over = axes.parse(["seed=0..1"])
    record = sweep((config, {}), tmp_path / "sweep", over, make("processes", Limits()), "search")
    assert {task.state for task in record.tasks} == {"done"}
    for seed in (0, 1):
        plain = tmp_path / f"plain{seed}"
        dartformer.search(load_config(config, {"seed": seed}), plain)
        ours = json.loads((tmp_path / f"sweep/seed={seed}/search/alphas.json").read_text())
        theirs = json.loads((plain / "search/alphas.json").read_text())
        assert without_times(ours) == without_times(theirs)
        valid = Results.from_dict(json.loads((plain / "results.json").read_text()))
        assert valid.diagnostics.valid_discrete["accuracy"] in [task.valid for task in record.tasks]


@pytest.mark.slow
def test_six_tasks_of_a_killed_sweep_equal_plain_runs(tmp_path, data_dir):
    """Killed, it goes on: no finished task runs again, and all six end like plain runs."""
    config = write_config(tmp_path, **{**QUICK, **FEW, "data.dir": data_dir})
    words = [f"--config={config}", f"--workdir={tmp_path / 'sweep'}", "--jobs=2"]
    words += ["--over=search.strategy.name=darts,spos", "--over=seed=0..2"]
    # In processes of its own: a sweep leaves this one's devices to its tasks.
    command = [sys.executable, "-m", "dartformer", "sweep", *words]
    first = subprocess.Popen(command)
    wait_for(tmp_path / "sweep/strategy=darts,seed=0" / runner.ENDS, 600)
    first.kill()
    first.wait()
    before = {file: file.read_bytes() for file in tmp_path.glob("sweep/*/task.json")}
    assert 0 < len(before) < 6
    subprocess.run(command, check=True)
    for file, content in before.items():
        assert file.read_bytes() == content
        verbs = [
            run["verb"] for run in json.loads((file.parent / "provenance.json").read_text())["runs"]
        ]
        assert len(verbs) == len(set(verbs)), verbs
    for strategy in ("darts", "spos"):
        for seed in range(3):
            plain = tmp_path / f"{strategy}{seed}"
            values = [f"--config.search.strategy.name={strategy}", f"--config.seed={seed}"]
            assert main(["run", f"--config={config}", f"--workdir={plain}", *values]) == 0
            ours = outcome(tmp_path / f"sweep/strategy={strategy},seed={seed}")
            assert ours == outcome(plain)


def test_a_task_without_a_score_is_counted_and_says_what_to_do(tmp_path, monkeypatch):
    engine = Fake({"seed=0": [0], "seed=1": [0]})
    monkeypatch.setattr(engine, "score", lambda task: None)
    said = headline(swept(tmp_path, engine, over=("seed=0..1",)))
    assert "Without a score on valid: 2. --verb=run trains" in said
