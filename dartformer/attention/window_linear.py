"""Softmax within a window and learned features for all other tokens, under one normaliser."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    Cache,
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    drop_values,
    kv_cache_bytes,
    not_negative,
    positive,
    zero_invalid,
)
from dartformer.attention.decoding import (
    KeepsKeys,
    Tokens,
    accept_cache,
    accept_keys,
    for_heads,
    in_order,
    in_place,
    seen_sets,
    state_array,
    written,
)
from dartformer.attention.linear import feature_matrices, learned_feature
from dartformer.attention.slices import by_heads
from dartformer.kernels.block_sparse import band_attention, band_layout
from dartformer.kernels.cached import Layout, Recent
from dartformer.kernels.linear_scan import Parts, Sums, linear_parts_from, no_sums_of, ratio
from dartformer.kernels.softmax import dense_allowed, dense_weights, wide
from dartformer.kernels.target import Target

SHARE = 0.1
"""g at the start: the window counts as much as far tokens whose features sum to a tenth."""


@dataclass(frozen=True, repr=False)
class WindowLinear(KeepsKeys, Spelled):
    """Window and features: y_i = (g sum_near p_ij v_j + sum_far f_ij v_j) / (g + sum_far f_ij).

    Near is |i - j| <= window, and p_ij = exp(q_i . k_j / sqrt(D) - c_i) with c_i = log sum_near
    exp(q_i . k_j / sqrt(D)). Far is everything else, and f_ij = phi_q(q_i) . phi_k(k_j) with
    phi(x) = [softmax(W x), softmax(-W x)]. g = sigmoid(b) is learned. Both sums share a normaliser.

    Paper: Zhang et al. 2024 (LoLCATs), arXiv:2410.10254; the features of Hedgehog
      (Zhang et al. 2024), arXiv:2402.04347.
    Own parameters: `W_q`, `W_k` `[H, D, features]`, `window` `[H]` (b).
    Cost: O(N (window + features) D) time, O(N (window + features)) memory; the features of both
      signs make a state of 2 features x D. Both ways the far part is computed twice.
    Masks: invalid keys are left out of the softmax, and their features are zero. Causal keeps
      j <= i: the far tokens are those before the window.
    Positions: with rotary ones q and k are turned before everything, as in the paper. The window
      then depends on distances alone, but the features also depend on where a token is.
    Decoding: a ring of the window's keys and values, and the sums over all tokens that have left it.
    Deviations: c_i is the logarithm of the sum, where the code of the paper has the maximum. Both
      keep what softmax ignores, a number added to all scores of a query, out of the ratio of the
      parts. The sum also has a gradient everywhere, and the window counts g however many tokens it
      has. W_q and W_k begin equal. The window counts the tokens before, so `window=63` is the
      paper's 64. It also runs both ways, which the paper does not.

    Attributes:
      window: one-sided and inclusive, in tokens; 0 lets softmax see the token itself only.
      features: rows of W, at least 1; None: as many as the head is wide.
    """

    window: int = 16
    features: int | None = None

    spelling: ClassVar[str] = "window_linear"

    traits: ClassVar[Traits] = Traits(
        summary="softmax over a sliding window and learned features of all other tokens",
        paper="Zhang et al. 2024, arXiv:2410.10254",
        causal=True,
        positions=frozenset({"rotary"}),
        decodes=True,
        dropout="values",
    )

    def __post_init__(self) -> None:
        not_negative(self, window=self.window)
        if self.features is not None:
            positive(self, features=self.features)

    def init(self, key: Array, shape: Shape) -> Params:
        """Random W, the same for queries and keys, and g = 0.1."""
        start = math.log(SHARE / (1 - SHARE))  # sigmoid(start) = SHARE
        return {
            **feature_matrices(key, shape, self.features),
            "window": jnp.full((shape.heads,), start),
        }

    def __call__(
        self,
        params: Params,
        inputs: Inputs,
        *,
        causal: bool = False,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """See `Attention`."""
        accept(self, inputs, causal=causal)

        def some(params: Params, inputs: Inputs, key: Array | None) -> Array:
            return self._attend(params, inputs, causal, drop_values(inputs, train, key))

        return by_heads(some, params, inputs, key)

    def _attend(self, params: Params, inputs: Inputs, causal: bool, v: Array) -> Array:
        """The output of all heads of `inputs` at once, for their values `[B, N, H, D]`."""
        dtype = wide(inputs.q, inputs.k, v)
        near = band_attention(
            inputs.q,
            inputs.k,
            v.astype(dtype),
            window=self.window,
            causal=causal,
            valid=inputs.valid,
            target=inputs.target,
        )
        # A window over all tokens leaves none to the features.
        if inputs.q.shape[1] > self.window + 1:
            phi_q, phi_k = self._features(params, inputs)
            far = self._before(phi_q, phi_k, v, inputs.valid, inputs.target)
            if not causal:
                after = self._after(phi_q, phi_k, v, inputs.valid, inputs.target)
                far = Parts(*map(jnp.add, far, after))
            near = self._joined(params, near, far)
        return zero_invalid(near.astype(inputs.v.dtype), inputs.mask)

    def _features(self, params: Params, inputs: Inputs) -> tuple[Array, Array]:
        """phi_q(q) and phi_k(k), `[B, N, H, 2 features]`."""
        return learned_feature(inputs.q, params["W_q"]), learned_feature(inputs.k, params["W_k"])

    def _before(
        self, phi_q: Array, phi_k: Array, v: Array, valid: Array | None, target: Target | None
    ) -> Parts:
        """What queries read of the tokens before their windows.

        That is causal linear attention to keys that come window + 1 tokens late.
        """
        late = self.window + 1
        exists = _late(jnp.ones(v.shape[:2], bool), late)
        if valid is not None:
            exists = _late(valid, late)
        phi_k, v = _late(phi_k, late), _late(v, late)
        return linear_parts_from(
            no_sums_of(phi_k, v), phi_q, phi_k, v, valid=exists, target=target
        )[0]

    def _after(
        self, phi_q: Array, phi_k: Array, v: Array, valid: Array | None, target: Target | None
    ) -> Parts:
        """What queries read of the tokens behind their windows: `_before` of the reversed text."""
        turned = valid
        if valid is not None:
            turned = jnp.flip(valid, 1)
        arrays = (jnp.flip(phi_q, 1), jnp.flip(phi_k, 1), jnp.flip(v, 1))
        far = self._before(*arrays, turned, target)
        return Parts(jnp.flip(far.numerator, 1), jnp.flip(far.denominator, 1))

    def _joined(self, params: Params, near: Array, far: Parts) -> Array:
        """The mean of the window `[B, N, H, D]` and the far tokens, under one normaliser."""
        g = jax.nn.sigmoid(params["window"].astype(near.dtype))[:, None]  # [H, 1]
        return ratio(g * near + far.numerator, g + far.denominator)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """(g p_ij + f_ij) / (g + sum_j f_ij), `[B, H, N, N]`."""
        position = jnp.arange(inputs.q.shape[1])
        near = abs(position[:, None] - position) <= self.window
        rows = dense_weights(inputs.q, inputs.k, near, causal=causal, valid=inputs.valid)
        phi_q, phi_k = self._features(params, inputs)
        far = jnp.einsum("bnhm,bkhm->bhnk", phi_q, phi_k)
        allowed = dense_allowed(len(position), causal=causal, valid=inputs.valid)
        outside = ~near
        if allowed is not None:
            outside = outside & allowed
        far = jnp.where(outside, far, 0)
        g = jax.nn.sigmoid(params["window"].astype(rows.dtype))[:, None, None]  # [H, 1, 1]
        joint = ratio(g * rows + far, g + far.sum(-1, keepdims=True))
        return joint * inputs.mask[:, None, :, None]

    def kept(self) -> Layout:
        """The window, with the token itself."""
        return Recent(last=self.window + 1)

    def sees(self, inputs: Inputs, query: Array, key: Array) -> Array:
        """Keys of the window."""
        return key >= query - self.window

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """Keys and values of the window, and the sums over all tokens before it.

        The sums are `[B, H, 2 features, D]` and `[B, H, 2 features, 1]`.
        """
        state = state_array(shape, 2 * self._width(shape), shape.head_dim, dtype)
        sums = Sums(state, state[..., :1])
        return {**KeepsKeys.init_cache(self, shape, dtype), **sums._asdict()}

    def prefill(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `Decoder`."""
        out, after = super().prefill(params, inputs, cache)
        _, sums = self._far_from(params, in_order(inputs), cache)
        return out, {**after, **sums._asdict()}

    def step(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `Decoder`."""
        accept(self, inputs, causal=True)
        accept_keys(self, inputs, cache)
        tokens = in_order(inputs)
        after = written(cache, tokens, self.kept())
        near = self.read(params, tokens, seen_sets(self, tokens, cache, after))
        far, sums = self._far_from(params, tokens, cache)
        out = self._joined(params, near, far)
        return in_place(out, tokens, inputs), {**after, **sums._asdict()}

    def _far_from(self, params: Params, tokens: Tokens, cache: Cache) -> tuple[Parts, Sums]:
        """What new tokens read of those before their windows, and the sums after them.

        Each new token pushes the one out of the window that is window + 1 before it. It reads that
        one too.
        """
        inputs, new = tokens.inputs, tokens.new
        batch, _, heads, width = inputs.q.shape
        rows = 2 * params["W_k"].shape[-1]
        sizes = {"state": (batch, heads, rows, width), "total": (batch, heads, rows, 1)}
        accept_cache(self, {name: cache.get(name) for name in sizes}, sizes)
        position = new.position - (self.window + 1)
        leaves = new.exists & (position >= 0)  # [B, T]
        k = self._leaving(cache["k"], inputs.k, tokens, position)
        v = self._leaving(cache["v"], inputs.v, tokens, position)
        return linear_parts_from(
            Sums(cache["state"], cache["total"]),
            learned_feature(inputs.q, params["W_q"]),
            learned_feature(k, params["W_k"]),
            v,
            valid=leaves,
            target=inputs.target,
        )

    def _leaving(self, ring: Array, x: Array, tokens: Tokens, position: Array) -> Array:
        """Of tokens that leave the window their keys or values, `[B, T, H, D]`.

        Args:
          ring: the cached ones, `[B, G, S, D]`.
          x: the new ones, `[B, T, G, D]`.
          tokens: the new tokens.
          position: of the leaving ones, `[B, T]`, below 0 for none.
        """
        start = tokens.new.start[:, None]
        slot = jnp.clip(self.kept().slot(position), 0, ring.shape[2] - 1)
        old = jnp.take_along_axis(ring.swapaxes(1, 2), slot[:, :, None, None], axis=1)
        # One token at a time never pushes itself out.
        if x.shape[1] > self.window + 1:
            place = jnp.maximum(position - start, 0)[:, :, None, None]
            fresh = jnp.take_along_axis(x, place, axis=1).astype(ring.dtype)
            old = jnp.where((position >= start)[:, :, None, None], fresh, old)
        return for_heads(old, tokens.inputs)

    def _width(self, shape: Shape) -> int:
        return self.features or shape.head_dim

    def cost(self, shape: Shape) -> Cost:
        """Softmax in the computed tiles as `local`, and linear attention of the other tokens."""
        heads = shape.batch * shape.heads
        tiles, block, span = band_layout(shape.length, self.window)
        scores = heads * tiles * block * span
        copies = heads * tiles * span * shape.head_dim
        features = 2 * self._width(shape)
        state = heads * features * (shape.head_dim + 1)
        tokens = 0
        if shape.length > self.window + 1:
            tokens = heads * shape.length
        far_flops = tokens * self._far_flops(shape)
        kept = kv_cache_bytes(shape, self.kept().slots(shape.length))
        wide_numbers = 2 * scores + 4 * tokens * features + state
        return Cost(
            # Two products; scale, mask, maximum, shift, exp and sum.
            flops=scores * (4 * shape.head_dim + 6) + far_flops,
            parameters=shape.heads * (shape.head_dim * features + 1),
            activation_bytes=wide_numbers * shape.wide_itemsize + 2 * copies * shape.itemsize,
            state_bytes=kept + state * shape.wide_itemsize,
        )

    def _far_flops(self, shape: Shape) -> float:
        """For a token of a head: features of its query and key, and both directions of the sums."""
        features = 2 * self._width(shape)
        chunk = min(64, shape.length)  # that of `linear_parts_from`
        # Products with W, and softmax of both signs.
        maps = 2 * features * (shape.head_dim + 8)
        # With the features and the values of the same chunk, and with the state before it.
        reads = 2 * chunk * (features + shape.head_dim) + 2 * features * (shape.head_dim + 1)
        if shape.length > chunk:  # another chunk follows, for which the state is made
            reads += 2 * features * (shape.head_dim + 1)
        return maps + 2 * reads


def _late(x: Array, tokens: int) -> Array:
    """x `[B, N, ...]` with each token so many places later, and zeros or False before the first."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (tokens, 0)
    return jnp.pad(x[:, :-tokens], padding)
