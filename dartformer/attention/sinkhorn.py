"""Sinkhorn attention: each block sees itself and one sorted from all by a soft permutation."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

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
from dartformer.attention.slices import by_heads
from dartformer.errors import InputError
from dartformer.kernels.sinkhorn import sinkhorn
from dartformer.kernels.softmax import joint_exponentials, wide
from dartformer.kernels.target import on_cpu
from dartformer.kernels.tiles import Keys, attend, existing, tile, untile

LEAST = 1e-6
"""The smallest share of a row that fills a sorted place.

A smaller one counts as empty, as float32 could not tell it from zero.
"""


class Sorting(NamedTuple):
    """Blocks and how they are sorted.

    Attributes:
      q, k, v: in tiles `[B, H, T, b, D]`, zero where there is no token.
      r: R, `[B, H, T, T]`.
      share: the part of R's row that is valid tokens, for each place, `[B, H, T, b]`; None where no
        block lacks a token.
    """

    q: Array
    k: Array
    v: Array
    r: Array
    share: Array | None


@dataclass(frozen=True, repr=False)
class Sinkhorn(Spelled):
    """Softmax over a block and a sorted one: y_i = sum_j softmax_j(q_i . k_j / sqrt(D)) v_j.

    j runs over the block of i and the sorted one, jointly. Of blocks u of b tokens, that of query
    block t is sorted to k'_{t,s} = sum_u R_tu k_{u,s} in places s = 1 .. b, and v' likewise. Here
    R = S(W^T [sum_s q_{u,s}; sum_s k_{u,s}] / temperature), with Sinkhorn's normalisation S.

    Paper: Tay et al. 2020 (Sparse Sinkhorn Attention), arXiv:2002.11296, sections 3.1 and 3.2.
    Own parameters: W of the sort net, `[H, 2 D, N_max / b]`.
    Cost: O(N b D + (N / b)^2 b D) time, O(N b + (N / b)^2) memory: less than N^2 by a factor of b
      at least, and quadratic in the end.
    Masks: sums, R and sorted places are of valid tokens alone. A place is made of the valid tokens
      there, as if all of R were theirs, and weighs their share of R in the softmax; a place whose
      share is a millionth or less is empty. Blocks of padding are no blocks. Not causal: sums are
      of whole blocks.
    Deviations: the sort net is one linear map, and reads queries and keys, as it cannot read what
      they were made of. No Gumbel noise. R ends with columns that sum to one; rows do so after many
      iterations. Inputs of more blocks than W has columns are refused; fewer use the first.

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
        """W `[H, 2 D, ceil(N_max / b)]`, of variance 1 / (2 D b).

        Scores of the sort net then begin near 1.
        """
        fan_in = 2 * shape.head_dim
        size = (shape.heads, fan_in, -(-shape.length // self.block))
        return {"W": jax.random.normal(key, size) * (fan_in * self.block) ** -0.5}

    def _sorting(self, params: Params, inputs: Inputs, causal: bool) -> Sorting:
        """The blocks and how they are sorted; raises `InputError` for a call out of range."""
        accept(self, inputs, causal=causal)
        length = inputs.q.shape[1]
        fits(self, length, params["W"].shape[-1] * self.block)
        q = tile(zero_invalid(inputs.q, inputs.mask), self.block)
        k = tile(zero_invalid(inputs.k, inputs.mask), self.block)
        v = tile(zero_invalid(inputs.v, inputs.mask), self.block)
        exists = existing(length, self.block, inputs.valid)  # [B or 1, T, b]
        dtype = wide(q, k, params["W"])
        # The sort net reads a block by the sums of its queries and keys, [B, H, T, 2 D].
        sums = jnp.concatenate([q.sum(3, dtype=dtype), k.sum(3, dtype=dtype)], axis=-1)
        columns = params["W"][..., : q.shape[2]]
        scores = jnp.einsum("bhte,heu->bhtu", sums, columns) / self.temperature
        keep = None
        if inputs.valid is not None:  # blocks of padding are no blocks
            filled = jnp.asarray(exists).any(-1)[:, None]
            keep = filled[..., None] & filled[..., None, :]
        r = sinkhorn(scores, self.iterations, keep)
        if isinstance(exists, np.ndarray) and exists.all():
            return Sorting(q, k, v, r, None)
        # How much of a sorted place comes from tokens that exist, [B, H, T, b]. Rows of R sum to
        # one only after infinitely many iterations.
        total = r.sum(-1)[..., None]
        members = jnp.broadcast_to(exists, (r.shape[0], *exists.shape[1:])).astype(dtype)
        share = jnp.einsum("bhtu,bus->bhts", r, members)
        return Sorting(q, k, v, r, share / jnp.where(total == 0, 1, total))

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
            return self._attend(params, inputs, causal, inputs.rate(train), key)

        return by_heads(some, params, inputs, key)

    def _attend(
        self, params: Params, inputs: Inputs, causal: bool, dropout: float, key: Array | None
    ) -> Array:
        """The output of all heads of `inputs` at once."""
        q, k, v, r, share = self._sorting(params, inputs, causal)
        joint = jnp.concatenate([k, v], axis=-1).astype(wide(r, k, v))
        # k' and v' by one product of plain matrices, [T, T] times [T, b 2D].
        matrix = joint.reshape(*joint.shape[:3], -1)  # [B, H, T, b 2D]
        joint = (r @ matrix).reshape(joint.shape)
        sorted_k, sorted_v = jnp.split(joint, [k.shape[-1]], axis=-1)
        position = np.zeros(1)  # no slopes
        if share is None:
            sets = [Keys(k, v, position), Keys(sorted_k, sorted_v, position)]
        else:
            exists = existing(inputs.q.shape[1], self.block, inputs.valid)[:, None, :, None, :]
            filled = share > LEAST  # [B, H, T, b]
            # As if all of R were the valid tokens': divided by their share. The share returns as
            # the weight of the place.
            divisor = jnp.where(filled, share, 1)[..., None]
            sorted_k = sorted_k / divisor
            sorted_v = sorted_v / divisor
            bias = jnp.log(divisor.swapaxes(-1, -2))
            near = Keys(k, v, position, exists)
            sets = [near, Keys(sorted_k, sorted_v, position, filled[..., None, :], bias=bias)]
        out = attend(q, sets, dropout=dropout, key=key, on_cpu=on_cpu(inputs.target))
        return zero_invalid(untile(out, inputs.q.shape[1]), inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """Weights of a token's own block, and of what the sorted places are made of.

        Returns `[B, H, N, N]`.
        """
        q, k, _, r, share = self._sorting(params, inputs, causal)
        length, scale = inputs.q.shape[1], q.shape[-1] ** -0.5
        tiles = r.shape[-1]
        exists = existing(length, self.block, inputs.valid)
        exists = jnp.broadcast_to(exists, (q.shape[0], tiles, self.block))
        if share is None:
            share = jnp.ones((1, 1, tiles, self.block))
        filled = share > LEAST
        divisor = jnp.where(filled, share, 1)
        # What each place is made of: [B, H, T, place, U, b], zero but where the token's place is
        # the same.
        same_place = jnp.eye(self.block)
        made_of = jnp.einsum("bhtu,bus,sp->bhtpus", r, exists.astype(r.dtype), same_place)
        made_of = made_of / divisor[..., None, None]
        sorted_scores = jnp.einsum("bhtqd,bhtpus,bhusd->bhtqp", q, made_of, k) * scale
        sorted_scores = sorted_scores + jnp.log(divisor)[..., None, :]
        near_scores = jnp.einsum("bhtqd,bhtsd->bhtqs", q, k) * scale
        (near, far), total = joint_exponentials(
            [near_scores, sorted_scores],
            [exists[:, None, :, None, :], filled[..., None, :]],
        )
        # Weights of places are handed on to the tokens they are made of, [B, H, T, b, U, b].
        rows = jnp.einsum("bhtqp,bhtpus->bhtqus", far, made_of)
        rows = rows + jnp.einsum("bhtqs,tu->bhtqus", near, jnp.eye(tiles))
        rows = rows / total[..., None]
        size = tiles * self.block
        rows = rows.reshape(*r.shape[:2], size, size)[:, :, :length, :length]
        return rows * inputs.mask[:, None, :, None]

    def cost(self, shape: Shape) -> Cost:
        """Softmax over two blocks for each query, the sort net, its normalisation, two sorts."""
        heads, tiles = shape.batch * shape.heads, -(-shape.length // self.block)
        scores, pairs = tiles * 2 * self.block**2, tiles**2
        numbers = tiles * self.block * shape.head_dim
        flops = scores * (4 * shape.head_dim + 6)
        flops += 2 * numbers
        flops += pairs * (4 * shape.head_dim * (self.block + 1) + 8 * self.iterations + 2)
        activations = 2 * scores + 2 * pairs + 2 * numbers
        return Cost(
            flops=heads * flops,
            parameters=shape.heads * 2 * shape.head_dim * tiles,
            activation_bytes=heads * activations * shape.wide_itemsize,
            state_bytes=0,  # blocks are sorted among all of them: there is no decoding
        )
