"""--profile-trace: ten steps of each kind of work, as files that viewers read."""

import gzip
import json

import numpy as np
import pytest

from dartformer.cli.main import main
from dartformer.training import trace
from dartformer.training.loop import Schedule, fit
from tests.test_cli import error_of, write_config
from tests.test_train import first, stream, toy, toy_step


@pytest.mark.parametrize(("steps", "traced"), [(30, range(10, 20)), (15, range(7, 15)), (1, [0])])
def test_a_few_steps_after_the_first_ones(steps, traced, tmp_path, monkeypatch):
    began, ended, done = [], [], []
    monkeypatch.setattr(trace.jax.profiler, "start_trace", lambda *a, **k: began.append(len(done)))
    monkeypatch.setattr(trace.jax.profiler, "stop_trace", lambda: ended.append(len(done)))
    with trace.tracing(tmp_path / "traces") as traces:
        for kind in ("training", "training", "evaluation"):
            done.clear()
            with trace.traced(kind, steps, lambda: None) as before_step:
                for _ in range(steps):
                    before_step()
                    # Work inside of what is traced has no trace of its own.
                    with trace.traced("inner", 1, lambda: None) as before_inner:
                        if traces.runs:
                            before_inner()
                    done.append(None)
    assert traces.kinds == ["training", "evaluation"]
    assert began == [traced[0]] * 2
    assert ended == [traced[-1] + 1] * 2


def test_a_training_leaves_files_that_viewers_read(tmp_path):
    with trace.tracing(tmp_path / "traces") as traces:
        fit("toy", first(toy_step), toy(), stream(), Schedule(24), None)
    assert traces.kinds == ["training"]
    (file,) = (tmp_path / "traces" / "training").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert np.sum(["Execute" in name for name in names]) >= trace.STEPS
    assert len(list((tmp_path / "traces").rglob("*.xplane.pb"))) == 1


@pytest.mark.parametrize("where", ["", "/inside"])
def test_a_trace_without_a_folder_is_refused_in_one_line(where, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    config = write_config(tmp_path)
    arguments = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    line = error_of(capsys, "search", *arguments, f"--profile-trace={file}{where}")
    assert f"must be a folder, but {file} is a file" in line
    assert not (tmp_path / "run").exists()


def test_verbs_that_neither_train_nor_evaluate_have_no_trace(tmp_path, capsys):
    config = write_config(tmp_path)
    assert main(["derive", f"--config={config}", "--workdir=x", "--profile-trace"]) == 2
    assert "--profile-trace" in capsys.readouterr().err
