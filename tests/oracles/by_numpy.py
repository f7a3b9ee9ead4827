"""Dense definitions in numpy float64, each written from the equation of its paper: for types that
no package has."""

import dataclasses
from typing import Any

import numpy as np
from fixture import Example, differences, oracle

BY = {"packages": ("numpy",), "differentiate": differences}
SMALL = (3, 11, 2, 3, 6)
LONG = (3, 70, 2, 2, 4)
"""More tokens than a tile of ours has."""


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


def attend(e: Example, allowed: Any = True) -> np.ndarray:
    """Softmax attention over the allowed of the visible keys."""
    return times(softmax(scores(e), seen(e, allowed)), e.v)


def places(e: Example) -> tuple[np.ndarray, np.ndarray]:
    """i and j, `[N, 1]` and `[1, N]`."""
    return tuple(np.ogrid[: e.q.shape[1], : e.q.shape[1]])


def times(weights: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Weights `[B, H, N, N]` times values `[B, N, H, D]`."""
    return np.einsum("bhnk,bkhd->bnhd", weights, v)


@oracle("uniform", "uniform", by="the mean of the visible values", sizes=SMALL, **BY)
@oracle(
    "uniform_causal", "uniform", causal=True, by="the mean of the visible values", sizes=SMALL, **BY
)
def uniform(e: Example) -> np.ndarray:
    """Mean over the valid tokens, up to the query if causal."""
    return times(softmax(np.zeros((len(e.q), e.q.shape[2], *2 * e.q.shape[1:2])), seen(e)), e.v)


@oracle("identity", "identity", by="the values", sizes=SMALL, **BY)
@oracle("identity_causal", "identity", causal=True, by="the values", sizes=SMALL, **BY)
def identity(e: Example) -> np.ndarray:
    """v."""
    return e.v


@oracle("strided", "strided(stride=3)", by="softmax over every third key", sizes=SMALL, **BY)
@oracle(
    "strided_causal",
    "strided(stride=3)",
    causal=True,
    by="softmax over every third key",
    sizes=SMALL,
    **BY,
)
def strided(e: Example) -> np.ndarray:
    """Child et al. 2019, section 4.2: A_i = {j : (i - j) mod stride = 0}."""
    i = np.arange(e.q.shape[1])
    return times(softmax(scores(e), seen(e, (i[:, None] - i) % 3 == 0)), e.v)


FIXED = "Child et al. 2019, section 4.3, pattern fixed, as a dense mask"


@oracle("sparse_fixed", "sparse(stride=5, summary=2)", by=FIXED, **BY)
@oracle("sparse_fixed_causal", "sparse(stride=5, summary=2)", causal=True, by=FIXED, **BY)
def sparse_fixed(e: Example) -> np.ndarray:
    """A1: the same block. A2: j mod l is one of the last c. Both in one head, which the paper calls
    merged."""
    i, j = places(e)
    return attend(e, (i // 5 == j // 5) | np.isin(j % 5, (3, 4)))


STRIDED = "Child et al. 2019, section 4.3, pattern strided, as a dense mask"


@oracle("sparse_strided", "sparse(stride=5, pattern='strided')", by=STRIDED, **BY)
@oracle(
    "sparse_strided_causal", "sparse(stride=5, pattern='strided')", causal=True, by=STRIDED, **BY
)
def sparse_strided(e: Example) -> np.ndarray:
    """A1: the l tokens before (and after, where it is not causal). A2: (i - j) mod l = 0."""
    i, j = places(e)
    return attend(e, (abs(i - j) <= 5) | ((i - j) % 5 == 0))


SINK = "Xiao et al. 2024, section 3.2, as a dense mask"


@oracle("sink", "sink(window=3, sinks=2)", by=SINK, sizes=LONG, **BY)
@oracle("sink_causal", "sink(window=3, sinks=2)", causal=True, by=SINK, sizes=LONG, **BY)
def sink(e: Example) -> np.ndarray:
    """The window and the first two tokens."""
    i, j = places(e)
    return attend(e, (abs(i - j) <= 3) | (j < 2))


@oracle(
    "longformer_causal",
    "longformer(window=3, globals=2)",
    causal=True,
    scale=0.4,
    params={name: (2, 8, 4) for name in ("W_q", "W_k", "W_v")},
    by="Beltagy et al. 2020, section 3.1, as two dense masks",
    **BY,
)
def longformer(e: Example) -> np.ndarray:
    """The first two tokens by projections of their own, the others by the window and those two."""
    i, j = places(e)
    q, k, v = (np.einsum("bne,hed->bnhd", e.x, e.params[name]) for name in ("W_q", "W_k", "W_v"))
    first = attend(dataclasses.replace(e, q=q, k=k, v=v))
    rest = attend(e, (abs(i - j) <= 3) | (j < 2))
    return np.where(np.arange(len(i))[:, None, None] < 2, first, rest)


RELU = "Katharopoulos et al. 2020, equation 4, with max(x, 0) for features"


@oracle("linear_relu", "linear(feature='relu')", by=RELU, sizes=SMALL, **BY)
@oracle("linear_relu_causal", "linear(feature='relu')", causal=True, by=RELU, sizes=SMALL, **BY)
def linear_relu(e: Example) -> np.ndarray:
    """sim(q, k) = phi(q) . phi(k), divided by its sum over the visible keys; zero where that is."""
    similar = np.einsum("bnhd,bkhd->bhnk", np.maximum(e.q, 0), np.maximum(e.k, 0)) * seen(e)
    total = similar.sum(-1, keepdims=True)
    return times(similar / np.where(total == 0, 1, total), e.v)


HEDGEHOG = "Zhang et al. 2024 (Hedgehog), softmax features of both signs, token by token"


@oracle(
    "linear_hedgehog",
    "linear(feature='hedgehog')",
    params={"W_q": (2, 3, 3), "W_k": (2, 3, 3)},
    scale=1.0,
    sizes=SMALL,
    by=HEDGEHOG,
    **BY,
)
@oracle(
    "linear_hedgehog_causal",
    "linear(feature='hedgehog')",
    causal=True,
    params={"W_q": (2, 3, 3), "W_k": (2, 3, 3)},
    scale=1.0,
    sizes=SMALL,
    by=HEDGEHOG,
    **BY,
)
def linear_hedgehog(e: Example) -> np.ndarray:
    """sim(q, k) = phi(q) . phi(k), divided by its sum over the visible keys."""
    (batch, length, heads, width), out = e.q.shape, np.zeros_like(e.v)
    for b, h, i in np.ndindex(batch, heads, length):
        if not e.valid[b, i]:
            continue
        query, above, total = hedgehog(e.q[b, i, h] @ e.params["W_q"][h]), np.zeros(width), 0.0
        tokens = np.flatnonzero(e.valid[b])
        if e.causal:
            tokens = tokens[tokens <= i]
        for j in tokens:
            weight = query @ hedgehog(e.k[b, j, h] @ e.params["W_k"][h])
            above, total = above + weight * e.v[b, j, h], total + weight
        out[b, i, h] = above / total
    return out


WINDOW_LINEAR = "Zhang et al. 2024 (LoLCATs), the hybrid with a sliding window, token by token"


@oracle(
    "window_linear",
    "window_linear(window=2, features=3)",
    params={"W_q": (2, 3, 3), "W_k": (2, 3, 3), "window": (2,)},
    scale=1.0,
    sizes=SMALL,
    by=WINDOW_LINEAR,
    **BY,
)
@oracle(
    "window_linear_causal",
    "window_linear(window=2, features=3)",
    causal=True,
    params={"W_q": (2, 3, 3), "W_k": (2, 3, 3), "window": (2,)},
    scale=1.0,
    sizes=SMALL,
    by=WINDOW_LINEAR,
    **BY,
)
def window_linear(e: Example) -> np.ndarray:
    """With c_i = log sum exp of the scores in the window, so that it weighs g in all."""
    (batch, length, heads, width), out = e.q.shape, np.zeros_like(e.v)
    for b, h, i in np.ndindex(batch, heads, length):
        if not e.valid[b, i]:
            continue
        tokens = np.flatnonzero(e.valid[b])
        if e.causal:
            tokens = tokens[tokens <= i]
        near = [j for j in tokens if abs(i - j) <= 2]
        s = np.array([e.q[b, i, h] @ e.k[b, j, h] / np.sqrt(width) for j in near])
        c = np.log(np.exp(s).sum())
        g = 1 / (1 + np.exp(-e.params["window"][h]))
        above, total = np.zeros(width), 0.0
        for j in tokens:
            if j in near:
                weight = g * np.exp(s[near.index(j)] - c)
            else:
                query = hedgehog(e.q[b, i, h] @ e.params["W_q"][h])
                weight = query @ hedgehog(e.k[b, j, h] @ e.params["W_k"][h])
            above, total = above + weight * e.v[b, j, h], total + weight
        out[b, i, h] = above / total
    return out


def hedgehog(x: np.ndarray) -> np.ndarray:
    """[softmax(x), softmax(-x)]."""
    return np.concatenate([np.exp(y) / np.exp(y).sum() for y in (x, -x)])


COSFORMER = "Qin et al. 2022, section 3, the re-weighting by a cosine, as a dense matrix"


@oracle("cosformer", "cosformer", by=COSFORMER, sizes=SMALL, **BY)
@oracle("cosformer_causal", "cosformer", causal=True, by=COSFORMER, sizes=SMALL, **BY)
def cosformer(e: Example) -> np.ndarray:
    """M is the number of tokens from the first valid one of an example to the last."""
    return cosine(
        e, np.array([np.ptp(np.flatnonzero(v)) + 1 for v in e.valid])[:, None, None, None]
    )


@oracle(
    "cosformer_horizon_causal",
    "cosformer(horizon=20)",
    causal=True,
    by=COSFORMER,
    sizes=SMALL,
    **BY,
)
def cosformer_horizon(e: Example) -> np.ndarray:
    """M is given."""
    return cosine(e, 20)


def cosine(e: Example, m: Any) -> np.ndarray:
    """s(q_i, k_j) = relu(q_i) . relu(k_j) cos(pi / 2 (i - j) / M), over its sum; zero where that
    is."""
    i, j = places(e)
    similar = np.einsum("bnhd,bkhd->bhnk", np.maximum(e.q, 0), np.maximum(e.k, 0)) * seen(e)
    similar = similar * np.cos(np.pi * (i - j) / (2 * m))
    total = similar.sum(-1, keepdims=True)
    return times(similar / np.where(total == 0, 1, total), e.v)


NONE = (-1, -1)
GRAPH = np.array(
    [[NONE, NONE, NONE, (1, -1), (2, 1), (1, 3)], [NONE, NONE, NONE, (1, -1), (2, 1), (3, 2)]]
)
"""Of 2 heads and 6 blocks: what a block sees besides the first, itself and the one before."""


@oracle(
    "bigbird_causal",
    "bigbird(block=4, randoms=2, globals=1)",
    causal=True,
    given={"random_blocks": GRAPH[None]},
    by="Zaheer et al. 2020, section 2, as a dense mask, without what is later",
    **BY,
)
def bigbird(e: Example) -> np.ndarray:
    """22 tokens: the last block is short."""
    i, j = places(e)
    drawn = e.given["random_blocks"][0][:, i[:, 0] // 4]  # [H, N, randoms]
    seen_blocks = (drawn[:, :, None, :] == (j[0] // 4)[:, None]).any(-1)  # [H, N, N]
    near = np.isin(i // 4 - j // 4, (0, 1)) | (j // 4 == 0)
    return times(softmax(scores(e), seen(e) & (near | seen_blocks)), e.v)


SYNTHESIZER = "Tay et al. 2020 (Synthesizer), section 3.1"
DENSE = {"W1": (2, 6, 3), "W2": (2, 3, 12)}
FACTORS = {"R1": (2, 12, 2), "R2": (2, 12, 2)}


@oracle(
    "synthesizer_dense",
    "synthesizer(mode='dense', rank=3)",
    params=DENSE,
    scale=1.0,
    sizes=SMALL,
    by=SYNTHESIZER,
    **BY,
)
@oracle(
    "synthesizer_dense_causal",
    "synthesizer(mode='dense', rank=3)",
    params=DENSE,
    scale=1.0,
    sizes=SMALL,
    causal=True,
    by=SYNTHESIZER,
    **BY,
)
@oracle(
    "synthesizer_random",
    "synthesizer(mode='random')",
    params={"R": (2, 12, 12)},
    scale=1.0,
    sizes=SMALL,
    by=SYNTHESIZER,
    **BY,
)
@oracle(
    "synthesizer_random_causal",
    "synthesizer(mode='random')",
    params={"R": (2, 12, 12)},
    scale=1.0,
    sizes=SMALL,
    causal=True,
    by=SYNTHESIZER,
    **BY,
)
@oracle(
    "synthesizer_factorised",
    "synthesizer(mode='factorised', rank=2)",
    params=FACTORS,
    scale=1.0,
    sizes=SMALL,
    by=SYNTHESIZER,
    **BY,
)
@oracle(
    "synthesizer_factorised_causal",
    "synthesizer(mode='factorised', rank=2)",
    params=FACTORS,
    scale=1.0,
    sizes=SMALL,
    causal=True,
    by=SYNTHESIZER,
    **BY,
)
def synthesizer(e: Example) -> np.ndarray:
    """Built for 12 tokens and given 11. softmax(S) v with S of the token (3.1.1), free (3.1.2), or
    R1 R2^T (3.1.4)."""
    length = e.v.shape[1]
    if "W1" in e.params:
        hidden = np.maximum(np.einsum("bne,hem->bhnm", e.x, e.params["W1"]), 0)
        s = np.einsum("bhnm,hmk->bhnk", hidden, e.params["W2"][:, :, :length])
    elif "R" in e.params:
        s = e.params["R"][None, :, :length, :length]
    else:
        s = np.einsum("hnm,hkm->hnk", e.params["R1"][:, :length], e.params["R2"][:, :length])[None]
    return times(softmax(np.repeat(s, len(e.v) // len(s), 0), seen(e)), e.v)


@oracle(
    "sinkhorn_padded",
    "sinkhorn(block=4, iterations=5, temperature=0.7)",
    params={"W": (2, 6, 4)},
    scale=0.2,
    sizes=(3, 14, 2, 3, 6),
    invalid=[(), (11, 12, 13), (0, 1, 2, 3, 5, 8)],
    by="Tay et al. 2020 (Sinkhorn), section 3, token by token",
    **BY,
)
def sinkhorn(e: Example) -> np.ndarray:
    """What sinkhorn-transformer has no answer for: blocks that are padded in part, and one in front
    that is padding.

    14 tokens: the last block is short. A sorted slot is made of the tokens that are valid, as if R
    were theirs alone: its row keeps its sum, which is one but for the last few iterations. Its
    weight in the softmax is their share of R."""
    (batch, length, heads, _), out = e.q.shape, np.zeros_like(e.v)
    blocks = [np.arange(start, min(start + 4, length)) for start in range(0, length, 4)]
    for b, h in np.ndindex(batch, heads):
        q, k, v, valid = e.q[b, :, h], e.k[b, :, h], e.v[b, :, h], e.valid[b]
        sums = np.array([np.concatenate([x[t][valid[t]].sum(0) for x in (q, k)]) for t in blocks])
        some = np.array([valid[t].any() for t in blocks])
        r = np.exp(sums @ e.params["W"][h][:, : len(blocks)] / 0.7) * some[:, None] * some
        for _ in range(5):
            for axis in (1, 0):
                total = r.sum(axis, keepdims=True)
                r = r / np.where(total == 0, 1, total)
        for u, tokens in enumerate(blocks):
            keys, values, sizes = [], [], []
            for t in tokens[valid[tokens]]:
                keys.append(k[t]), values.append(v[t]), sizes.append(1.0)
            for slot in range(4):
                made_of = [
                    (r[u, w], t[slot])
                    for w, t in enumerate(blocks)
                    if slot < len(t) and valid[t[slot]]
                ]
                weight = sum(w for w, _ in made_of)
                if weight > 0:
                    share = weight / r[u].sum()
                    keys.append(sum(w * k[t] for w, t in made_of) / share)
                    values.append(sum(w * v[t] for w, t in made_of) / share)
                    sizes.append(share)
            for i in tokens[valid[tokens]]:
                weights = np.array(sizes) * np.exp(np.array(keys) @ q[i] / np.sqrt(len(q[i])))
                out[b, i, h] = weights @ np.array(values) / weights.sum()
    return out


@oracle(
    "reformer_causal",
    "reformer(buckets=4, hashes=2, chunk=2)",
    causal=True,
    sizes=(3, 14, 2, 3, 6),
    given={"rotations": np.random.default_rng(5).standard_normal((2, 2, 3, 2))},
    by="Kitaev et al. 2020, equations 4 to 7, over the two tokens of a bucket before each, token by token",
    **BY,
)
def reformer(e: Example) -> np.ndarray:
    """Its own code cuts chunks of all tokens, so that later ones change what earlier ones see: it
    is not causal."""
    out = np.zeros_like(e.v)
    for b, h in np.ndindex(len(e.q), e.q.shape[2]):
        q, v = e.q[b, :, h], e.v[b, :, h]
        for i in np.flatnonzero(e.valid[b]):
            values, sizes = [], []
            for r in e.given["rotations"][h]:
                buckets = np.argmax(np.concatenate([q @ r, -q @ r], -1), -1)
                before = [j for j in range(i) if e.valid[b, j] and buckets[j] == buckets[i]]
                for j in before[-2:]:
                    values.append(v[j])
                    sizes.append(np.exp(q[i] @ q[j] / np.linalg.norm(q[j]) / np.sqrt(len(q[i]))))
            out[b, i, h] = np.array(sizes) @ np.array(values) / sum(sizes) if sizes else v[i]
    return out
