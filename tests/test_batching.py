"""Batches of a loaded model: each example's own answer, in order, from few shapes of programs."""

import itertools

import numpy as np
import pytest

import dartformer as df
from dartformer.export import batching
from dartformer.export.load import Served
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from tests.test_export import made

LENGTH = 100


def example_sums(shape):
    """What stands for a model: sums over the tokens that exist, and the shapes that it was given."""
    shapes = []

    def predict(tokens, valid):
        shapes.append(tokens.shape)
        numbers = tokens
        if shape.features:
            numbers = tokens.sum(-1)
        kept = np.where(valid, numbers, 0)
        if shape.labels_tokens:
            return np.stack([kept, kept + 1], -1).astype(np.float32)
        total = kept.reshape(len(kept), -1).sum(-1)
        return np.stack([total, total + 1], -1).astype(np.float32)

    return predict, shapes


@pytest.mark.parametrize(
    "options", [{}, {"inputs": 2}, {"features": 3}, {"pooling": "none"}], ids=str
)
def test_examples_of_any_length_in_few_shapes(options):
    shape = TransformerConfig(vocabulary=9, classes=2, length=LENGTH, **options)
    blank, mask = shape.blank(3000)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 9, blank.shape).astype(blank.dtype)
    counts = np.where(rng.random(mask.shape[:-1]) < 0.9, 1, LENGTH)
    counts *= rng.integers(1, 12, counts.shape)
    valid = np.arange(LENGTH) < counts[..., None]
    valid[rng.random(valid.shape) < 0.1] = False  # holes, and examples without a token
    predict, shapes = example_sums(shape)
    got = batching.logits(predict, shape, tokens, valid, any_length=True)
    want = np.asarray(predict(tokens, valid))
    exists = np.ones(len(want), bool)
    if shape.labels_tokens:
        exists = valid
    np.testing.assert_array_equal(got[exists], want[exists])
    shapes.pop()
    batched, lengths = [s[0] for s in shapes], [s[valid.ndim - 1] for s in shapes]
    assert len(set(shapes)) <= 8
    assert {16, LENGTH} <= set(lengths)
    for count, length in zip(batched, lengths, strict=True):
        assert count.bit_count() == 1
        assert count * length * shape.inputs <= batching.TOKENS
    # Most examples are short, and so is most of what is computed.
    assert np.dot(batched, lengths) < 0.6 * len(tokens) * LENGTH
    # A model of one length gets nothing else.
    predict, shapes = example_sums(shape)
    batching.logits(predict, shape, tokens[:70], valid[:70], any_length=False)
    assert {s[valid.ndim - 1] for s in shapes} == {LENGTH}


@pytest.mark.parametrize("heads", [("full", "reformer"), ("linformer", "bigbird")])
def test_answers_are_those_of_one_padded_length(heads):
    """The model alone at its full length, in windows and batches of other sizes."""
    model = made([heads], task__max_length=LENGTH + 1)
    shapes = []
    apply = transformer(model.shape, model.genotype).apply

    def predict(tokens, valid):
        shapes.append(tokens.shape)
        return apply(model.weights, tokens, valid)

    rng = np.random.default_rng(1)
    ids = [rng.integers(1, 16, count).tolist() for count in (5, 90, 1, 30, 12, 14, 100, 9)]
    served = Served(predict, model)
    answers = served(ids, top=3)
    own_length = heads[0] != "full"
    assert shapes == [(8, LENGTH)]
    assert served(ids[:1])[0]["label"] == answers[0]["label"]
    assert shapes[-1] == (1, LENGTH if own_length else 16)
    logits = np.asarray(apply(model.weights, *served.arrays(ids)))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for answer, row in zip(answers, probabilities, strict=True):
        assert answer["label"] == served.labels[row.argmax()]
        assert abs(answer["probability"] - row.max()) < 1e-6
        assert list(answer["probabilities"].values()) == pytest.approx(
            sorted(row.tolist(), reverse=True)[:3], abs=1e-6
        )


def test_windows_keep_the_order(monkeypatch):
    """Many examples are answered a window at a time, from lists and from arrays alike."""
    model = made([["uniform", "identity"]])
    apply = transformer(model.shape, model.genotype).apply
    served = Served(lambda tokens, valid: apply(model.weights, tokens, valid), model)
    texts = ["[MAX 2 9 ]", "[MIN 4 7 [SM 1 1 ] ]", "[MED 1 2 3 ]"] * 3
    whole, logits = served(texts), served.logits(texts)
    monkeypatch.setattr(batching, "MOST_ROWS", 4)
    assert batching.window_rows(model.shape) == 4
    assert [a["label"] for a in served(texts)] == [a["label"] for a in whole]
    np.testing.assert_allclose(served.logits(texts), logits, atol=1e-6)
    arrays = served.arrays(texts)
    for answer, again in itertools.zip_longest(whole, served(*arrays)):
        assert answer["probability"] == pytest.approx(again["probability"], abs=1e-6)
    with pytest.raises(df.InputError, match="unknown ListOps symbol"):
        served([*texts, "[MAXX ]"])
