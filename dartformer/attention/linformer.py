"""Linformer: keys and values projected along the sequence to a fixed number of slots."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
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
from dartformer.kernels.low_rank import low_rank_attention, project, slot_scores
from dartformer.kernels.softmax import masked_softmax


@dataclass(frozen=True, repr=False)
class Linformer(Spelled):
    """Low-rank attention: y_i = softmax(q_i (E K)^T / sqrt(D)) (F V), with E, F of rank x N.

    Paper: Wang et al. 2020, arXiv:2006.04768, equation 7.
    Own parameters: E and F, `[H, rank, N_max]` each, for every head its own; E alone where F = E.
    Cost: O(N rank D) time, O(N rank) memory.
    Masks: invalid keys and values are set to zero *before* they are projected, since afterwards
      tokens cannot be told apart; a slot that holds no token still takes part in the softmax, as a
      zero. Not causal: every slot mixes all tokens.
    Deviations: entries are drawn with variance 1 / N_max. A slot then has the scale of a token, and
      the softmax begins as unsaturated as that of full attention; with the 1 / rank of the paper's
      proof, scores begin sqrt(N / rank) times larger. Inputs shorter than N_max use the first
      columns; longer ones are refused. Of the paper's sharing, that between heads and between
      layers is not offered: a head must be cut out with its parameters.

    Attributes:
      rank: number of slots.
      sharing: "none", or "kv": F = E, the paper's key-value sharing within a head.
    """

    rank: int = 32
    sharing: Literal["none", "kv"] = "none"

    traits: ClassVar[Traits] = Traits(
        summary="softmax over learned projections of the sequence",
        paper="Wang et al. 2020, arXiv:2006.04768",
        causal=False,
        fixed_length=True,
        dropout="slots",
    )

    def __post_init__(self) -> None:
        positive(self, rank=self.rank)
        if self.sharing not in ("none", "kv"):
            raise InputError(f"linformer: sharing must be 'none' or 'kv', got {self.sharing!r}.")

    @property
    def _names(self) -> str:
        """The parameters of the sharing, one letter each."""
        if self.sharing == "kv":
            return "E"
        return "EF"

    def init(self, key: Array, shape: Shape) -> Params:
        """E, and F if it is not shared, `[H, rank, N_max]`, each head from a key of its own."""

        def one_head(key: Array) -> Params:
            params = {}
            keys = jax.random.split(key, len(self._names))
            for name, k in zip(self._names, keys, strict=True):
                entries = jax.random.normal(k, (self.rank, shape.length))
                params[name] = entries * shape.length**-0.5
            return params

        return jax.vmap(one_head)(jax.random.split(key, shape.heads))

    def _projections(self, params: Params, inputs: Inputs, causal: bool) -> tuple[Array, Array]:
        """E and F for this length, `[H, rank, N]`; raises `InputError` for a call out of range."""
        length = inputs.q.shape[1]
        accept(self, inputs, causal=causal)
        fits(self, length, params["E"].shape[-1])
        first, last = self._names[0], self._names[-1]  # the same where they are shared
        return params[first][..., :length], params[last][..., :length]

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
        e, f = self._projections(params, inputs, causal)
        k, v = inputs.k, inputs.v
        if inputs.valid is not None:
            # Before the projection: a slot mixes tokens, and cannot leave one out afterwards.
            k, v = zero_invalid(k, inputs.valid), zero_invalid(v, inputs.valid)
        k_slots, v_slots = project(e, k), project(f, v)  # [B, H, rank, D]
        out = low_rank_attention(
            inputs.q,
            k_slots,
            v_slots,
            dropout=inputs.rate(train),
            key=key,
            target=inputs.target,
        )
        return zero_invalid(out.astype(v.dtype), inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """softmax(q (E K)^T / sqrt(D)) F, `[B, H, N, N]`.

        Rows do not sum to one, and entries may be negative.
        """
        e, f = self._projections(params, inputs, causal)
        keys = inputs.mask[:, None, None, :]
        k_slots = project(e, zero_invalid(inputs.k, inputs.mask))
        slots = masked_softmax(slot_scores(inputs.q, k_slots), None)
        # Projected values of invalid tokens are zero: so are the columns of F.
        rows = jnp.einsum("bhnm,bhmk->bhnk", slots, f * keys)
        return rows * inputs.mask[:, None, :, None]

    def cost(self, shape: Shape) -> Cost:
        """Four products of N x rank x D, and about 5 operations for each score."""
        scores = shape.batch * shape.heads * shape.length * self.rank
        slots = 2 * shape.batch * shape.heads * self.rank * shape.head_dim
        return Cost(
            flops=scores * (8 * shape.head_dim + 5),
            parameters=len(self._names) * shape.heads * self.rank * shape.length,
            activation_bytes=(2 * scores + slots) * shape.wide_itemsize,
            state_bytes=0,  # slots mix all tokens: there is no decoding
        )
