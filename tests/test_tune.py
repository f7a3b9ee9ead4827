"""Hybrids that are tuned end to end on the predictions of their checkpoint."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dartformer as df
from dartformer.attention import parse
from dartformer.errors import InputError
from dartformer.pretrained.align import Alignment, align
from dartformer.pretrained.passages import pieces
from dartformer.pretrained.tune import (
    Tuner,
    Tuning,
    begin,
    chunked_divergence,
    measure,
    merged,
    training_sequences,
    tune,
)
from dartformer.space.genotype import Genotype
from dartformer.training.checkpoint import Checkpoints, named_leaves

FOLDERS = Path(__file__).parent / "oracles/checkpoints"
TEXT = np.random.default_rng(0).integers(0, 48, 600)
TOKENS = training_sequences(TEXT, 16)
QUICK = Tuning(steps=40, batch=4, rate=3e-3, positions=16)


def hybrid(name="llama", layer="gated_delta"):
    """A checkpoint, and the same with another attention in its first layer."""
    teacher = df.load_pretrained(FOLDERS / name)
    layers = [(parse(text),) * teacher.config.heads for text in (layer, "full")]
    quick = Alignment(steps=2, batch=4)
    return teacher, align(teacher, Genotype(tuple(layers)), TOKENS, quick).model


@pytest.fixture(scope="module")
def models():
    return hybrid()


@pytest.mark.parametrize(("name", "adapters"), [("llama", 0), ("gpt2", 4)])
def test_tuning_lowers_the_divergence(name, adapters):
    teacher, student = hybrid(name)
    rate = 3e-3
    if adapters:
        rate = 2e-2
    options = dataclasses.replace(QUICK, adapters=adapters, rate=rate)
    tuned, losses = tune(teacher, student, TOKENS, options)
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    sequences = pieces(TEXT, 16, 4)
    before, after = (measure(teacher, model, sequences).kl.mean() for model in (student, tuned))
    assert after < 0.9 * before


def test_the_loss_is_the_divergence_of_the_predictions(models):
    """At all positions of one sequence, by the logits of both models."""
    teacher, student = models
    tuner = Tuner(teacher, student, TOKENS[:1], Tuning(steps=1, batch=1, positions=16))
    _, loss = tuner.advance(tuner.begin(), 0)
    target = jax.nn.log_softmax(teacher(TOKENS[:1])[0])
    found = jax.nn.log_softmax(student(TOKENS[:1])[0])
    assert loss == pytest.approx(
        float((np.exp(target) * (target - found)).sum(-1).mean()), rel=1e-4
    )


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_the_divergence_in_parts_is_that_of_all_with_its_gradients(size):
    keys = jax.random.split(jax.random.key(size), 4)
    taught, learned = (jax.random.normal(key, (2, 7, 5)) for key in keys[:2])
    heads = [jax.random.normal(key, (5, 11)) for key in keys[2:]]

    def naive(taught, learned, teacher, student):
        target = jax.nn.log_softmax(jax.lax.stop_gradient(taught @ teacher))
        found = jax.nn.log_softmax(learned @ student)
        return (jnp.exp(target) * (target - found)).sum(-1).mean()

    def chunked(taught, learned, teacher, student):
        return chunked_divergence(
            lambda x: x @ teacher, lambda x: x @ student, taught, learned, size
        )

    arguments = (taught, learned, *heads)
    wanted, slopes = jax.value_and_grad(naive, (0, 1, 2, 3))(*arguments)
    found, gradients = jax.value_and_grad(chunked, (0, 1, 2, 3))(*arguments)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for gradient, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)
    assert not np.any(gradients[0])
    assert not np.any(gradients[2])


def test_adapters_merge_exactly_and_leave_the_rest(models):
    """W x + B A x for each matrix, and no other weight moves but those of the new attention."""
    teacher, student = models
    tuner = Tuner(teacher, student, TOKENS, dataclasses.replace(QUICK, adapters=3, rate=1e-2))
    state = tuner.begin()
    same = merged(student.weights, state.trained)
    jax.tree.map(np.testing.assert_array_equal, same, student.weights)
    for step in range(5):
        state, _ = tuner.advance(state, step)
    tuned = tuner.model(state)
    before, after = dict(named_leaves(student.weights)), dict(named_leaves(tuned.weights))
    # 2 layers of q, k, v, o, up, down and gate.
    assert len(state.trained.low_rank) == 14
    for name, leaf in after.items():
        if name in state.trained.low_rank:
            a, b = state.trained.low_rank[name]
            rank = a.shape[-1]
            assert rank == 3
            x = np.random.default_rng(1).normal(size=(6, np.prod(a.shape[:-1])))
            a, b = np.reshape(a, (-1, rank)), np.reshape(b, (rank, -1))
            plain = x @ np.reshape(before[name], (x.shape[1], -1))
            together = x @ np.reshape(leaf, (x.shape[1], -1))
            np.testing.assert_allclose(together, plain + (x @ a) @ b, atol=1e-5)
            assert not np.array_equal(leaf, before[name])
        elif name not in state.trained.whole:
            np.testing.assert_array_equal(leaf, before[name])
    assert set(state.trained.whole) == {name for name in before if "/own/" in name}
    assert state.trained.size < sum(leaf.size for leaf in before.values()) / 2
    # Saved like any other model.
    loss = tuner.advance(state, 5)[1]
    again = Tuner(teacher, tuned, TOKENS, tuner.options)
    assert again.advance(again.begin(), 5)[1] == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("adapters", [0, 2])
def test_going_on_from_a_checkpoint_gives_the_same_weights(models, tmp_path, adapters):
    teacher, student = models
    tuner = Tuner(teacher, student, TOKENS, dataclasses.replace(QUICK, adapters=adapters))
    state = tuner.begin()
    for step in range(4):
        state, _ = tuner.advance(state, step)
    with Checkpoints(tmp_path / "tuning") as saved:
        saved.save(4, state, {})
    for step in range(4, 8):
        state, _ = tuner.advance(state, step)
    again = Tuner(teacher, student, TOKENS, tuner.options)
    with Checkpoints(tmp_path / "tuning") as saved:
        restored = saved.latest(again.begin())
    later = restored.state
    for step in range(restored.step, 8):
        later, _ = again.advance(later, step)
    jax.tree.map(
        np.testing.assert_array_equal, again.model(later).weights, tuner.model(state).weights
    )


def test_the_checkpoint_itself_stays(models):
    """Its arrays are shared with the student's, and a step writes over what it trains."""
    teacher, student = models
    before = jax.tree.map(np.asarray, teacher.weights)
    before = jax.tree.map(np.copy, before)
    tune(teacher, student, TOKENS, dataclasses.replace(QUICK, steps=2))
    jax.tree.map(np.testing.assert_array_equal, teacher.weights, before)


