"""A batch in parts: the loss and the gradients are those of the whole batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK

from dartformer.attention import parse
from dartformer.config.sections import Data
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.models.supernet import supernet
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.strategies import Problem, make
from dartformer.training.metric import ACCURACY, R2
from dartformer.training.optimizer import Optimizer, build
from dartformer.training.step import begin, plain_step, training_loss

EXAMPLES, LENGTH, CLASSES = 12, 6, 3

SIZES = TransformerConfig(
    vocabulary=7,
    classes=CLASSES,
    length=LENGTH,
    layers=1,
    heads=2,
    head_dim=4,
    model_dim=8,
    mlp_dim=8,
    pooling="none",
)
CANDIDATES = (parse("linear"), parse("uniform"))
SPACE = SearchSpace(CANDIDATES, SIZES.layers, SIZES.heads, "layer")

LINEAR = Genotype(((CANDIDATES[0],) * SIZES.heads,) * SIZES.layers)

WEIGHTED = dataclasses.replace(ACCURACY, class_weights=(0.2, 3.0, 1.0))


def labels_of_tokens(rng, valid):
    """A label for each token; some tokens have none, and so have whole examples."""
    labels = rng.integers(0, CLASSES, valid.shape)
    return np.where(valid & (rng.random(valid.shape) < 0.7), labels, -1)


def batch_of(metric, per_token):
    """Examples of unequal lengths."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, LENGTH + 1, EXAMPLES)
    valid = np.arange(LENGTH) < lengths[:, None]
    label = rng.integers(0, CLASSES, EXAMPLES)
    if metric.regression:
        label = rng.normal(size=EXAMPLES).astype(np.float32)
    elif per_token:
        label = labels_of_tokens(rng, valid)
        label[3] = -1
    tokens = rng.integers(0, 7, valid.shape)
    return jax.tree.map(jnp.asarray, {"tokens": tokens, "valid": valid, "label": label})


def sizes_of(metric, per_token):
    return dataclasses.replace(
        SIZES,
        pooling="none" if per_token else "mean",
        classes=1 if metric.regression else CLASSES,
    )


def assert_close(found, expected, tolerance=1e-6):
    """Relative to the largest number of all."""
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(("metric", "per_token"), [(WEIGHTED, True), (R2, False)])
def test_loss_and_gradients_are_those_of_the_whole_batch(metric, per_token):
    network = supernet(sizes_of(metric, per_token), SPACE)
    batch, key = batch_of(metric, per_token), jax.random.key(1)
    weights = network.init(key)
    mixture = jnp.full(SPACE.mixture_shape, 1 / 2)

    def computed(parts):
        loss = training_loss(network, metric, parts)
        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), compiler_options=QUICK)(
            weights, mixture, batch, key
        )

    assert_close(computed(4), computed(1))


@pytest.mark.parametrize("hypergradient", ["second", "neumann(terms=1)"])
def test_a_search_step_is_that_of_the_whole_batch(hypergradient):
    network, batch = supernet(SIZES, SPACE), batch_of(ACCURACY, True)
    options = make("darts", {"hypergradient": hypergradient, "warmup": 0.0})

    def after(parts):
        problem = Problem(
            training_loss(network, ACCURACY, parts),
            SPACE.alphas_shape,
            SPACE.mixture_shape,
            build(Optimizer(name="sgd", clip=0.0, warmup=0.0), 10),
            build(Optimizer(name="sgd", clip=0.0, warmup=0.0), 10),
            10,
        )
        strategy = options(problem)
        state = strategy.init(jax.random.key(0), network.init(jax.random.key(1)))
        return jax.jit(strategy.step, compiler_options=QUICK)(state, batch, batch)

    (state, metrics), (whole, of_whole) = after(3), after(1)
    assert_close((state.weights, state.alphas), (whole.weights, whole.alphas))
    assert_close(metrics["alphas_gradient_norm"], of_whole["alphas_gradient_norm"], 1e-5)


def test_a_training_step_is_that_of_the_whole_batch():
    network, batch = transformer(SIZES, LINEAR), batch_of(ACCURACY, True)
    chain = build(Optimizer(warmup=0.0), 10)

    def after(parts):
        state = begin(network, chain, 0)
        step = jax.jit(plain_step(network, chain, WEIGHTED, parts), compiler_options=QUICK)
        return step(state, batch)

    (state, metrics), (whole, of_whole) = after(6), after(1)
    assert_close(metrics, of_whole)
    # Adam's first step is the gradient's sign, whatever its size.
    assert_close(state.optimizer, whole.optimizer)


def test_parts_have_dropout_of_their_own():
    sizes = dataclasses.replace(SIZES, dropout=0.5)
    network, one = transformer(sizes, LINEAR), batch_of(ACCURACY, True)
    key = jax.random.key(0)
    weights = network.init(key)
    loss = jax.jit(training_loss(network, ACCURACY, 2), compiler_options=QUICK)

    def value(first, second):
        batch = jax.tree.map(lambda x: jnp.stack([x[first], x[second]]), one)
        return float(loss(weights, None, batch, key)[0])

    # The same examples, each in the other part.
    assert value(0, 1) != pytest.approx(value(1, 0), rel=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_nothing_of_a_part_is_kept(order):
    sizes = dataclasses.replace(SIZES, length=64, pooling="mean")
    network, examples = transformer(sizes, LINEAR), 64
    weights = jax.eval_shape(network.init, jax.random.key(0))
    struct = jax.ShapeDtypeStruct
    batch = {
        "tokens": struct((examples, 64), jnp.int32),
        "valid": struct((examples, 64), bool),
        "label": struct((examples,), jnp.int32),
    }
    key = jax.eval_shape(lambda: jax.random.key(0))

    def temporaries(parts):
        function = training_loss(network, ACCURACY, parts)
        for _ in range(order):
            function = squares_of_gradient(function)
        compiled = jax.jit(function).lower(weights, None, batch, key)
        compiled = compiled.compile(compiler_options=QUICK)
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(1) / 3


def squares_of_gradient(loss):
    """(weights, ...) -> the squared norm of the gradient by the weights."""

    def squares(*arguments):
        gradient, _ = jax.grad(loss, has_aux=True)(*arguments)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)), ()

    return squares


def test_parts_must_divide_the_batch():
    with pytest.raises(InputError, match=r"must divide data.batch_size = 32, got 5"):
        Data(batch_size=32, accumulate=5)
