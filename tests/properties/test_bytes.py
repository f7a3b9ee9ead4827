"""What a run leaves depends on its config alone: not on hash seeds, other work, or interruptions."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export import made
from test_resume import launch, write_config

from dartformer.export.write import export
from dartformer.report import page, reading
from dartformer.report.varying import VARYING, varying, without_times

PURE = textwrap.dedent(
    """
    import hashlib, json, sys
    from pathlib import Path
    import jax, numpy as np
    import dartformer as df
    from dartformer import config as configs, diagnostics
    from dartformer.export.write import export
    from dartformer.models.transformer import transformer
    from dartformer.report import compare, page, reading
    from dartformer.results import Results
    from dartformer.stages import evaluate
    from dartformer.stages.retrain import Model

    workdir, other_work = Path(sys.argv[1]), sys.argv[2] == "other"
    out = {}
    config = configs.defaults("listops")
    configs.override(config, json.loads(sys.argv[3]))
    config = configs.build(config)
    shape = config.transformer
    genotype = df.Genotype(((df.parse("full"), df.parse("performer")),))
    net = transformer(shape, genotype)
    weights = net.init(jax.random.key(0))
    if other_work:  # what JAX traced before keeps the places in the source where it was traced
        tokens, valid = np.zeros((3, shape.length), np.int32), np.ones((3, shape.length), bool)
        net.apply(weights, tokens, valid)
    model = Model(config, config.task.built, shape, genotype, weights, 0, 0, {"accuracy": 0.5, "step": 1})
    results = Results.from_dict(json.loads((workdir / "results.json").read_text()))
    limit = jax.config.jax_traceback_in_locations_limit
    folder = export(model, workdir.with_name(f"export{other_work}"), results)
    for file in sorted(folder.iterdir()):
        out[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    assert jax.config.jax_traceback_in_locations_limit == limit  # as the user set it
    out["report"] = hashlib.sha256(page.render(reading.read(workdir)).encode()).hexdigest()
    names = ["full", "linear", "uniform", "local(window=4)"]
    ties = {name: 0.5 for name in names}
    out["ranking"] = diagnostics.ranking(ties, {name: [0.1 * i] for i, name in enumerate(names)}).verdict
    found = results.found
    out["versus"] = [line.sentence for line in evaluate.versus(found, results.baselines)]
    print(json.dumps(out))
    """
)

SMALL = {
    "model.layers": 1,
    "model.heads": 2,
    "model.head_dim": 4,
    "model.model_dim": 8,
    "model.mlp_dim": 16,
    "space.candidates": ["full", "linear", "uniform", "local(window=4)"],
}


def scored(attentions, value):
    return {
        "test": {"accuracy": value, "spread": 0, "per_seed": [value], "loss": 1, "examples": 80},
        "valid": {"accuracy": value, "per_seed": [value]},
        "parameters": 10,
        "flops": 1e3,
        "steps": 8,
        "genotype": {"format": 1, "layers": [attentions]},
    }


def write_workdir(folder):
    """A finished run in which everything is tied."""
    import dartformer
    from dartformer import config as configs

    config = dartformer.defaults("listops")
    configs.override(config, SMALL)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(configs.to_dict(configs.build(config))))
    results = {"task": "listops", "schema": 1, "metric": "accuracy", "seeds": [0]}
    results |= scored(["full", "linear"], 0.5)
    baselines = {"majority": {"test": {"accuracy": 0.5}}, "minority": {"test": {"accuracy": 0.5}}}
    for name in SMALL["space.candidates"]:
        baselines[f"homogeneous.{name}"] = scored([name, name], 0.5)
    results |= {"baselines": baselines, "verdict": ["a tie"], "seconds": {"search": 2.0}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "genotype.json").write_text(json.dumps(results["genotype"]))


def test_hash_seeds_and_other_work_change_no_byte(tmp_path):
    workdir = tmp_path / "run"
    write_workdir(workdir)
    running = []
    for seed, work in (("1", "none"), ("2", "other")):
        command = [sys.executable, "-c", PURE, str(workdir), work, json.dumps(SMALL)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        running.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=tmp_path,
            )
        )
    outputs = []
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        outputs.append(json.loads(out.splitlines()[-1]))
    assert outputs[0] == outputs[1]
    assert {"model.stablehlo", "weights.safetensors", "README.md"} <= outputs[0].keys()


def test_an_export_names_no_source(tmp_path):
    folder = export(made([["full", "uniform"]]), tmp_path / "e")
    for file in folder.iterdir():
        data = file.read_bytes()
        assert not re.search(rb"/[\w./-]+\.py\b", data), file
        assert str(tmp_path).encode() not in data


json_data = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(json_data, json_data, json_data)
def test_only_listed_keys_are_blanked(data, seconds, more):
    files = ("results.json", "test_scores.json", "config.json")
    for file in files:
        content = {"data": data, "inner": {"seconds": seconds}}
        assert without_times(file, content) == content
    content = {"data": data, "seconds": {"a": 1.5, "b": seconds}}
    blanked = without_times("results.json", content)
    assert blanked["data"] == data
    assert blanked["seconds"]["a"] == 0
    profile = {"models": [{"name": data, "throughput": 3.5}], "note": more}
    assert without_times("profile.json", profile) == {
        "models": [{"name": data, "throughput": 0}],
        "note": more,
    }


def test_what_differs_is_documented():
    text = (Path(__file__).parents[2] / "docs/results.md").read_text(encoding="utf-8")
    for entry in VARYING:
        assert f"`{entry.file}`" in text
        for key in entry.keys or ():
            assert f"`{key}`" in text


# A whole run, killed five times.

MOMENTS = (
    "config.json",
    "search/metrics.jsonl",
    "search/alphas.json",
    "trainings/*/seed0/checkpoints/steps/*",
    "test_scores.json",
)
"""Files whose appearance is a moment to kill a run at."""


def kill_when(config, workdir, pattern):
    """Start a run, and kill it as soon as a file is there."""
    process = launch(config, workdir)
    deadline = time.monotonic() + 300
    while process.poll() is None and not any(workdir.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def contents(workdir, scratch):
    """The bytes of every file that must be equal, by its path."""
    copy = scratch / "run"  # by one name, as a report may show it
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(workdir, copy)
    files = {}
    for file in sorted(copy.rglob("*")):
        name = file.relative_to(copy).as_posix()
        entry = varying(name)
        if file.is_dir() or (entry is not None and entry.keys is None):
            continue
        if entry is not None:
            data = without_times(name, json.loads(file.read_text()))
            file.write_text(json.dumps(data))
        files[name] = file.read_bytes()
    card = (copy / "export/README.md").read_text()
    files["export/README.md"] = re.sub(r"took \d+ s", "took", card).encode()
    files["report.html"] = page.render(reading.read(copy)).encode()
    return files


def arrays(workdir):
    """Every array of every checkpoint."""
    import orbax.checkpoint as ocp

    leaves = {}
    for state in sorted(workdir.glob("**/checkpoints/steps/*/state")):
        name = state.relative_to(workdir).as_posix()
        restored = ocp.PyTreeCheckpointer().restore(state)
        for path, leaf in jax.tree_util.tree_leaves_with_path(restored):
            digest = hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
            leaves[name + jax.tree_util.keystr(path)] = digest
    return leaves


def events(workdir):
    """Every number of TensorBoard by folder, tag and step."""
    from tensorboardX.proto.event_pb2 import Event

    numbers = {}
    for file in sorted(workdir.glob("**/events.out.tfevents.*")):
        data = file.read_bytes()
        while len(data) > 12:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]  # a length, its checksum, the event and its checksum
            for value in event.summary.value:
                folder = file.parent.relative_to(workdir).as_posix()
                numbers[folder, value.tag, event.step] = value.simple_value
    return numbers


@pytest.mark.slow
def test_a_run_that_was_killed_leaves_the_same_bytes(tmp_path, monkeypatch):
    values = {"data.dir": str(tmp_path / "data"), "retrain.seeds": (0,), "model.layers": 1}
    config = write_config(tmp_path, **values)
    left_alone, killed = tmp_path / "left_alone", tmp_path / "killed"
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    process = launch(config, left_alone)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, f"{out}\n{err}"
    for seed, moment in enumerate(MOMENTS):
        monkeypatch.setenv("PYTHONHASHSEED", str(2 + seed))
        assert kill_when(config, killed, moment), moment
    process = launch(config, killed)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, f"{out}\n{err}"
    a, b = contents(left_alone, tmp_path / "a"), contents(killed, tmp_path / "b")
    assert a.keys() == b.keys()
    assert [name for name in a if a[name] != b[name]] == []
    assert arrays(left_alone) == arrays(killed)
    assert events(left_alone) == events(killed)
