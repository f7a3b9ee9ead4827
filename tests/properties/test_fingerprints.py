"""Work is known by what it is of: whatever else it is of, its identity or its folder is another."""

from pathlib import PurePath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartformer import config as configs
from dartformer.attention import parse
from dartformer.data.fingerprint import fingerprint
from dartformer.data.splits import ArraySplit
from dartformer.errors import InputError
from dartformer.machine.identity import different, require_same
from dartformer.space.genotype import Genotype
from dartformer.stages.layout import training_folder
from dartformer.stages.study import Study

QUICK = settings(max_examples=100, deadline=None, derandomize=True)

ATTENTIONS = ("full", "linear", "uniform", "local(window=1)", "local(window=10)", "conv(width=3)")

GENOTYPES = st.integers(1, 3).flatmap(
    lambda heads: st.lists(
        st.lists(st.sampled_from(ATTENTIONS), min_size=heads, max_size=heads),
        min_size=1,
        max_size=40,
    )
)


def genotype_of(layers):
    return Genotype(tuple(tuple(map(parse, heads)) for heads in layers))


@QUICK
@given(GENOTYPES, GENOTYPES)
def test_two_genotypes_are_trained_in_two_folders(ours, theirs):
    folders = [training_folder(genotype_of(layers)) for layers in (ours, theirs)]
    assert (folders[0] == folders[1]) == (ours == theirs)
    for folder in folders:
        path = PurePath(folder)
        assert len(path.parts) == 2
        assert not path.name.startswith((".", "-"))
        assert len(path.name) < 100  # file systems allow 255 bytes


ROWS = st.lists(
    st.tuples(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 1)),
    min_size=1,
    max_size=5,
)


def split_of(rows):
    tokens = np.zeros((len(rows), 4), np.int32)
    for row, (ids, _) in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    lengths = np.array([len(ids) for ids, _ in rows])
    return ArraySplit(tokens, lengths, np.array([label for _, label in rows]))


@QUICK
@given(ROWS, ROWS)
def test_two_sets_of_rows_have_two_fingerprints(ours, theirs):
    assert (fingerprint([split_of(ours)]) == fingerprint([split_of(theirs)])) == (ours == theirs)


IDENTITIES = st.dictionaries(st.sampled_from(("task", "data", "model", "genotype")), st.text())


@QUICK
@given(IDENTITIES, IDENTITIES)
def test_what_differs_is_refused_by_name(saved, now):
    names = [name for name in saved if name in now and saved[name] != now[name]]
    assert sorted(different(saved, now)) == sorted(names)
    if not names:
        require_same(saved, now, "the search", "Use another.")
        return
    with pytest.raises(InputError, match="the search was made with something else"):
        require_same(saved, now, "the search", "Use another.")


CHANGES = {
    "task.max_depth": ("task", 2),
    "task.seed": ("task", 1),
    "model.mlp_dim": ("model", 24),
    "model.positions": ("model", "rotary"),
    "retrain.steps": ("training", 11),
    "retrain.optimizer.learning_rate": ("training", 0.5),
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_training_of_another_config_is_another(tiny, monkeypatch, field):
    monkeypatch.setattr(Study, "data_fingerprint", "0123456789abcdef")
    aspect, value = CHANGES[field]
    genotype = genotype_of([["full", "full"], ["full", "full"]])
    saved = Study(tiny).training_identity(genotype)
    configs.override(tiny, {field: value})
    now = Study(tiny).training_identity(genotype)
    assert different(saved, now) == [aspect]
    # What a training does not depend on leaves it what it is.
    configs.override(tiny, {"log.every": 3, "search.steps": 99, "baselines.random": False})
    assert Study(tiny).training_identity(genotype) == now
