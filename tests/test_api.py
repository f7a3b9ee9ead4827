"""The Python API, as the README shows it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from test_resume import write_config

import dartformer as df
from dartformer.stages.layout import Workdir
from dartformer.stages.retrain import retrain as retrain_stage
from dartformer.stages.study import Study
from dartformer.tasks.base import PARTS

ROOT = Path(__file__).resolve().parents[1]


def test_the_readmes_python_example_runs_as_written(tmp_path, data_dir, monkeypatch, capsys):
    """With a smaller config under the same name, so that it takes seconds."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search_spaces").mkdir()
    write_config(
        tmp_path / "search_spaces",
        **{"data.dir": data_dir, "retrain.seeds": (0,), "task.max_length": 20},
    ).rename("search_spaces/listops_tiny.py")
    code = code.replace('"search.steps": 200', '"search.steps": 6')
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert namespace["served"](["[MAX 2 9 ]"])[0]["label"] in "0123456789"
    assert (tmp_path / "exported/model.stablehlo").exists()


def test_a_loaded_model_is_the_exported_one(tiny, tmp_path):
    """Save, load, same logits: in another process too, for single texts and for batches."""
    genotype = df.SearchSpace(tuple(map(df.parse, TINY["space.candidates"])), 2, 2, "head").random(
        np.random.default_rng(1)
    )
    study = Study(tiny)
    with Workdir(tmp_path / "run", tiny) as workdir:
        model = retrain_stage(study, workdir, genotype)[0]
    batch = study.parts["test"].take(np.arange(20))
    network = study.program(genotype).network
    want = network.apply(model.weights, batch["tokens"], batch["valid"])
    texts = [
        study.task.decode(row[valid].tolist())
        for row, valid in zip(batch["tokens"], batch["valid"], strict=True)
    ]
    df.export(model, tmp_path / "out")
    served = df.load(tmp_path / "out")
    assert served.model.genotype == genotype
    np.testing.assert_allclose(served.logits(texts), want, atol=1e-6)
    np.testing.assert_allclose(served.logits(texts[:1]), want[:1], atol=1e-6)
    code = (
        f"import dartformer, json; served = dartformer.load({str(tmp_path / 'out')!r})\n"
        f"print(json.dumps(served.logits({texts!r}).tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(done.stdout), want, atol=1e-6)
    assert served([]) == []
    for bad in ([[0] * 99], [[-1]], [[999]], [[]]):
        with pytest.raises(df.InputError):
            served(bad)


def test_test_is_read_by_evaluate_alone(tiny, tmp_path, monkeypatch):
    """Searching, deriving and retraining never touch the test part."""
    from dartformer.tasks import base

    genuine = base.parts

    def without_test(*arguments, **options):
        found = genuine(*arguments, **options)
        assert set(found) == {*PARTS, "train"}
        del found["test"]
        return found

    monkeypatch.setattr("dartformer.stages.study.parts", without_test)
    found = df.search(tiny, tmp_path / "run")
    genotype = df.derive(found)
    df.retrain(genotype, tiny, tmp_path / "run")
    with pytest.raises(KeyError, match="test"):
        df.evaluate(genotype, tiny, tmp_path / "run")


def test_a_search_returns_what_it_wrote(tiny, tmp_path):
    found = df.search(tiny, tmp_path / "run")
    data = json.loads((tmp_path / "run/search/alphas.json").read_text())
    np.testing.assert_allclose(found.alphas, data["alphas"], rtol=1e-6)
    np.testing.assert_allclose(found.mixture.sum(-1), 1, atol=1e-6)
    assert found.alphas.shape == (2, 2, 3)
    genotype = df.derive(found)
    assert df.Genotype.from_json((tmp_path / "run/genotype.json").read_text()) == genotype
    assert {"step", "loss", "accuracy", "entropy", "margin", "mixture"} <= set(found.history[0])
    assert found.history[-1]["step"] == TINY["search.steps"]
