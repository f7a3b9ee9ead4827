"""Sinkhorn attention: each block sees itself, and a block made of all blocks by a learned, soft
permutation."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.attention.base import (
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    fits,
    positive,
    zero_invalid,
)
from dartformer.errors import InputError
from dartformer.kernels.sinkhorn import sinkhorn
from dartformer.kernels.softmax import joint_exponentials, wide
from dartformer.kernels.tiles import Keys, attend, existing, tile, untile

LEAST = 1e-6
"""A sorted place whose tokens have no more of its row than that is empty: float32 could not tell
them from none."""


@dataclass(frozen=True, repr=False)
class Sinkhorn(Spelled):
    """Softmax over the own block and a sorted one: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j,
    j in both, jointly.

    Of blocks u of b tokens, that of query block t is sorted to k'_{t,s} = sum_u R_tu k_{u,s} in
    places s = 1 .. b, v' likewise, with R = S(W^T [sum_s q_{u,s}; sum_s k_{u,s}] / temperature) and
    S Sinkhorn's normalisation.

    Paper: Tay et al. 2020 (Sparse Sinkhorn Attention), arXiv:2002.11296, sections 3.1 and 3.2. Own
    parameters: W of the sort net, `[H, 2 D, N_max / b]`. Cost: O(N b D + (N / b)^2 b D) time, O(N b
    + (N / b)^2) memory: less than N^2 by a factor of b at least, and quadratic in the end. Masks:
    sums, R and sorted places are of valid tokens alone. A place is made of the valid tokens there,
    as if all of R were theirs, and weighs their share of R in the softmax; a place whose share is a
    millionth or less is empty. Blocks of padding are no blocks. Not causal: sums are of whole
    blocks. Deviations: the sort net is one linear map, and reads queries and keys, as it cannot
    read what they were made of. No Gumbel noise. R ends with columns that sum to one; rows do so
    after many iterations. Inputs of more blocks than W has columns are refused; fewer use the
    first.

    Attributes:
      block: b, tokens in a block.
      iterations: of rows and columns, at least 1.
      temperature: above 0; low for a hard permutation.
    """

    block: int = 16
    iterations: int = 5
    temperature: float = 0.75

    traits: ClassVar[Traits] = Traits(
        summary="softmax over a block and a softly sorted one",
        paper="Tay et al. 2020, arXiv:2002.11296",
        causal=False,
        fixed_length=True,
        growth=2.0,
        dropout="slots",
    )

    def __post_init__(self) -> None:
        positive(self, block=self.block, iterations=self.iterations)
        if type(self.temperature) not in (int, float) or not 0 < self.temperature < float("inf"):
            raise InputError(
                f"sinkhorn: temperature must be a number above 0, got {self.temperature!r}."
            )

    def init(self, key: Array, shape: Shape) -> Params:
        """W `[H, 2 D, ceil(N_max / b)]`, of variance 1 / (2 D b), so that scores of the sort net
        begin near 1."""
        fan_in = 2 * shape.head_dim
        size = (shape.heads, fan_in, -(-shape.length // self.block))
        return {"W": jax.random.normal(key, size) * (fan_in * self.block) ** -0.5}

    def _sorting(
        self, params: Params, inputs: Inputs, causal: bool
    ) -> tuple[Array, Array, Array, Array, Array | None]:
        """q, k, v in tiles `[B, H, T, b, D]`, zero where there is no token; R `[B, H, T, T]`; the
        share of each place.

        The share, `[B, H, T, b]`, is the part of R's row that is valid tokens; None where no block
        has a token missing."""
        accept(self, inputs, causal=causal)
        length = inputs.q.shape[1]
        fits(self, length, params["W"].shape[-1] * self.block)
        q, k, v = (
            tile(zero_invalid(x, inputs.mask), self.block) for x in (inputs.q, inputs.k, inputs.v)
        )
        exists: Any = existing(length, self.block, inputs.valid)  # [B or 1, T, b]
        dtype = wide(q, k, params["W"])
        sums = jnp.concatenate([x.sum(3, dtype=dtype) for x in (q, k)], axis=-1)
        scores = (
            jnp.einsum("bhte,heu->bhtu", sums, params["W"][..., : q.shape[2]]) / self.temperature
        )
        keep = None
        if inputs.valid is not None:
            some = exists.any(-1)[:, None]
            keep = jnp.asarray(some[..., None] & some[..., None, :])
        r = sinkhorn(scores, self.iterations, keep)
        if isinstance(exists, np.ndarray) and exists.all():
            return q, k, v, r, None
        total = r.sum(-1)[..., None]
        share = jnp.einsum(
            "bhtu,bus->bhts",
            r,
            jnp.broadcast_to(exists, (r.shape[0], *exists.shape[1:])).astype(dtype),
        )
        return q, k, v, r, share / jnp.where(total == 0, 1, total)

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
        q, k, v, r, share = self._sorting(params, inputs, causal)
        both = jnp.concatenate([k, v], axis=-1).astype(wide(r, k, v))
        both = (r @ both.reshape(*both.shape[:3], -1)).reshape(
            both.shape
        )  # one product of plain matrices
        sorted_k, sorted_v = jnp.split(both, [k.shape[-1]], axis=-1)
        own, there, bias = None, None, None
        if share is not None:
            exists: Any = existing(inputs.q.shape[1], self.block, inputs.valid)
            own, there = exists[:, None, :, None, :], (share > LEAST)[..., None, :]
            held = jnp.where(share > LEAST, share, 1)[..., None]
            sorted_k, sorted_v, bias = (
                sorted_k / held,
                sorted_v / held,
                jnp.log(held.swapaxes(-1, -2)),
            )
        sets = [
            Keys(k, v, np.zeros(1), own),
            Keys(sorted_k, sorted_v, np.zeros(1), there, bias=bias),
        ]
        out = untile(attend(q, sets, dropout=inputs.rate(train), key=key), inputs.q.shape[1])
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """Weights of own tokens, and those of places handed on to the tokens they are made of, `[B,
        H, N, N]`."""
        q, k, _, r, share = self._sorting(params, inputs, causal)
        length, scale = inputs.q.shape[1], q.shape[-1] ** -0.5
        tiles = r.shape[-1]
        exists = jnp.broadcast_to(
            existing(length, self.block, inputs.valid), (q.shape[0], tiles, self.block)
        )
        share = jnp.ones((1, 1, *exists.shape[1:])) if share is None else share
        there = share > LEAST
        held = jnp.where(there, share, 1)
        # What each place is made of: [B, H, T, place, U, b], zero but where the token's place is
        # the same.
        made_of = jnp.einsum("bhtu,bus,sp->bhtpus", r, exists.astype(r.dtype), jnp.eye(self.block))
        made_of = made_of / held[..., None, None]
        places = jnp.einsum("bhtqd,bhtpus,bhusd->bhtqp", q, made_of, k) * scale
        near = jnp.einsum("bhtqd,bhtsd->bhtqs", q, k) * scale
        (own, other), total = joint_exponentials(
            [near, places + jnp.log(held)[..., None, :]],
            [exists[:, None, :, None, :], there[..., None, :]],
        )
        rows = jnp.einsum("bhtqp,bhtpus->bhtqus", other, made_of)
        rows = (rows + jnp.einsum("bhtqs,tu->bhtqus", own, jnp.eye(tiles))) / total[..., None]
        rows = rows.reshape(*r.shape[:2], tiles * self.block, tiles * self.block)[
            :, :, :length, :length
        ]
        return rows * inputs.mask[:, None, :, None]

    def cost(self, shape: Shape) -> Cost:
        """Softmax over two blocks for each query, the sort net, its normalisation, and two
        sorts."""
        heads, tiles = shape.batch * shape.heads, -(-shape.length // self.block)
        scores, pairs = tiles * 2 * self.block**2, tiles**2
        numbers = tiles * self.block * shape.head_dim
        return Cost(
            flops=heads
            * (
                scores * (4 * shape.head_dim + 6)
                + 2 * numbers
                + pairs * (4 * shape.head_dim * (self.block + 1) + 8 * self.iterations + 2)
            ),
            parameters=shape.heads * 2 * shape.head_dim * tiles,
            activation_bytes=heads
            * (2 * scores + 2 * pairs + 2 * numbers)
            * max(4, shape.itemsize),
            state_bytes=0,
        )
