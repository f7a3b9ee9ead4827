"""Finished work is known by what it belongs to, and not by where it lies."""

import pickle

import jax
import numpy as np
import pytest
from conftest import TINY

import dartformer as df
from dartformer import api
from dartformer import config as configs
from dartformer.attention import parse
from dartformer.data.fingerprint import fingerprint
from dartformer.data.splits import ArraySplit
from dartformer.errors import InputError
from dartformer.machine.identity import require_same
from dartformer.space.genotype import Genotype
from dartformer.stages import search as search_stage
from dartformer.stages.layout import Workdir, training_folder
from dartformer.stages.study import Study


@pytest.fixture
def small(tiny):
    configs.override(
        tiny,
        {
            "model.layers": 1,
            "space.candidates": ("full", "uniform"),
            "search.steps": 4,
            "retrain.steps": 4,
            "retrain.seeds": (0,),
            "log.eval_every": 4,
            "log.checkpoint_every": 4,
        },
    )
    return tiny


def homogeneous(text):
    return Genotype.homogeneous(parse(text), 1, TINY["model.heads"])


def same(ours, theirs):
    pairs = zip(jax.tree.leaves(ours.weights), jax.tree.leaves(theirs.weights), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_each_genotype_keeps_its_own_training(small, tmp_path, capsys):
    full = df.retrain(homogeneous("full"), small, tmp_path)
    uniform = df.retrain(homogeneous("uniform"), small, tmp_path)
    assert uniform.genotype == homogeneous("uniform")
    assert not same(full, uniform)
    assert len(list((tmp_path / "trainings").iterdir())) == 2
    assert "4/4" in capsys.readouterr().err
    again = df.retrain(homogeneous("full"), small, tmp_path)
    assert same(full, again)
    link = tmp_path / "retrain"
    assert link.resolve() == (tmp_path / training_folder(homogeneous("full"))).resolve()
    # Nothing was trained: the first training is where it was.
    assert "4/4" not in capsys.readouterr().err


def test_an_evaluation_is_of_the_genotype_that_is_derived(small, tmp_path):
    configs.override(small, {"baselines": False})
    df.evaluate(homogeneous("full"), small, tmp_path)
    with api.opened(small, tmp_path) as session:
        session.workdir.write_genotype(homogeneous("full"))
        assert api.finished(session, "evaluate")
        session.workdir.write_genotype(homogeneous("uniform"))
        assert not api.finished(session, "evaluate")
        with pytest.raises(InputError, match=r"uniform everywhere .* is not trained"):
            api.do(session, "export")
        session.workdir.write_genotype(homogeneous("identity"))
        with pytest.raises(
            InputError, match=r"holds identity, which is not among space\.candidates"
        ):
            api.do(session, "retrain")


def test_a_search_on_other_data_is_refused(small, tmp_path, monkeypatch):
    result = df.search(small, tmp_path)
    thawed = pickle.loads(pickle.dumps(result))
    assert thawed.prepared is None
    np.testing.assert_array_equal(thawed.mixture, result.mixture)
    assert df.derive(thawed) == df.derive(result)
    monkeypatch.setattr(Study, "data_fingerprint", "0123456789abcdef")
    study = Study(small)
    with Workdir(tmp_path, small) as workdir:
        with pytest.raises(InputError, match=r"the data \(rows, labels or parts\)"):
            search_stage.read(study, workdir)
        with pytest.raises(InputError, match=r"Use a new workdir, or delete"):
            search_stage.search(study, workdir)


def test_the_fingerprint_of_data_knows_rows_and_labels():
    tokens = np.arange(12).reshape(4, 3)
    lengths, labels = np.full(4, 3), np.array([0, 1, 0, 1])
    original = fingerprint([ArraySplit(tokens, lengths, labels)])
    assert original == fingerprint([ArraySplit(tokens.copy(), lengths, labels)])
    flipped = fingerprint([ArraySplit(tokens, lengths, 1 - labels)])
    tripled = fingerprint(
        [ArraySplit(np.tile(tokens, (3, 1)), np.tile(lengths, 3), np.tile(labels, 3))]
    )
    assert len({original, flipped, tripled}) == 3


def test_what_differs_is_named():
    require_same({}, {"data": "b"}, "the search", "")
    require_same({"data": "a"}, {"data": "a", "genotype": "g"}, "the search", "")
    message = r"the search was made with something else: the data .* \(a there, b now\) differ. Use"
    with pytest.raises(InputError, match=message):
        require_same({"data": "a"}, {"data": "b"}, "the search", "Use another.")
