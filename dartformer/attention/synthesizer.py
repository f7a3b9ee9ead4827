"""Synthesizer: weights that do not compare tokens, from one token alone or free of the input."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import (
    POSITIONS,
    Cache,
    Cost,
    FieldTraits,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    fits,
    kv_cache_bytes,
    layer_input,
    positive,
    zero_invalid,
)
from dartformer.attention.decoding import (
    EVERYTHING,
    Tokens,
    accept_cache,
    accept_prefill,
    accept_room,
    in_order,
    in_place,
    repeated,
)
from dartformer.errors import InputError
from dartformer.kernels.cached import grouped_values, row_bias, visible, write
from dartformer.kernels.chunked import TILE, chunked_attention
from dartformer.kernels.flash import portable
from dartformer.kernels.softmax import (
    dense_allowed,
    distance_bias,
    masked_softmax,
    softmax_values,
    wide,
)
from dartformer.kernels.target import here

MODES = ("dense", "random", "factorised")
_MODES = ", ".join(repr(mode) for mode in MODES)


@dataclass(frozen=True, repr=False)
class Synthesizer(Spelled):
    """Weights without dot products: y_i = sum_j softmax_j(S_ij) v_j.

    Paper: Tay et al. 2020, arXiv:2005.00743, section 3.1. mode "dense": S_i = W2^T relu(W1^T x_i),
      from token i alone; "random": S = R, free parameters; "factorised": S = R1 R2^T, free and of
      that `rank` (3.1.4).
    Own parameters: "dense" W1 `[H, E, rank]` and W2 `[H, rank, N_max]`; "random" R `[H, N_max,
      N_max]`; "factorised" R1 and R2 `[H, N_max, rank]`.
    Cost: O(N^2 (D + rank)) time. "dense" takes O(N) memory beyond a tile's length, as full
      attention, and "factorised" on accelerators; O(N^2) otherwise.
    Masks: invalid keys are left out of the softmax; causal leaves out j > i. A query that sees no
      key gives zero.
    Deviations: no biases; R is always trained (the paper also fixes it). Inputs shorter than N_max
      use the first rows and columns; longer ones are refused. ALiBi, which is not in the paper, is
      added to S.

    Attributes:
      mode: "dense", "random" or "factorised".
      rank: width of the hidden layer or of the factors, at least 1; None: D in "dense", 8 in
        "factorised". "random" has none.
    """

    mode: Literal["dense", "random", "factorised"] = "dense"
    rank: int | None = None

    traits: ClassVar[FieldTraits] = FieldTraits(
        Traits(
            summary="softmax of learned scores that compare no tokens",
            paper="Tay et al. 2020, arXiv:2005.00743",
            causal=True,
            reads=frozenset("vx"),
            fixed_length=True,
            growth=2.0,
            decodes=True,
            positions=POSITIONS,
            dropout="weights",
        ),
        lambda synthesizer: synthesizer.mode_traits(),
    )

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(f"synthesizer: mode must be one of {_MODES}, got {self.mode!r}.")
        if self.rank is None:
            return
        if self.mode == "random":
            raise InputError(
                f"synthesizer: rank does not work with mode 'random', which has no rank; "
                f"got rank={self.rank!r}. Leave it out."
            )
        positive(self, rank=self.rank)

    def mode_traits(self) -> Traits:
        """The traits of the mode: only "dense" reads the layer's input."""
        traits = type(self).traits
        if self.mode == "dense":
            return traits
        return dataclasses.replace(traits, reads=frozenset("v"))

    def _width(self, shape: Shape) -> int:
        """The rank in force."""
        if self.rank is not None:
            return self.rank
        if self.mode == "dense":
            return shape.head_dim
        return 8

    def _sizes(self, shape: Shape) -> dict[str, tuple[tuple[int, int], float]]:
        """Shape of each parameter of one head, and the standard deviation it begins with.

        Scores then begin near 1.
        """
        longest, width = shape.length, self._width(shape)
        if self.mode == "dense":
            return {
                "W1": ((shape.model_dim, width), shape.model_dim**-0.5),
                "W2": ((width, longest), width**-0.5),
            }
        if self.mode == "random":
            return {"R": ((longest, longest), 1.0)}
        factor = ((longest, width), width**-0.25)
        return {"R1": factor, "R2": factor}

    def init(self, key: Array, shape: Shape) -> Params:
        """The parameters of the mode, each head from a key of its own."""
        sizes = self._sizes(shape)

        def one_head(key: Array) -> Params:
            params = {}
            keys = jax.random.split(key, len(sizes))
            for k, (name, (size, deviation)) in zip(keys, sizes.items(), strict=True):
                params[name] = jax.random.normal(k, size) * deviation
            return params

        return jax.vmap(one_head)(jax.random.split(key, shape.heads))

    def _scores(self, params: Params, inputs: Inputs, causal: bool) -> Array:
        """S `[B or 1, H, N, N]` in float32 or wider; refuses what it does not support."""
        accept(self, inputs, causal=causal)
        length = inputs.v.shape[1]
        if self.mode == "random":
            fits(self, length, params["R"].shape[1])
            scores = params["R"][None, :, :length, :length]  # [1, H, N, N]: of no example
        else:
            rows, columns = self._factors(params, inputs)
            scores = jnp.einsum("bhnm,hmk->bhnk", rows, columns)
        position = jnp.arange(length)
        distance = position - position[:, None]
        return distance_bias(scores.astype(wide(scores)), inputs.slopes, distance)

    def _factors(self, params: Params, inputs: Inputs) -> tuple[Array, Array]:
        """S as a product: rows `[B or 1, H, N, rank]` times columns `[H, rank, N]`."""
        length = inputs.v.shape[1]
        if self.mode == "dense":
            # S_i = W2^T relu(W1^T x_i)
            fits(self, length, params["W2"].shape[-1])
            projected = jnp.einsum("bne,hem->bhnm", layer_input(self, inputs), params["W1"])
            return jax.nn.relu(projected), params["W2"][..., :length]
        # S = R1 R2^T
        fits(self, length, params["R1"].shape[1])
        return params["R1"][None, :, :length], params["R2"][:, :length].swapaxes(1, 2)

    def _tiled(self, inputs: Inputs) -> bool:
        """Whether scores are made for a tile of queries at a time, and again when needed."""
        if self.mode == "random" or portable("auto", inputs.v.shape[1]) != "chunked":
            return False
        # Scores that are the same in all examples would be made for each of them, which pays on a
        # CPU only for long inputs.
        return self.mode == "dense" or (inputs.target or here()).accelerated

    def _in_tiles(
        self, params: Params, inputs: Inputs, causal: bool, dropout: float, key: Array | None
    ) -> Array:
        """The output as attention whose queries and keys are the factors of S."""
        accept(self, inputs, causal=causal)
        rows, columns = self._factors(params, inputs)
        batch, length, heads, _ = inputs.v.shape
        size = (batch, length, heads, rows.shape[-1])
        out = chunked_attention(
            jnp.broadcast_to(rows.transpose(0, 2, 1, 3), size),
            jnp.broadcast_to(columns.transpose(2, 0, 1), size),
            inputs.v,
            causal=causal,
            valid=inputs.valid,
            slopes=inputs.slopes,
            dropout=dropout,
            key=key,
            scale=1.0,
            target=inputs.target,
        )
        return zero_invalid(out, inputs.mask)

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
        if self._tiled(inputs):
            return self._in_tiles(params, inputs, causal, inputs.rate(train), key)
        scores = self._scores(params, inputs, causal)
        allowed = dense_allowed(scores.shape[-1], causal=causal, valid=inputs.valid)
        out = softmax_values(scores, allowed, inputs.v, dropout=inputs.rate(train), key=key)
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores, `[B, H, N, N]`."""
        scores = self._scores(params, inputs, causal)
        allowed = dense_allowed(scores.shape[-1], causal=causal, valid=inputs.valid)
        rows = masked_softmax(scores, allowed)
        return rows * inputs.mask[:, None, :, None]

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """Values alone, `[B, heads of them, N, D]`: no key is compared."""
        size = (shape.batch, shape.kept_heads, shape.length, shape.head_dim)
        return {"v": jnp.zeros(size, dtype)}

    def prefill(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `Decoder`."""
        accept_prefill(self, inputs)
        tokens = in_order(inputs)
        out = self(params, repeated(tokens.inputs), causal=True)
        return in_place(out, tokens, inputs), self._with_values(tokens, cache)

    def step(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """See `Decoder`."""
        accept(self, inputs, causal=True)
        tokens = in_order(inputs)
        cache = self._with_values(tokens, cache)
        new, v = tokens.new, cache["v"]
        scores = self._rows(params, tokens, v.shape[2])
        position = EVERYTHING.held(new.stop, v.shape[2])
        distance = position[:, None, None] - new.position[:, None, :, None]
        scores = row_bias(scores.astype(wide(scores)), inputs.slopes, distance)
        rows = masked_softmax(scores, visible(new, position, position >= 0))
        out = grouped_values(rows, v, inputs.groups)
        return in_place(out, tokens, inputs), cache

    def _with_values(self, tokens: Tokens, cache: Cache) -> Cache:
        """The cached values with those of the new tokens."""
        v = tokens.inputs.v
        expected = (v.shape[0], v.shape[2], -1, v.shape[3])
        accept_cache(self, cache, {"v": expected})
        accept_room(self, tokens.inputs, cache["v"].shape[2])
        return {"v": write(cache["v"], v, tokens.new, EVERYTHING)}

    def _rows(self, params: Params, tokens: Tokens, keys: int) -> Array:
        """The rows of S of the new tokens, `[B, H, T, keys]`."""
        position = tokens.new.position
        if self.mode == "dense":
            fits(self, keys, params["W2"].shape[-1])
            x = layer_input(self, tokens.inputs)
            hidden = jax.nn.relu(jnp.einsum("bne,hem->bhnm", x, params["W1"]))
            return jnp.einsum("bhnm,hmk->bhnk", hidden, params["W2"][..., :keys])
        if self.mode == "random":
            fits(self, keys, params["R"].shape[1])
            return params["R"][:, position, :keys].swapaxes(0, 1)  # from [H, B, T, keys]
        fits(self, keys, params["R1"].shape[1])
        rows = params["R1"][:, position]  # [H, B, T, rank]
        return jnp.einsum("hbnm,hkm->bhnk", rows, params["R2"][:, :keys])

    def cost(self, shape: Shape) -> Cost:
        """The scores, 5 operations for each in the softmax, and their product with v."""
        pairs = shape.heads * shape.length**2
        width = self._width(shape)
        hidden = 0
        scores = 0  # operations to make them
        if self.mode == "dense":
            hidden = shape.batch * shape.heads * shape.length * width
            scores = 2 * shape.batch * pairs * width + hidden * (2 * shape.model_dim + 1)
        elif self.mode == "factorised":
            scores = 2 * pairs * width
        parameters = 0
        for (rows, columns), _ in self._sizes(shape).values():
            parameters += rows * columns
        kept = 2 * shape.batch * pairs
        if self.mode == "dense" and portable("auto", shape.length) == "chunked":
            kept = kept // shape.length * TILE  # scores of one tile of queries at a time
        return Cost(
            flops=scores + shape.batch * pairs * (2 * shape.head_dim + 5),
            parameters=shape.heads * parameters,
            activation_bytes=(kept + hidden) * shape.wide_itemsize,
            # Values alone: no key is compared.
            state_bytes=kv_cache_bytes(shape, shape.length) // 2,
        )
