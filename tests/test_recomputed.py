"""Blocks that are computed again in the backward pass give the same loss and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import QUICK

from dartformer.accelerators.devices import DEVICES
from dartformer.attention import parse
from dartformer.models.sizes import TransformerConfig
from dartformer.models.supernet import recomputes_blocks, supernet
from dartformer.space.search_space import SearchSpace
from dartformer.training.step import training_loss

SIZES = TransformerConfig(
    vocabulary=7,
    classes=3,
    length=16,
    layers=2,
    heads=2,
    head_dim=4,
    model_dim=8,
    mlp_dim=8,
    pooling="mean",
    dropout=0.2,
    scan=2,
)


def space_of(sizes):
    return SearchSpace((parse("linear"), parse("uniform")), sizes.layers, sizes.heads, "layer")


def gradient_of(sizes, projections, blocks):
    """(function of weights and mixture, its arguments): loss and gradient."""
    space = space_of(sizes)
    network = supernet(sizes, space, projections, blocks=blocks)
    rng = np.random.default_rng(0)
    batch = {
        "tokens": jnp.asarray(rng.integers(0, 7, (4, 16))),
        "valid": jnp.arange(16) < jnp.array([[3], [16], [9], [1]]),
        "label": jnp.array([0, 1, 2, 0]),
    }
    loss = training_loss(network)

    def gradient(weights, mixture):
        key = jax.random.key(1)
        return jax.value_and_grad(loss, (0, 1), has_aux=True)(weights, mixture, batch, key)

    mixture = jnp.asarray(rng.random(space.mixture_shape), jnp.float32)
    return gradient, (network.init(jax.random.key(0)), mixture)


@pytest.mark.parametrize(("scan", "projections"), [(2, "shared"), (0, "separate")])
def test_loss_and_gradients_are_the_same(scan, projections):
    sizes = dataclasses.replace(SIZES, scan=scan)
    results = []
    for blocks in (False, True):
        gradient, arguments = gradient_of(sizes, projections, blocks)
        results.append(jax.jit(gradient, compiler_options=QUICK)(*arguments))
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_candidates_are_not_run_a_third_time():
    conditionals, kept = [], []
    for blocks in (False, True):
        gradient, arguments = gradient_of(SIZES, "shared", blocks)
        traced = jax.jit(gradient).trace(*arguments)
        conditionals.append(str(traced.jaxpr).count("cond["))
        compiled = traced.lower().compile(compiler_options=QUICK)
        kept.append(compiled.memory_analysis().temp_size_in_bytes)
    assert conditionals[0] == conditionals[1]
    assert kept[1] < kept[0]


def test_blocks_are_recomputed_on_accelerators_where_there_are_several():
    on_tpu = dataclasses.replace(SIZES, target=DEVICES["tpu-v5e"].target)
    assert recomputes_blocks(on_tpu)
    assert not recomputes_blocks(dataclasses.replace(on_tpu, layers=1))
    assert not recomputes_blocks(SIZES)
