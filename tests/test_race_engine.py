"""A race on an engine: the same to the last bit, nothing trained twice, and what exit codes mean."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest
from test_resume import finish, launch, outcome, without_times, write_config
from test_sweep import wait_for

from dartformer import api
from dartformer import config as configs
from dartformer.cli.main import main
from dartformer.engines import runner
from dartformer.engines.base import DIVERGED, STOPPED, Handle
from dartformer.errors import InputError
from dartformer.machine.workdir import LockedFolder
from dartformer.stages import race as race_stage
from dartformer.stages.entrant import train_entrant
from dartformer.stages.layout import Workdir
from dartformer.sweeps.entrants import EngineTrainer
from dartformer.sweeps.supervise import TaskFailed
from dartformer.training.loop import Diverged, Interrupted

VALUES = {
    "space.candidates": ("full", "uniform"),
    "space.granularity": "model",
    "search.strategy.name": "race",
    "derive.rule": "race",
    "model.layers": 1,
    "race.rungs": (1 / 3,),
    "race.finalists": 1,
    "race.keep": 0.5,
    "retrain.steps": 6,
    "retrain.program": "own",
    "retrain.seeds": (0,),
    "baselines.random": False,
}


@pytest.fixture
def config(tiny, compile_quickly):
    configs.override(tiny, VALUES)
    return configs.build(tiny)


class Inline:
    """Runs the command line of each task in this process; `codes` replaces it for some names."""

    name = "inline"

    def __init__(self, codes=None, most=99):
        self.codes, self.most = codes or {}, most
        self.ran = []

    def submit(self, task):
        if len(self.ran) == self.most:
            raise KeyboardInterrupt
        self.ran.append((task.title, task.name))
        for name, code in self.codes.items():
            if task.title.startswith(name):
                (task.folder / runner.LOG).write_text("dartformer: error: it is so.\n")
                return Handle(task, code)
        return Handle(task, main(list(task.argv[3:])))

    def wait(self, handles, seconds):
        return handles[0]

    def cancel(self, handle):
        handle.code = STOPPED


def raced(config, folder, engine=None):
    """The record of a race, and `race.json`."""
    trainer = None
    if engine is not None:
        trainer = EngineTrainer(engine, tries=2)
    with api.opened(config, folder) as session:
        record = api.do(session, "race", trainer=trainer)
        return without_times(record), without_times(json.loads(session.workdir.race.read_text()))


def without_cost(record):
    return {name: value for name, value in record.items() if name != "share"}


def test_it_is_the_race_of_one_process(config, tmp_path):
    """Killed and run again: no training that came to its step is started twice."""
    config = dataclasses.replace(config, retrain=dataclasses.replace(config.retrain, seeds=(0, 1)))
    record, looks = raced(config, tmp_path / "plain")
    first = Inline(most=3)
    with pytest.raises(KeyboardInterrupt):
        raced(config, tmp_path / "engine", first)
    second = Inline()
    ours, ours_looks = raced(config, tmp_path / "engine", second)
    assert without_cost(ours) == without_cost(record)
    assert ours_looks == looks
    ran = first.ran + second.ran
    assert len(ran) == len(set(ran))
    assert len(first.ran) == 3
    assert {title.rpartition(" ")[2] for title, _ in ran} == {"0", "1"}
    for log in (tmp_path / "plain").rglob("trainings/*/*/metrics.jsonl"):
        theirs = tmp_path / "engine" / log.relative_to(tmp_path / "plain")
        assert theirs.read_text() == log.read_text()
    third = Inline()
    raced(config, tmp_path / "engine", third)
    assert not third.ran
    # What it took is known, of the entrants that stopped, too.
    with Workdir(tmp_path / "engine", config) as workdir:
        seconds = workdir.read_results().seconds
    with Workdir(tmp_path / "plain", config) as workdir:
        assert seconds.keys() == workdir.read_results().seconds.keys()
    (note,) = json.loads((tmp_path / "engine/provenance.json").read_text())["runs"][-1:]
    assert note["device"] == "engine inline"


def test_what_diverged_is_last_and_what_failed_ends_the_race(config, tmp_path, monkeypatch):
    engine = Inline({"homogeneous.full": DIVERGED})
    record, looks = raced(config, tmp_path / "engine", engine)
    fates = {entrant["name"]: entrant for entrant in record["entrants"]}
    assert fates["homogeneous.full"]["stopped_at"] == 2
    assert fates["homogeneous.full"]["valid"] is None
    assert fates["homogeneous.full"]["looks"][0]["diverged"]
    assert "<td>diverged</td>" in (tmp_path / "engine/report.html").read_text()
    assert engine.ran.count(("homogeneous.full seed 0", "step 2")) == 1

    def diverging(study, workdir, genotype, *rest):
        if "full" in str(genotype):
            raise Diverged("it is so.")
        return train_until(study, workdir, genotype, *rest)

    train_until = race_stage.train_until
    with monkeypatch.context() as patched:
        patched.setattr(race_stage, "train_until", diverging)
        assert raced(config, tmp_path / "plain")[1] == looks
    with pytest.raises(Diverged, match="it is so"):
        raced(config, tmp_path / "all", Inline({"homogeneous": DIVERGED}))
    with pytest.raises(InputError, match=r"homogeneous.full seed 0: it is so"):
        raced(config, tmp_path / "refused", Inline({"homogeneous.full": 2}))
    crashing = Inline({"homogeneous": 137})
    with pytest.raises(TaskFailed, match="ended with exit code 137 in 2 tries: it is so"):
        raced(config, tmp_path / "failed", crashing)
    assert crashing.ran.count(("homogeneous.full seed 0", "step 2")) == 2


def test_one_that_stopped_goes_on_on_an_engine(config, tmp_path):
    record, _ = raced(config, tmp_path, Inline())
    stopped = [entrant["name"] for entrant in record["entrants"] if not entrant["finalist"]]
    assert stopped
    engine = Inline()
    with api.opened(config, tmp_path) as session:
        finished = api.finish(session, stopped[:1], EngineTrainer(engine, 1))
    assert [name for _, name in engine.ran] == ["step 6"]
    fates = {entrant.name: entrant.stopped_at for entrant in finished.entrants}
    assert fates[stopped[0]] is None


def test_a_signal_saves_the_trainings(config, tmp_path):
    class Endless(Inline):
        def submit(self, task):
            return Handle(task)

        def wait(self, handles, seconds):
            ended = [handle for handle in handles if handle.code is not None]
            if ended:
                return ended[0]
            os.kill(os.getpid(), signal.SIGTERM)
            return None

    with pytest.raises(Interrupted, match="the race was stopped; progress is saved"):
        raced(config, tmp_path, Endless())


def test_an_entrant_alone(config, tmp_path):
    """What it may be told, and that one process at a time holds its folder."""
    with pytest.raises(KeyboardInterrupt):
        raced(config, tmp_path, Inline(most=0))
    (folder, *_) = sorted((tmp_path / "trainings").iterdir())
    name = f"trainings/{folder.name}/seed0"
    lock = LockedFolder(folder / "seed0")
    with pytest.raises(InputError, match="in use by another process"):
        train_entrant(config, tmp_path, name, 2)
    lock.close()
    for wrong in ("trainings/other/seed0", name.replace("seed0", "seed7"), name[:-6], "..", "/"):
        with pytest.raises(InputError, match=r"takes a training of the workdir|no entrant in"):
            train_entrant(config, tmp_path, wrong, 2)
    for step in (0, 7):
        with pytest.raises(InputError, match=f"--until must be 1 to 6.*got {step}"):
            train_entrant(config, tmp_path, name, step)
    other = configs.editable(config)
    configs.override(other, {"retrain.steps": 7})
    with pytest.raises(InputError, match=r"another config; it differs in retrain\.steps"):
        train_entrant(configs.build(other), tmp_path, name, 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--jobs=2"], "--jobs needs --engine"),
        (["race", "--slurm=partition=gpu"], "--slurm needs --engine"),
        (["run", "--engine=rey"], "unknown engine 'rey'. Did you mean 'ray'"),
        (["run", "--engine=ray"], "needs the package ray: pip install 'dartformer[ray]'"),
        (["race", "--engine=slurm"], "pip install 'dartformer[slurm]'"),
        (["run", "--engine=processes", "--memory=1"], "--memory does not work with"),
        (["race", "--engine=processes", "--tries=0"], "tries must be at least 1"),
        (["run", "--engine=processes", "--profile-trace"], "--profile-trace does not work with"),
        (["race", "--until=3"], "--until needs --train"),
        (["race", "--train=a"], "--train needs --until"),
        (["race", "--train=a", "--until=1", "--finish=b"], "--train does not work with"),
        (
            ["run", "--engine=processes", "--config.space.aspect=constant_heads"],
            "searches several shapes",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    for module in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, module, None)
    verb, *more = words
    config = write_config(tmp_path)
    assert main([verb, f"--config={config}", f"--workdir={tmp_path / 'run'}", *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_on_processes_that_is_killed_equals_a_plain_run(tmp_path, data_dir):
    """With a search before the race, and a program for the whole space."""
    values = {**VALUES, "search.strategy.name": "darts", "derive.rule": "argmax"}
    values = {**values, "retrain.program": "shared", "data.dir": data_dir}
    config = write_config(tmp_path, **values)
    engine = launch(config, tmp_path / "engine", "run", "--engine=processes", "--jobs=2")
    wait_for(tmp_path / "engine/race.json", 600)
    engine.kill()
    engine.communicate()
    before = {file: file.read_bytes() for file in tmp_path.rglob("trainings/*/*/task.json")}
    command = engine.args
    subprocess.run(command, check=True)
    # In a process, too: the command line sets flags of XLA, which change the rounding.
    finish(launch(config, tmp_path / "plain"))
    ours, theirs = outcome(tmp_path / "engine"), outcome(tmp_path / "plain")
    for found in (ours, theirs):
        del found["results.json"]["race"]["share"]  # of seconds
        del found["results.json"]["checksum"]  # of the share, too
    assert ours == theirs
    for file, content in before.items():
        then, now = json.loads(content), json.loads(file.read_text())
        assert then.items() <= now.items()  # the ends that were noted are still the same
    # Two at once: the second is refused.
    lock = LockedFolder(tmp_path / "engine/engine")
    refused = subprocess.run(command, capture_output=True, text=True)
    lock.close()
    assert refused.returncode == 2
    assert "in use by another process" in refused.stderr
