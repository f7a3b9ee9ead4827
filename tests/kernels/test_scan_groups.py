"""Recurrences over several groups of tokens, each computed again in the backward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention.conformance.case import quick
from dartformer.kernels.decay_scan import decay_scan, decay_scan_from
from dartformer.kernels.delta_scan import delta_scan, delta_scan_from
from dartformer.kernels.gated_scan import gated_scan, gated_scan_from
from dartformer.kernels.linear_scan import (
    GROUP,
    group_of,
    linear_attention,
    linear_attention_from,
    linear_weights,
    no_sums_of,
)
from dartformer.kernels.log_linear import (
    log_linear_attention,
    log_linear_attention_from,
    log_linear_weights,
    no_sums,
)
from dartformer.kernels.recurrence import recurrence
from dartformer.kernels.softmax import dense_allowed
from dartformer.kernels.target import Target

GPU = Target("gpu", "any")
"""A target on which tokens are cut into groups from the second group on."""

LENGTH = GROUP + 44  # two groups, of which the second is partly filled

SCANS = {"decay": decay_scan, "gated": gated_scan, "delta": delta_scan}
FROM = {"decay": decay_scan_from, "gated": gated_scan_from, "delta": delta_scan_from}


def arrays(name, length=LENGTH):
    """q, k, v, log-decays (and beta) of a scan, and which tokens are valid."""
    random = np.random.default_rng(1)
    q, k, v = random.standard_normal((3, 2, length, 2, 4))
    k = k / np.linalg.norm(k, axis=-1, keepdims=True)
    decay = -0.1 * random.exponential(size=(2, length, 2, 4))
    valid = random.random((2, length)) < 0.8
    extra = []
    if name != "gated":
        decay = decay[..., 0]
    if name == "delta":
        extra = [random.random((2, length, 2))]
    return [jnp.asarray(x) for x in (q, k, v, decay, *extra)], jnp.asarray(valid)


def definition(name, *tokens, **options):
    if name == "delta":
        *tokens, beta = tokens
        options["beta"] = beta
    return recurrence(*tokens, **options)


def assert_same(ours, theirs, tokens):
    """Outputs, gradients, and a derivative of the gradients."""

    def all_of(f):
        def loss(*tokens):
            out = f(*tokens)
            return jnp.sum(jnp.sin(out)), out

        gradient = jax.grad(loss, argnums=tuple(range(len(tokens))), has_aux=True)
        return quick(lambda *tokens: jax.jvp(gradient, tokens, tokens))(*tokens)

    actual = jax.tree.leaves(all_of(ours))
    expected = jax.tree.leaves(all_of(theirs))
    for x, y in zip(actual, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-9 * np.abs(y).max())


def test_a_cpu_cuts_long_sequences_alone():
    cpu = Target("cpu", "cpu")
    assert group_of(LENGTH, GPU) == group_of(4096, cpu) == GROUP
    assert group_of(LENGTH, cpu) >= LENGTH


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", SCANS)
def test_two_groups_are_the_definition(name, causal):
    with jax.enable_x64(True):
        tokens, valid = arrays(name)
        options = {"causal": causal, "valid": valid}
        assert_same(
            functools.partial(SCANS[name], target=GPU, **options),
            functools.partial(definition, name, **options),
            tokens,
        )


@pytest.mark.parametrize("weights", [linear_weights, log_linear_weights])
def test_two_groups_of_features_are_the_definition(weights):
    scan = linear_attention
    if weights is log_linear_weights:
        scan = log_linear_attention
    with jax.enable_x64(True):
        (q, k, v, _), valid = arrays("gated")
        if scan is linear_attention:
            q, k = jnp.exp(q), jnp.exp(k)
        allowed = dense_allowed(LENGTH, causal=True, valid=valid)

        def expected(q, k, v):
            return jnp.einsum("bhnk,bkhd->bnhd", weights(q, k, allowed), v)

        ours = functools.partial(scan, causal=True, valid=valid, target=GPU)
        assert_same(ours, expected, (q, k, v))


def assert_goes_on(scan, start, whole, tokens):
    """Two parts, the second from the state of the first, are the whole."""
    first, state = scan(start, *(x[:, :300] for x in tokens))
    second, last = scan(state, *(x[:, 300:] for x in tokens))
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-9)
    once = scan(start, *tokens)[1]
    for x, y in zip(jax.tree.leaves(last), jax.tree.leaves(once), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-9)


@pytest.mark.parametrize("name", SCANS)
def test_a_state_goes_on_over_groups(name):
    with jax.enable_x64(True):
        tokens, _ = arrays(name, 600)
        start = jnp.zeros((2, 2, 4, 4))
        scan = functools.partial(FROM[name], target=GPU)
        assert_goes_on(scan, start, quick(functools.partial(definition, name))(*tokens), tokens)


@pytest.mark.parametrize("log", [False, True])
def test_sums_go_on_over_groups(log):
    with jax.enable_x64(True):
        (q, k, v, _), _ = arrays("gated", 600)
        scan, whole, start = linear_attention_from, linear_attention, no_sums_of(k, v)
        if log:
            scan, whole = log_linear_attention_from, log_linear_attention
            start = no_sums(start.state)
        else:
            q, k = jnp.exp(q), jnp.exp(k)
        cpu = Target("cpu", "cpu")
        expected = quick(functools.partial(whole, causal=True, target=cpu))(q, k, v)
        assert_goes_on(quick(functools.partial(scan, target=GPU)), start, expected, (q, k, v))


def test_groups_under_vmap_and_with_a_symbolic_batch():
    tokens, valid = arrays("decay")
    tokens = [x.astype(jnp.float32) for x in tokens]
    scan = functools.partial(decay_scan, causal=False, target=GPU)
    expected = scan(*tokens, valid=valid)
    two = quick(jax.vmap(scan))(*(jnp.stack([x, x]) for x in tokens), valid=jnp.stack([valid] * 2))
    np.testing.assert_allclose(two[1], expected, atol=1e-5)
    (batch,) = jax.export.symbolic_shape("batch")

    def symbolic(x):
        return jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)

    exported = jax.export.export(jax.jit(lambda valid, *tokens: scan(*tokens, valid=valid)))
    program = exported(*(symbolic(x) for x in (valid, *tokens)))
    np.testing.assert_allclose(program.call(valid, *tokens), expected, atol=1e-5)
