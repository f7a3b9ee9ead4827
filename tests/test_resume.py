"""Killed at any moment, the same command ends where the uninterrupted run ends, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import TINY

CONFIG = """\
import dartformer


def get_config():
    config = dartformer.defaults("listops")
    values = {values!r}
    for name, value in values.items():
        section = config
        *path, last = name.split(".")
        for part in path:
            section = section[part]
        section[last] = value
    return config
"""


def write_config(folder, **values):
    file = folder / "space.py"
    file.write_text(CONFIG.format(values={**TINY, **values}))
    return file


def launch(config, workdir, verb="run", *more):
    command = [
        sys.executable,
        "-m",
        "dartformer",
        verb,
        f"--config={config}",
        f"--workdir={workdir}",
        *more,
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, f"{out}\n{err}"
    return out, err


def without_times(data):
    if isinstance(data, dict):
        return {k: without_times(v) for k, v in data.items() if "seconds" not in k}
    return [without_times(v) for v in data] if isinstance(data, list) else data


def outcome(workdir):
    """Everything of a workdir that does not tell the time."""
    found = {
        name: without_times(json.loads((workdir / name).read_text()))
        for name in ("config.json", "genotype.json", "results.json", "search/alphas.json")
    }
    for name in ("weights.safetensors", "model.stablehlo", "genotype.json"):
        found[name] = (workdir / "export" / name).read_bytes()
    for file in sorted(workdir.rglob("metrics.jsonl")):
        found[str(file.relative_to(workdir))] = [
            json.loads(line) for line in file.read_text().splitlines()
        ]
    return found


def lines(file):
    return len(file.read_text().splitlines()) if file.exists() else 0


def trained(workdir, seed):
    return any(lines(log) for log in workdir.glob(f"trainings/*/seed{seed}/metrics.jsonl"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(
        folder,
        **{
            "data.dir": data_dir,
            "baselines.random": False,
            "search.budget": {"flops": 19e3},
            "space.candidates": ("full", "uniform"),
        },
    )
    finish(launch(config, folder / "run"))
    return config, outcome(folder / "run")


MOMENTS = {
    "searching": lambda workdir: lines(workdir / "search/metrics.jsonl") >= 2,
    "saving": lambda workdir: (workdir / "search/checkpoints/steps/6").exists(),
    "training": lambda workdir: trained(workdir, seed=1),
    "exporting": lambda workdir: (workdir / "export/weights.safetensors").exists(),
}


@pytest.mark.parametrize(
    "moments",
    [
        ((signal.SIGTERM, "searching"), (signal.SIGKILL, "training")),
        ((signal.SIGKILL, "saving"), (signal.SIGKILL, "exporting")),
    ],
    ids=("asked", "killed"),
)
def test_whatever_stops_it_costs_nothing(uninterrupted, tmp_path, moments):
    """Stopped at two moments of the same run."""
    config, want = uninterrupted
    workdir = tmp_path / "run"
    for number, moment in moments:
        process = launch(config, workdir)
        while process.poll() is None and not MOMENTS[moment](workdir):
            time.sleep(0.002)
        assert process.poll() is None, "it ended before it was stopped"
        process.send_signal(number)
        said = process.communicate(timeout=300)[1]
        if number == signal.SIGTERM:
            assert process.returncode == 128 + number
            assert "everything is saved. Run the same command again to continue." in said
        else:
            assert process.returncode == -number
    if moments[0][0] == signal.SIGTERM:
        assert "resuming at step" in said
    finish(launch(config, workdir))
    assert outcome(workdir) == want
