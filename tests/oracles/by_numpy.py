"""Dense definitions in numpy float64, each written from the equation of its paper: for types that no package has."""

from typing import Any

import numpy as np
from fixture import Example, differences, oracle

BY = {"packages": ("numpy",), "differentiate": differences}
SMALL = (3, 11, 2, 3, 6)


def seen(e: Example, allowed: Any = True) -> np.ndarray:
    """`[B, 1, N, N]`: the key is valid, is not later if causal, and is `allowed`."""
    length = e.q.shape[1]
    tri = np.tri(length, dtype=bool) if e.causal else True
    return (e.valid[:, None, :] & tri & allowed)[:, None]


def softmax(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Softmax over the allowed entries of the last axis; a row without any is zero."""
    top = np.max(scores, axis=-1, keepdims=True, where=allowed, initial=-1e300)
    terms = np.where(allowed, np.exp(np.where(allowed, scores - top, 0)), 0)
    return terms / np.maximum(terms.sum(-1, keepdims=True), 1e-300)


def scores(e: Example) -> np.ndarray:
    """q_i . k_j / sqrt(D), `[B, H, N, N]`."""
    return np.einsum("bnhd,bkhd->bhnk", e.q, e.k) / np.sqrt(e.q.shape[-1])


def times(weights: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Weights `[B, H, N, N]` times values `[B, N, H, D]`."""
    return np.einsum("bhnk,bkhd->bnhd", weights, v)


@oracle("uniform", "uniform", by="the mean of the visible values", sizes=SMALL, **BY)
@oracle("uniform_causal", "uniform", causal=True, by="the mean of the visible values", sizes=SMALL, **BY)
def uniform(e: Example) -> np.ndarray:
    """Mean over the valid tokens, up to the query if causal."""
    return times(softmax(np.zeros((len(e.q), e.q.shape[2], *2 * e.q.shape[1:2])), seen(e)), e.v)


@oracle("identity", "identity", by="the values", sizes=SMALL, **BY)
@oracle("identity_causal", "identity", causal=True, by="the values", sizes=SMALL, **BY)
def identity(e: Example) -> np.ndarray:
    """v."""
    return e.v


@oracle("strided", "strided(stride=3)", by="softmax over every third key", sizes=SMALL, **BY)
@oracle("strided_causal", "strided(stride=3)", causal=True, by="softmax over every third key", sizes=SMALL, **BY)
def strided(e: Example) -> np.ndarray:
    """Child et al. 2019, section 4.2: A_i = {j : (i - j) mod stride = 0}."""
    i = np.arange(e.q.shape[1])
    return times(softmax(scores(e), seen(e, (i[:, None] - i) % 3 == 0)), e.v)
