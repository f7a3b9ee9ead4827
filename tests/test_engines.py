"""The engines that need an extra: Ray, on one node and on two, and SLURM by submitit's executor for
this machine. Each does what `processes` does; the tests are skipped without the extra."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_race_engine import VALUES
from test_resume import finish, launch, outcome, write_config
from test_sweep import FEW, QUICK, SAVES, all_ended, task_of, wait_for

from dartformer.cli.main import main
from dartformer.engines import make, runner
from dartformer.engines.base import Limits, Task
from dartformer.errors import InputError
from dartformer.sweeps import axes
from dartformer.sweeps.sweep import sweep

pytestmark = pytest.mark.slow

CODES = ("print('fine')", "raise SystemExit(3)", "import os; os.kill(os.getpid(), 9)")


@pytest.fixture
def local_ray(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def local_slurm():
    pytest.importorskip("submitit")
    from dartformer.engines.slurm import Slurm

    return lambda limits: Slurm(limits, cluster="local")


def plain_runs(folder, config, seeds):
    found = []
    for seed in seeds:
        plain = folder / f"plain{seed}"
        words = [f"--config={config}", f"--workdir={plain}", f"--config.seed={seed}"]
        assert main(["run", *words]) == 0
        found.append(outcome(plain))
    return found


def test_ray_runs_and_cancels(tmp_path, local_ray):
    engine = make("ray", Limits(jobs=1))
    handles = []
    for number, code in enumerate(CODES):
        handles.append(engine.submit(task_of(tmp_path / str(number), code)))
    assert all_ended(engine, handles) == [0, 3, 137]
    assert (tmp_path / "0" / runner.LOG).read_text() == "fine\n"
    handles = [engine.submit(task_of(tmp_path / name, SAVES)) for name in ("a", "b")]
    assert engine.wait(handles, 0) is None
    wait_for(tmp_path / "a/begun")
    for handle in handles:
        engine.cancel(handle)
    assert all_ended(engine, handles) == [143, 143]
    wait_for(tmp_path / "a/saved")
    assert not (tmp_path / "b/begun").exists()


def test_ray_goes_on_where_a_node_is_lost(tmp_path, monkeypatch):
    """Two nodes, of which one is removed in the middle of its tasks."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        engine = make("ray", Limits())
        # A module, which starts from a warm process of each worker.
        (tmp_path / "places.py").write_text(
            "import os, sys, time\n"
            "assert 'jax' in sys.modules\n"
            "os.chdir(sys.argv[1])\n"
            "open('begun', 'a').write('x')\n"
            "time.sleep(8)\n"
        )
        path = f"{tmp_path}:{ROOT}"
        handles = []
        for i in range(2):
            folder = tmp_path / str(i)
            folder.mkdir()
            argv = (sys.executable, "-m", "places", str(folder))
            task = Task("work", argv, folder, tmp_path, {"PYTHONPATH": path})
            handles.append(engine.submit(task))
        assert engine.wait(handles, 0) is None
        for i in range(2):
            wait_for(tmp_path / str(i) / "begun")
        cluster.remove_node(second, allow_graceful=False)
        assert all_ended(engine, handles) == [0, 0]
        starts = [(tmp_path / str(i) / "begun").read_text() for i in range(2)]
        assert sorted(starts) == ["x", "xx"]
    finally:
        with contextlib.suppress(Exception):
            ray.shutdown()
        cluster.shutdown()


def test_an_address_without_ray_is_one_line(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"cannot connect to Ray at RAY_ADDRESS=127.0.0.1:1"):
        make("ray", Limits())


def test_six_tasks_on_ray_equal_plain_runs(tmp_path, data_dir, local_ray):
    config = write_config(tmp_path, **{**QUICK, **FEW, "data.dir": data_dir})
    engine = make("ray", Limits(jobs=2))
    record = sweep((config, {}), tmp_path / "sweep", axes.parse(["seed=0..5"]), engine)
    assert {task.state for task in record.tasks} == {"done"}
    for seed, plain in enumerate(plain_runs(tmp_path, config, range(6))):
        assert outcome(tmp_path / f"sweep/seed={seed}") == plain