def test_a_tuned_model_is_written_and_read(models, tmp_path):
    tuned, _ = tune(*models, TOKENS, dataclasses.replace(QUICK, steps=2, adapters=2))
    df.save_pretrained(tuned, tmp_path / "tuned")
    again = df.load_pretrained(tmp_path / "tuned")
    jax.tree.map(np.testing.assert_array_equal, again.weights, tuned.weights)


def test_every_second_sequence_has_a_passage_twice():
    assert TOKENS.shape == (37, 16)
    assert np.array_equal(TOKENS[0], TEXT[:16])
    assert np.array_equal(TOKENS[1, :11], TEXT[16:27])
    assert np.array_equal(TOKENS[1, 11:], TEXT[16:21])
    with pytest.raises(InputError, match="at least 16 tokens of text, got 15"):
        training_sequences(TEXT[:15], 16)


def test_what_cannot_be_tuned_is_one_line(models):
    teacher, student = models
    encoder = df.load_pretrained(FOLDERS / "bert")
    for arguments, message in (
        ((encoder, encoder, TOKENS), "because it predicts no next tokens"),
        ((teacher, student, TOKENS[0]), r"tokens must be whole numbers \[S, N\]"),
        ((teacher, student, TOKENS[:0]), r"tokens must be whole numbers \[S, N\]"),
        ((teacher, student, TOKENS + 48), "tokens must be from 0 to 47"),
        ((teacher, student, np.ones((1, 33), int)), "the model takes at most 32 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            Tuner(*arguments, QUICK)
    for options in (
        {"steps": -1},
        {"batch": 0},
        {"positions": 0},
        {"rate": 0.0},
        {"rate": float("inf")},
        {"rate": float("nan")},
        {"adapters": -1},
        {"seed": -1},
        {"steps": 2.5},
    ):
        with pytest.raises(InputError, match=next(iter(options))):
            Tuning(**options)


def test_the_parameters_are_named_like_the_weights(models):
    _, student = models
    names = {name for name, _ in named_leaves(student.weights)}
    assert begin(student.weights, Tuning()).whole.keys() == names
