"""One run over several processes: the same losses, and none is left behind by another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

CONFIG = """
import dartformer as df

def get_config():
    config = df.defaults("recall", granularity="layer")
    config.task.update(length=24, pairs=2, keys=8, train=200, valid=32, test=32)
    config.model.update(layers=2, heads=2, head_dim=8, model_dim=16, mlp_dim=32, dropout=0.1)
    config.space.candidates = ("full", "linear")
    config.data.update(batch_size=8, eval_batch_size=32)
    config.search.update(steps=12, observe=False)
    config.log.update(every=1, eval_every=6, checkpoint_every=6)
    return config
"""
HEARTBEAT = 30  # long enough for a machine that does other work besides


class Run:
    """Processes of one command, which end with the test."""

    def __init__(self, tmp_path, name, processes, devices, extra=(), own=None):
        from dartformer.cli.processes import free_port

        file = tmp_path / "config.py"
        file.write_text(CONFIG)
        self.workdir = tmp_path / name
        address = f"127.0.0.1:{free_port()}"
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "DARTFORMER_HEARTBEAT": str(HEARTBEAT),
            "TFDS_DATA_DIR": str(tmp_path / "data"),
        }
        self.processes = []
        for number in range(processes):
            hosts = [f"--hosts={address},{processes},{number}"] if processes > 1 else []
            command = [
                *(sys.executable, "-m", "dartformer", "search", f"--config={file}"),
                *(f"--workdir={self.workdir}", *hosts, *extra),
                *(own or {}).get(number, ()),
            ]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(command, env=environment, **pipes))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def wait(self, seconds=300):
        """The exit codes, and what each printed on standard error."""
        codes, texts = [], []
        for process in self.processes:
            texts.append(process.communicate(timeout=seconds)[1])
            codes.append(process.returncode)
        return codes, texts

    def finish(self):
        """Wait for success; the run's lines, and its alphas."""
        codes, texts = self.wait()
        assert not any(codes), texts
        return self.lines(), json.loads((self.workdir / "search/alphas.json").read_text())

    def lines(self):
        file = self.workdir / "search/metrics.jsonl"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines()]

    def until(self, step, seconds=300):
        """Wait until the log has a step."""
        end = time.monotonic() + seconds
        while not self.lines() or self.lines()[-1]["step"] < step:
            assert time.monotonic() < end
            assert self.processes[0].poll() is None
            time.sleep(0.02)


def losses(lines):
    return [line["loss"] for line in lines if "loss" in line]


def same(left, right, tolerance=1e-5):
    """Whether two runs computed the same."""
    np.testing.assert_allclose(losses(left[0]), losses(right[0]), atol=tolerance)
    np.testing.assert_allclose(left[1]["alphas"], right[1]["alphas"], atol=tolerance)


WITHOUT_NOISE = "--config.model.dropout=0"
MESHES = {
    "1x4": (1, 4, ()),
    "4x1": (4, 1, ()),
    "2x1, fsdp 2": (2, 1, ("--config.mesh.fsdp=2", "--config.mesh.smallest=64")),
    "2x2, fsdp 4": (2, 2, ("--config.mesh.fsdp=0", "--config.mesh.smallest=64")),
    "1x2, fsdp": (1, 2, ("--config.mesh.fsdp=2", "--config.mesh.smallest=64")),
    "1x2, seeds": (1, 2, ("--config.mesh.seeds=2", "--config.search.seeds=2")),
}
QUICK = ("1x4",)


@pytest.fixture(scope="module")
def on_one(tmp_path_factory):
    """The run on one device, by its number of seeds."""
    results = {}

    def of(seeds):
        if seeds not in results:
            folder = tmp_path_factory.mktemp("one")
            extra = (WITHOUT_NOISE, f"--config.search.seeds={seeds}")
            with Run(folder, "one", 1, 1, extra) as run:
                results[seeds] = run.finish()
        return results[seeds]

    return of


@pytest.fixture(scope="module")
def on_two_by_two(tmp_path_factory):
    """The run on two processes with two devices each."""
    with Run(tmp_path_factory.mktemp("many"), "many", 2, 2, (WITHOUT_NOISE,)) as run:
        return run.finish()


def marked(names):
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("mesh", marked(MESHES))
def test_losses_are_those_of_one_device(tmp_path, on_one, mesh):
    processes, devices, extra = MESHES[mesh]
    with Run(tmp_path, "many", processes, devices, (WITHOUT_NOISE, *extra)) as run:
        many = run.finish()
    same(many, on_one(2 if "seeds" in mesh else 1))


def test_losses_of_two_processes(on_one, on_two_by_two):
    same(on_two_by_two, on_one(1))


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_whatever_kills_one_process_the_run_goes_on(tmp_path, on_two_by_two, victim):
    """The other ends by itself; both started again end with the bits of a quiet run."""
    often = (WITHOUT_NOISE, "--config.log.checkpoint_every=1")
    with Run(tmp_path, "killed", 2, 2, often) as run:
        run.until(3)
        run.processes[victim].kill()
        codes, _ = run.wait(HEARTBEAT + 60)
        assert all(codes), codes
    with Run(tmp_path, "killed", 2, 2, often) as run:
        again = run.finish()
    same(again, on_two_by_two, 0)


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    extra = ("--config.search.steps=100000", "--config.log.eval_every=100000")
    with Run(tmp_path, "stopped", 2, 1, extra) as run:
        run.until(3)
        run.processes[1].send_signal(signal.SIGTERM)
        codes, texts = run.wait()
    assert codes == [128 + signal.SIGTERM] * 2, texts
    steps = [int(path.name) for path in (run.workdir / "search/checkpoints/steps").iterdir()]
    assert f"stopped at step {max(steps)} of" in texts[0]
    assert "stopped" not in texts[1]


@pytest.mark.slow
def test_processes_with_different_configs(tmp_path):
    with Run(tmp_path, "other", 2, 1, own={1: ("--config.seed=1",)}) as run:
        codes, texts = run.wait()
    assert codes == [2, 2]
    assert "processes 0 and 1 have different configs: seed: 0 -> 1" in texts[0]


def test_an_error_is_printed_once_and_ends_all(tmp_path):
    with Run(tmp_path, "wrong", 2, 1, ("--config.data.batch_size=7",)) as run:
        codes, texts = run.wait()
    assert codes == [2, 2]
    assert "data.batch_size / data.accumulate must be a multiple of 2" in texts[0]
    assert "error" not in texts[1]
    for text in texts:
        assert "Traceback" not in text


@pytest.mark.slow
def test_another_mesh_goes_on(tmp_path, on_one):
    """Saved by four devices that divide the weights, resumed by one."""
    divided = (WITHOUT_NOISE, "--config.mesh.fsdp=0", "--config.mesh.smallest=64")
    with Run(tmp_path, "moved", 2, 2, divided) as run:
        run.until(6)
        for process in run.processes:
            process.send_signal(signal.SIGTERM)
        run.wait()
    with Run(tmp_path, "moved", 1, 1, (WITHOUT_NOISE,)) as run:
        moved = run.finish()
    same(moved, on_one(1))


def test_nobody_answers(tmp_path):
    """A coordinator that is not there: one line with its address."""
    command = (sys.executable, "-m", "dartformer", "search", "--config=c.py", "--workdir=w")
    Path(tmp_path / "c.py").write_text(CONFIG)
    environment = {**os.environ, "DARTFORMER_CONNECTING": "3"}
    done = subprocess.run(
        [*command, "--hosts=127.0.0.1:1,2,1"],
        cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1:1" in done.stderr.strip().splitlines()[-1]
