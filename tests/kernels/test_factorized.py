"""The factorised patterns against the paper's predicates, and their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention.conformance.case import arrays
from dartformer.kernels.factorized import fixed_attention, strided_attention
from dartformer.kernels.softmax import masked_softmax


def agree(kernel, rule, length, causal, seed):
    """Output and gradients in float64 against softmax over `rule(i, j)`, with and without holes."""
    random = np.random.default_rng(seed)
    q, k, v, c = (jnp.asarray(random.standard_normal((2, length, 2, 6))) for _ in range(4))
    i, j = np.arange(length)[:, None], np.arange(length)
    pattern = rule(i, j) & ((j <= i) | (not causal))
    holes = random.random((2, length)) < 0.7

    def output_and_gradients(f):
        out, pull = jax.vjp(f, q, k, v)
        return out, *pull(c)

    for valid in (None, holes):
        allowed = pattern if valid is None else pattern & valid[:, None, None, :]

        def dense(q, k, v, allowed=allowed):
            scores = jnp.einsum("bnhd,bkhd->bhnk", q, k) / np.sqrt(q.shape[-1])
            return jnp.einsum("bhnk,bkhd->bnhd", masked_softmax(scores, jnp.asarray(allowed)), v)

        mask = None if valid is None else jnp.asarray(valid)
        actual = jax.jit(
            lambda mask=mask: output_and_gradients(
                lambda q, k, v: kernel(q, k, v, causal=causal, valid=mask)
            )
        )()
        for a, b in zip(
            actual, jax.jit(lambda dense=dense: output_and_gradients(dense))(), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("length", "block", "summary"),
    [(1, 4, 1), (5, 8, 3), (8, 8, 2), (29, 4, 0), (32, 8, 3), (45, 7, 1), (45, 7, 7)],
)
def test_fixed_is_the_paper_predicate(length, block, summary, causal):
    with jax.enable_x64(True):
        agree(
            lambda q, k, v, **o: fixed_attention(q, k, v, block=block, summary=summary, **o),
            lambda i, j: (i // block == j // block) | (j % block >= block - summary),
            length,
            causal,
            length,
        )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("length", "stride"), [(1, 3), (5, 8), (8, 8), (9, 8), (29, 1), (32, 4), (45, 7)]
)
def test_strided_is_the_paper_predicate(length, stride, causal):
    def rule(i, j):  # the paper's i - j <= stride is the same union: i - j = stride is a multiple
        return (abs(i - j) <= stride) | ((i - j) % stride == 0)

    with jax.enable_x64(True):
        agree(
            lambda q, k, v, **o: strided_attention(q, k, v, stride=stride, **o),
            rule,
            length,
            causal,
            length,
        )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "kernel",
    [
        lambda q, **o: fixed_attention(q, q, q, block=64, summary=2, **o),
        lambda q, **o: strided_attention(q, q, q, stride=64, **o),
    ],
)
def test_memory_is_n_sqrt_n(kernel, causal):
    shape = jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)
    traced = jax.make_jaxpr(jax.grad(lambda q: jnp.sum(kernel(q, causal=causal))))(shape)
    assert max(arrays(traced)) <= 3 * 4096 * 64
