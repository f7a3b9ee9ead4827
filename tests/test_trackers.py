"""Where numbers go: TensorBoard's files read back, and the services, offline, where they are
installed."""

import json
import struct
import types

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

import dartformer as df
from dartformer import config as configs
from dartformer.report.reading import heads
from dartformer.report.tracking import track
from dartformer.results import Results
from dartformer.stages.layout import Layout
from dartformer.stages.study import Study
from dartformer.training import metric, trackers
from dartformer.training.log import MetricsLog, read_metrics

RESULTS = Results.from_dict(
    {
        "task": "listops",
        "metric": "accuracy",
        "test": {"accuracy": 0.5, "spread": None, "per_seed": [0.5], "loss": 1.0, "examples": 9},
        "valid": {"accuracy": 0.6, "per_seed": [0.6]},
        "parameters": 10,
        "flops": 1e3,
        "steps": 5,
        "baselines": {
            "majority": {"test": {"accuracy": 0.1}},
            "homogeneous.full": {
                "test": {
                    "accuracy": 0.4,
                    "spread": None,
                    "per_seed": [0.4],
                    "loss": 1.0,
                    "examples": 9,
                },
                "valid": {"accuracy": 0.4, "per_seed": [0.4]},
                "parameters": 10,
                "flops": 1e3,
                "steps": 5,
                "genotype": {"format": 1, "layers": [["full", "full"]]},
            },
        },
        "genotype": {"format": 1, "layers": [["full", "uniform"]]},
    }
)


def values(folder):
    """Tag and value of everything in the event files of a folder."""
    found = []
    for file in sorted(folder.rglob("events*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            found += [
                (v.tag, v) for v in Event.FromString(data[at + 12 : at + 12 + size]).summary.value
            ]
            at += 16 + size
    return found


def stub(*names):
    config = df.defaults("listops")
    config.log.trackers = names
    return types.SimpleNamespace(
        config=config,
        metric=metric.ACCURACY,
    )


def test_tensorboard_has_scalars_hparams_and_the_genotype(tmp_path):
    with MetricsLog(
        tmp_path / "search", 0, trackers.start((), tmp_path / "search", "search")
    ) as log:
        log.write(3, {"loss": 0.25, "mixture": [[1.0]]})
    assert [(tag, v.simple_value) for tag, v in values(tmp_path / "search")] == [("loss", 0.25)]
    assert read_metrics(tmp_path / "search/metrics.jsonl") == [
        {"step": 3, "loss": 0.25, "mixture": [[1.0]]}
    ]
    for _ in range(2):  # evaluated again: one row
        track(stub(), Layout(tmp_path), RESULTS)
    found = values(tmp_path / "summary/tensorboard/hparams")
    rows = [v for tag, v in found if tag == "_hparams_/session_start_info"]
    assert len(rows) == 1
    assert b"search.weights.learning_rate" in rows[0].metadata.plugin_data.content
    scores = {tag: v.simple_value for tag, v in found if not tag.startswith("_")}
    assert scores["test_accuracy"] == 0.5
    assert scores["baseline_homogeneous_1_test_accuracy"] == pytest.approx(0.4)
    image = next(v.image for tag, v in values(tmp_path / "summary") if tag == "genotype")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert image.width > image.height > 20


def test_a_damaged_line_of_the_log_costs_itself_only(tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    good = b'{"step": 2, "loss": 1.0}\n'
    bad = b'{"step": 4, "lo\n7\n{"loss": 1.0}\n{"step": "\xff"}\n'
    late = b'{"step": 6, "loss": 0.5}\n'
    file.write_bytes(good + bad + late + b'{"step": 8')
    assert [line["step"] for line in read_metrics(file)] == [2, 6]
    assert [line["step"] for line, _ in heads(file)] == [2, 6]
    with MetricsLog(tmp_path, 6, ()) as log:
        log.write(8, {"loss": 0.25})
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [2, 6, 8]
    assert "metrics.jsonl: left out 4 damaged line(s)" in capsys.readouterr().err


class Fake:
    """A tracker that remembers."""

    package = "json"

    def __init__(self, folder, name, step):
        self.calls = []
        Fake.made = self

    def __getattr__(self, name):
        return lambda *given: self.calls.append((name, *given))


class Gone(Fake):
    package = "no_such_module"


def test_another_tracker_is_a_line_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.TRACKERS, "registered", {})
    df.register("tracker", "fake", Fake)
    trackers.check(("fake",))
    with MetricsLog(tmp_path, 0, trackers.start(("fake",), tmp_path, "search")) as log:
        log.write(3, {"loss": 0.25, "mixture": [[1.0]]})
    assert Fake.made.calls == [("scalars", 3, {"loss": 0.25}), ("close",)]
    track(stub("fake"), Layout(tmp_path), RESULTS)
    assert [call[0] for call in Fake.made.calls] == ["summary", "image", "close"]
    assert Fake.made.calls[0][1]["search.steps"] == 600
    assert Fake.made.calls[1][2].dtype == np.uint8
    df.register("tracker", "gone", Gone)
    config = df.defaults("listops")
    configs.override(config, {"log.trackers": "fak"})
    with pytest.raises(df.InputError, match="Did you mean 'fake'"):
        configs.build(config)


def test_what_this_machine_lacks_stops_a_run_and_no_model(tmp_path, monkeypatch):
    """A config of another machine, with its trackers and devices, is read; a run with it is
    refused."""
    monkeypatch.setattr(trackers.TRACKERS, "registered", {})
    df.register("tracker", "gone", Gone)
    for values, message in (
        ({"log.trackers": "gone"}, "pip install 'no_such_module'"),
        ({"mesh.data": "4096", "data.batch_size": "4096"}, "needs 4096 devices"),
    ):
        config = df.defaults("listops")
        configs.override(config, values)
        assert configs.editable(configs.from_dict(configs.to_dict(config))) == config
        with pytest.raises(df.InputError, match=message):
            Study(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_service_offline(name, tmp_path, monkeypatch):
    """What the service keeps on disk, resumed once."""
    pytest.importorskip(name, reason=f"needs the extra {name}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    for step in (0, 3):
        _, service = trackers.start((name,), tmp_path / "search", "search", step)
        service.scalars(step + 3, {"loss": 0.25})
        service.close()
    track(stub(name), Layout(tmp_path), RESULTS)
    if name == "mlflow":
        import mlflow

        client = mlflow.MlflowClient()
        history = client.get_metric_history((tmp_path / "search/mlflow.id").read_text(), "loss")
        assert [(m.step, m.value) for m in history] == [(3, 0.25), (6, 0.25)]
        kept = client.get_run((tmp_path / "summary/mlflow.id").read_text()).data
        assert kept.metrics["test_accuracy"] == 0.5
        assert kept.params["search.steps"] == "600"
    else:
        assert len(list((tmp_path / "search/wandb").glob("offline-run-*"))) == 2
        assert len(list((tmp_path / "summary/wandb").glob("offline-run-*/*.wandb"))) == 1
