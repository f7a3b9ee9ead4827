"""Longformer: a sliding window, and first tokens that see everything by their own projections."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    POSITIONS,
    Cache,
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    kv_cache_bytes,
    layer_input,
    positive,
    zero_invalid,
)
from dartformer.attention.decoding import (
    EVERYTHING,
    KeepsKeys,
    Tokens,
    accept_cache,
    in_order,
    in_place,
)
from dartformer.kernels.block_sparse import band_attention, band_scores
from dartformer.kernels.cached import Held, Layout, Recent, cached_attention, visible, write
from dartformer.kernels.softmax import dense_weights, distance_bias, drop, exponentials, wide


@dataclass(frozen=True, repr=False)
class Longformer(KeepsKeys, Spelled):
    """Window and global tokens: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j.

    That is over |i - j| <= w or j < g, for i >= g. For the g global tokens, i < g:
    y_i = sum_j softmax_j(q'_i . k'_j / sqrt(D)) v'_j over all j, where q' = W_q x, k' = W_k x,
    v' = W_v x are projected apart from the q, k, v of the layer.

    Paper: Beltagy et al. 2020, arXiv:2004.05150, section 3.1.
    Own parameters: W_q, W_k, W_v of the global tokens, `[H, E, D]` each, applied to the layer's
      input x.
    Cost: O(N (w + g) D + N g E) time, O(N (w + g)) memory; no N x N array. The N keys and values
      k', v' are never made: W_k goes to the side of the g queries, and W_v behind their sum over
      tokens.
    Masks: invalid keys are left out of the softmax, and a global token that is padding is not seen;
      causal, which the paper has without global tokens only, leaves out j > i in both parts. A
      query that sees no key gives zero.
    Deviations: the first g tokens are global (the paper chooses by task, and for classification
      takes the CLS token, which is first). W_q, W_k, W_v start independently in each head, and not
      as copies of the layer's projections, which an attention does not own. No dilation. Rotary
      positions turn the layer's q and k only.

    Attributes:
      window: w, one-sided and inclusive, in tokens, at least 1; half of what other implementations
        call the window.
      globals: g, at least 1; with none it is `local`.
    """

    window: int = 16
    globals: int = 1

    traits: ClassVar[Traits] = Traits(
        summary="softmax over a sliding window and global tokens",
        paper="Beltagy et al. 2020, arXiv:2004.05150",
        causal=True,
        reads=frozenset("qkvx"),
        matrix=False,
        decodes=True,
        positions=POSITIONS,
        dropout="weights",
    )

    def __post_init__(self) -> None:
        positive(self, window=self.window, globals=self.globals)

    def init(self, key: Array, shape: Shape) -> Params:
        """W_q, W_k, W_v, `[H, E, D]`, of variance 1 / E, each head from a key of its own."""

        def one_head(key: Array) -> Params:
            size = (shape.model_dim, shape.head_dim)
            scale = shape.model_dim**-0.5
            q_key, k_key, v_key = jax.random.split(key, 3)
            return {
                "W_q": jax.random.normal(q_key, size) * scale,
                "W_k": jax.random.normal(k_key, size) * scale,
                "W_v": jax.random.normal(v_key, size) * scale,
            }

        return jax.vmap(one_head)(jax.random.split(key, shape.heads))

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
        # Two softmaxes, whose weights are dropped apart.
        band_key, first_key = _split(key)
        near = band_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            window=self.window,
            prefix=self.globals,
            causal=causal,
            valid=inputs.valid,
            slopes=inputs.slopes,
            dropout=inputs.rate(train),
            key=band_key,
            target=inputs.target,
        )
        out = self._global_rows(params, inputs, causal, inputs.rate(train), first_key)
        first = out.shape[1]
        return zero_invalid(jnp.concatenate([out, near[:, first:]], axis=1), inputs.mask)

    def _global_rows(
        self, params: Params, inputs: Inputs, causal: bool, dropout: float, key: Array | None
    ) -> Array:
        """The outputs of the global tokens, `[B, g, H, D]`."""
        x = layer_input(self, inputs)
        length = x.shape[1]
        first = min(self.globals, length)
        # q' . k'_j = (W_k^T q') . x_j: g queries are projected to E, and not N keys to D.
        q = jnp.einsum("bne,hed->bnhd", x[:, :first], params["W_q"])
        q = jnp.einsum("bnhd,hed->bhne", q, params["W_k"])  # [B, H, g, E]
        q = q * inputs.q.shape[-1] ** -0.5
        scores = jnp.einsum("bhne,bke->bhnk", q, x)
        distance = np.arange(length) - np.arange(first)[:, None]  # key minus query, [g, N]
        allowed = inputs.mask[:, None, None]
        if causal:
            allowed = allowed & (distance <= 0)
        scores = distance_bias(scores, inputs.slopes, distance)
        numerator, total = exponentials(scores, allowed)
        numerator = drop(numerator, dropout, key)
        # Likewise sum_j w_j v'_j = W_v^T sum_j w_j x_j.
        mean = jnp.einsum("bhnk,bke->bhne", numerator, x) / total  # [B, H, g, E]
        return jnp.einsum("bhne,hed->bnhd", mean, params["W_v"]).astype(inputs.v.dtype)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> None:
        """None: rows of global tokens weigh v', and the others v.

        `rows` gives both as one picture.
        """
        return None

    def rows(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """Each query's softmax over all tokens by definition, `[B, H, N, N]`.

        Rows i < g weigh v', other rows v.
        """
        position = jnp.arange(inputs.q.shape[1])
        pattern = (abs(position[:, None] - position) <= self.window) | (position < self.globals)
        near = dense_weights(
            inputs.q, inputs.k, pattern, causal=causal, valid=inputs.valid, slopes=inputs.slopes
        )
        q, k, _ = self._projected(params, inputs)
        first = dense_weights(q, k, None, causal=causal, valid=inputs.valid, slopes=inputs.slopes)
        return jnp.where(position[:, None] < self.globals, first, near)

    def reference(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The output by definition, in O(N^2), `[B, N, H, D]`."""
        rows = self.rows(params, inputs, causal=causal)
        _, _, v = self._projected(params, inputs)
        first = jnp.einsum("bhnk,bkhd->bnhd", rows, v)
        near = jnp.einsum("bhnk,bkhd->bnhd", rows, inputs.v)
        is_global = jnp.arange(rows.shape[2]) < self.globals
        return jnp.where(is_global[:, None, None], first, near)

    def _projected(self, params: Params, inputs: Inputs) -> tuple[Array, Array, Array]:
        """q', k', v' of all tokens, `[B, N, H, D]`."""
        x = layer_input(self, inputs)
        q = jnp.einsum("bne,hed->bnhd", x, params["W_q"])
        k = jnp.einsum("bne,hed->bnhd", x, params["W_k"])
        v = jnp.einsum("bne,hed->bnhd", x, params["W_v"])
        return q, k, v

    def kept(self) -> Layout:
        """The global tokens for good, and the window with the token itself."""
        return Recent(self.globals, self.window + 1)

    def sees(self, inputs: Inputs, query: Array, key: Array) -> Array:
        """Global tokens, and keys of the window."""
        return (key >= query - self.window) | (key < self.globals)

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """Keys and values, and the layer's input at the global tokens, `[B, 1, g, E]`."""
        size = (shape.batch, 1, min(self.globals, shape.length), shape.model_dim)
        return {**KeepsKeys.init_cache(self, shape, dtype), "x": jnp.zeros(size, dtype)}

    def prefill(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `Decoder`."""
        out, after = super().prefill(params, inputs, cache)
        return out, {**after, "x": self._first_inputs(in_order(inputs), cache)}

    def step(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `Decoder`."""
        near, after = super().step(params, inputs, cache)
        tokens = in_order(inputs)
        x = self._first_inputs(tokens, cache)
        is_global = tokens.new.position < self.globals  # [B, T]

        def with_global_rows() -> Array:
            rows = in_place(self._first_rows(params, tokens, x), tokens, inputs)
            chosen = in_place(is_global[:, :, None, None], tokens, inputs)
            return jnp.where(chosen != 0, rows, near)

        # Behind the first tokens, which is nearly always, W_q, W_k and W_v are not read.
        out = jax.lax.cond(is_global.any(), with_global_rows, lambda: near)
        return out, {**after, "x": x}

    def _first_inputs(self, tokens: Tokens, cache: Cache) -> Array:
        """The layer's input at the global tokens so far, `[B, 1, g, E]`."""
        x = layer_input(self, tokens.inputs)
        width = x.shape[-1]
        expected = (x.shape[0], 1, -1, width)
        accept_cache(self, {"x": cache.get("x")}, {"x": expected})
        return write(cache["x"], x[:, :, None], tokens.new, EVERYTHING)

    def _first_rows(self, params: Params, tokens: Tokens, x: Array) -> Array:
        """What the new tokens read as global ones, `[B, T, H, D]`, from `x` `[B, 1, g, E]`."""
        first = x[:, 0].astype(wide(x))
        inputs, new = tokens.inputs, tokens.new
        q = jnp.einsum("bne,hed->bnhd", layer_input(self, inputs), params["W_q"])
        k = jnp.einsum("bne,hed->bhnd", first, params["W_k"])
        v = jnp.einsum("bne,hed->bhnd", first, params["W_v"])
        position = EVERYTHING.held(new.stop, x.shape[2])
        held = Held(k, v, position, visible(new, position, position >= 0))
        return cached_attention(q, [held], new, slopes=inputs.slopes)

    def cost(self, shape: Shape) -> Cost:
        """As full attention, for the computed scores, and four products for the global tokens."""
        first = min(self.globals, shape.length)
        scores = band_scores(shape.length, self.window, self.globals)
        projection = shape.model_dim * shape.head_dim
        # Projections of the global queries and outputs, then two products of g x N x E.
        rows = first * (6 * projection + shape.length * (4 * shape.model_dim + 6))
        heads = shape.batch * shape.heads
        # Of the global tokens decoding keeps the layer's input too.
        inputs = shape.batch * first * shape.model_dim * shape.itemsize
        return Cost(
            flops=heads * (scores * (4 * shape.head_dim + 6) + rows),
            parameters=3 * shape.heads * projection,
            activation_bytes=2 * heads * (scores + first * shape.length) * shape.wide_itemsize,
            state_bytes=kv_cache_bytes(shape, self.kept().slots(shape.length)) + inputs,
        )


def _split(key: Array | None) -> tuple[Array | None, Array | None]:
    """Keys of the two parts: the band and the global tokens."""
    if key is None:
        return None, None
    band, first = jax.random.split(key)
    return band, first
