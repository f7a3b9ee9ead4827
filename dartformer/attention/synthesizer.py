"""Synthesizer: weights that do not compare tokens, from one token alone or free of the input."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.attention.base import (
    POSITIONS,
    Cost,
    Inputs,
    Params,
    Shape,
    Spelled,
    Traits,
    accept,
    fits,
    layer_input,
    positive,
    zero_invalid,
)
from dartformer.errors import InputError
from dartformer.kernels.softmax import (
    dense_allowed,
    distance_bias,
    masked_softmax,
    softmax_values,
    wide,
)

MODES = ("dense", "random", "factorised")


@dataclass(frozen=True, repr=False)
class Synthesizer(Spelled):
    """Weights without dot products: y_i = sum_j softmax_j(S_ij) v_j.

    Paper: Tay et al. 2020, arXiv:2005.00743, section 3.1. mode "dense": S_i = W2^T relu(W1^T x_i),
    from token i alone; "random": S = R, free parameters; "factorised": S = R1 R2^T, free and of
    that `rank` (3.1.4). Own parameters: "dense" W1 `[H, E, rank]` and W2 `[H, rank, N_max]`;
    "random" R `[H, N_max, N_max]`; "factorised" R1 and R2 `[H, N_max, rank]`. Cost: O(N^2 (D +
    rank)) time, O(N^2) memory, as full attention. Masks: invalid keys are left out of the softmax;
    causal leaves out j > i. A query that sees no key gives zero. Deviations: no biases; R is always
    trained (the paper also fixes it). Inputs shorter than N_max use the first rows and columns;
    longer ones are refused. ALiBi, which is not in the paper, is added to S.

    Attributes:
      mode: "dense", "random" or "factorised".
      rank: width of the hidden layer or of the factors, at least 1; None: D in "dense", 8 in
        "factorised". "random" has none.
    """

    mode: Literal["dense", "random", "factorised"] = "dense"
    rank: int | None = None

    traits: ClassVar[Traits] = Traits(
        summary="softmax of learned scores that compare no tokens",
        paper="Tay et al. 2020, arXiv:2005.00743",
        causal=True,
        reads=frozenset("vx"),
        fixed_length=True,
        growth=2.0,
        positions=POSITIONS,
        dropout="weights",
    )

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise InputError(
                f"synthesizer: mode must be one of {', '.join(map(repr, MODES))}, got {self.mode!r}."
            )
        if self.rank is not None:
            if self.mode == "random":
                raise InputError(
                    f"synthesizer: mode 'random' has no rank, got rank={self.rank!r}: leave it out."
                )
            positive(self, rank=self.rank)
        if self.mode != "dense":
            object.__setattr__(
                self, "traits", dataclasses.replace(type(self).traits, reads=frozenset("v"))
            )

    def _width(self, shape: Shape) -> int:
        """The rank that is in force."""
        return self.rank or (shape.head_dim if self.mode == "dense" else 8)

    def _sizes(self, shape: Shape) -> dict[str, tuple[tuple[int, int], float]]:
        """Shape of each parameter of one head, and its standard deviation, with which scores begin
        near 1."""
        longest, width = shape.length, self._width(shape)
        if self.mode == "dense":
            return {
                "W1": ((shape.model_dim, width), shape.model_dim**-0.5),
                "W2": ((width, longest), width**-0.5),
            }
        if self.mode == "random":
            return {"R": ((longest, longest), 1.0)}
        return {name: ((longest, width), width**-0.25) for name in ("R1", "R2")}

    def init(self, key: Array, shape: Shape) -> Params:
        """The parameters of the mode, each head from a key of its own."""
        sizes = self._sizes(shape)

        def one_head(key: Array) -> Params:
            return {
                name: jax.random.normal(k, size) * scale
                for k, (name, (size, scale)) in zip(
                    jax.random.split(key, len(sizes)), sizes.items(), strict=True
                )
            }

        return jax.vmap(one_head)(jax.random.split(key, shape.heads))

    def _scores(self, params: Params, inputs: Inputs, causal: bool) -> Array:
        """S `[B or 1, H, N, N]` in float32 or wider; refuses what cannot be honoured."""
        accept(self, inputs, causal=causal)
        length = inputs.v.shape[1]
        fits(
            self,
            length,
            params["W2"].shape[-1]
            if self.mode == "dense"
            else next(iter(params.values())).shape[1],
        )
        if self.mode == "dense":
            hidden = jax.nn.relu(
                jnp.einsum("bne,hem->bhnm", layer_input(self, inputs), params["W1"])
            )
            scores = jnp.einsum("bhnm,hmk->bhnk", hidden, params["W2"][..., :length])
        elif self.mode == "random":
            scores = params["R"][None, :, :length, :length]
        else:
            scores = jnp.einsum("hnm,hkm->hnk", params["R1"][:, :length], params["R2"][:, :length])[
                None
            ]
        position = jnp.arange(length)
        return distance_bias(
            scores.astype(wide(scores)), inputs.slopes, position - position[:, None]
        )

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
        scores = self._scores(params, inputs, causal)
        allowed = dense_allowed(scores.shape[-1], causal=causal, valid=inputs.valid)
        out = softmax_values(scores, allowed, inputs.v, dropout=inputs.rate(train), key=key)
        return zero_invalid(out, inputs.mask)

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array:
        """The softmax of all scores, `[B, H, N, N]`."""
        scores = self._scores(params, inputs, causal)
        rows = masked_softmax(
            scores, dense_allowed(scores.shape[-1], causal=causal, valid=inputs.valid)
        )
        return rows * inputs.mask[:, None, :, None]

    def cost(self, shape: Shape) -> Cost:
        """The scores, 5 operations for each in the softmax, and their product with v."""
        pairs, width = shape.heads * shape.length**2, self._width(shape)
        if self.mode == "dense":
            hidden = shape.batch * shape.heads * shape.length * width
            made = 2 * shape.batch * pairs * width + hidden * (2 * shape.model_dim + 1)
        else:
            hidden, made = 0, 0 if self.mode == "random" else 2 * pairs * width
        return Cost(
            flops=made + shape.batch * pairs * (2 * shape.head_dim + 5),
            parameters=shape.heads * sum(n * m for (n, m), _ in self._sizes(shape).values()),
            activation_bytes=(2 * shape.batch * pairs + hidden) * max(4, shape.itemsize),
            state_bytes=shape.batch * shape.length * shape.heads * shape.head_dim * shape.itemsize,
        )
