"""A few heads at a time, against all at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.accelerators.devices import device_of
from dartformer.attention import Inputs, Shape, parse, slices
from dartformer.attention.conformance.case import quick
from dartformer.kernels.target import here

B, N, H, D = 2, 40, 3, 4
TPU = device_of("tpu-v5e").target


def case(spec):
    """The attention, parameters and `Inputs` with padding, for a TPU."""
    attention = parse(spec)
    shape = Shape(N, H, D, H * D)
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(key, (B, N, H, D)) for key in keys[:3])
    valid = (jnp.arange(N) < jnp.array([[N], [29]])).at[0, 3].set(False)
    inputs = Inputs(q, k, v, None, valid, jax.random.split(keys[3], H), target=TPU)
    if "alibi" in attention.traits.positions:
        inputs = dataclasses.replace(inputs, slopes=jnp.array([0.5, 0.2, 0.1]))
    return attention, attention.init(keys[4], shape), inputs


@pytest.mark.parametrize(
    "spec",
    [
        "reformer(buckets=4,chunk=4)",
        "bigbird(block=2)",
        "sinkhorn(block=4)",
        "fourier",
        "sink(window=3)",
        "window_linear(window=3)",
    ],
)
def test_a_head_at_a_time_is_all_at_once(spec, monkeypatch):
    """Outputs, gradients, and a derivative of the gradients."""
    monkeypatch.setattr(slices, "LEAST", B * N * D)
    attention, params, inputs = case(spec)
    assert slices.slices(inputs, on_cpu=None) == H

    def results(target):
        def loss(params, q, k, v):
            changed = dataclasses.replace(inputs, q=q, k=k, v=v, target=target)
            return (attention(params, changed) ** 3).sum()

        arrays = (params, inputs.q, inputs.k, inputs.v)
        gradient = jax.grad(loss, (0, 1, 2, 3))
        return loss(*arrays), jax.jvp(gradient, arrays, jax.tree.map(jnp.sin, arrays))

    got, want = quick(lambda: (results(TPU), results(here())))()
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=1e-5 * max(1, float(np.abs(w).max())))


def test_each_head_draws_its_own_noise(monkeypatch):
    monkeypatch.setattr(slices, "LEAST", 1)
    attention, params, inputs = case("sink(window=3)")
    same = [jnp.broadcast_to(x[:, :, :1], x.shape) for x in (inputs.q, inputs.k, inputs.v)]
    inputs = Inputs(*same, dropout=0.5, target=TPU)
    out = attention(params, inputs, train=True, key=jax.random.key(1))
    assert (np.abs(out[:, :, 0] - out[:, :, 1]).max((0, 2)) > 0).mean() > 0.9


def test_heads_are_cut_only_where_that_pays():
    count = slices._count
    large = 8 * slices.LEAST
    assert count(large, 8, TPU, None) == 8
    assert count(large - 1, 8, TPU, None) == 4  # the next divisor
    assert count(large, 1, TPU, None) == 1
    assert count(1000, 8, here(), 100) == 8
    assert count(799, 8, here(), 100) == 4
    assert count(large, 8, here(), None) == 1