def test_slurm_runs_and_cancels(tmp_path, local_slurm):
    engine = local_slurm(Limits())
    handles = []
    for number, code in enumerate(CODES):
        handles.append(engine.submit(task_of(tmp_path / str(number), code)))
    assert all_ended(engine, handles) == [0, 3, 137]
    handle = engine.submit(task_of(tmp_path / "a", SAVES))
    assert engine.wait([handle], 0) is None
    wait_for(tmp_path / "a/begun")
    engine.cancel(handle)
    all_ended(engine, [handle])
    wait_for(tmp_path / "a/saved")


def test_slurm_needs_slurm_and_known_options(tmp_path, local_slurm, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="there is no srun here"):
        make("slurm", Limits())
    engine = local_slurm(Limits(slurm={"partishun": "gpu"}))
    engine.submit(task_of(tmp_path / "a", "pass"))
    with pytest.raises(InputError, match="--slurm: Unknown argument 'partishun'"):
        engine.wait([], 0)


def test_a_preempted_job_goes_on_and_ends_like_a_plain_run(tmp_path, data_dir, local_slurm):
    """SIGUSR2, as SLURM sends it: the task saves, and the job is queued again."""
    values = {**QUICK, **FEW, "data.dir": data_dir, "search.steps": 150}
    config = write_config(tmp_path, **values)

    class Preempting(type(local_slurm(Limits()))):
        interrupted = False

        def wait(self, handles, seconds):
            ended = super().wait(handles, 0.05)
            log = handles[0].task.folder / "search/metrics.jsonl"
            if not self.interrupted and log.exists() and log.read_text().count("\n") > 2:
                self.interrupted = True
                # To the job itself: the process that submitit starts for it has no handler.
                parent = self._jobs[handles[0]].job_id
                job = int(Path(f"/proc/{parent}/task/{parent}/children").read_text())
                os.kill(job, signal.SIGUSR2)
            return ended

    engine = Preempting(Limits(), cluster="local")
    record = sweep((config, {}), tmp_path / "sweep", axes.parse(["seed=0"]), engine)
    assert engine.interrupted
    assert [task.state for task in record.tasks] == ["done"]
    runs = json.loads((tmp_path / "sweep/seed=0/provenance.json").read_text())["runs"]
    assert [run["state"] for run in runs if run["verb"] == "search"] == ["stopped", "done"]
    assert [outcome(tmp_path / "sweep/seed=0")] == plain_runs(tmp_path, config, [0])


ON_LOCAL_SLURM = """
import sys
from dartformer.cli.main import main
from dartformer.engines import ENGINES, slurm
ENGINES["slurm"] = lambda limits: slurm.Slurm(limits, cluster="local")
sys.exit(main())
"""


@pytest.fixture(scope="module")
def plain_race(tmp_path_factory, data_dir):
    """A config with a search and a race, and the outcome of its run in one process."""
    folder = tmp_path_factory.mktemp("race")
    more = {"search.strategy.name": "darts", "derive.rule": "argmax", "retrain.program": "shared"}
    config = write_config(folder, **{**VALUES, **more, "data.dir": data_dir})
    finish(launch(config, folder / "plain"))
    return config, without_cost(folder / "plain")


def without_cost(workdir):
    """The outcome of a race without what tells of its seconds."""
    found = outcome(workdir)
    del found["results.json"]["race"]["share"]
    del found["results.json"]["checksum"]  # of the share, too
    return found


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_race_on_an_engine_equals_one_of_one_process(
    engine, package, tmp_path, plain_race, monkeypatch
):
    pytest.importorskip(package)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config, plain = plain_race
    command = [sys.executable, "-m", "dartformer"]
    if engine == "slurm":  # whose own cluster is not here
        command = [sys.executable, "-c", ON_LOCAL_SLURM]
    words = [f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--engine={engine}"]
    subprocess.run([*command, "run", *words, "--jobs=2"], check=True)
    assert without_cost(tmp_path / "run") == plain
    assert list((tmp_path / "run").glob("trainings/*/*/task.json"))
    assert (tmp_path / "run/engine/slurm").exists() == (engine == "slurm")
