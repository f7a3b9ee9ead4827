"""What an attention is: a frozen dataclass whose fields are its hyper-parameters.

The letters used everywhere: B batch, N length, H heads, D head width, E model width, L layers, K
candidates.

An attention never projects: the layer owns W_q, W_k, W_v and W_o, so that all candidates can share
them. An attention never keeps state: its parameters are an argument, and so is its randomness."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.errors import InputError
from dartformer.kernels.softmax import drop, wide
from dartformer.spec import Spelled as Spelled  # attentions take it from here
from dartformer.spec import name_of

POSITIONS = frozenset({"rotary", "alibi"})
"""Positions that act inside an attention, for `Traits.positions`."""

DROPOUTS = ("", "weights", "values", "slots")
"""Meanings of attention dropout, for `Traits.dropout`; "" refuses it."""

Params = dict[str, Any]
"""Parameters of one attention: a (nested) dict of arrays, every leaf leading with the head axis
H."""


@dataclass(frozen=True)
class Shape:
    """The sizes an attention is built for. `length` is the longest input it will be given."""

    length: int
    heads: int
    head_dim: int
    model_dim: int
    batch: int = 1
    itemsize: int = 4
    """Bytes of one activation: 4 for float32, 2 for bfloat16."""
    kv_heads: int = 0
    """Different heads of keys and values among `heads`, whose k and v are kept when decoding; 0:
    all differ."""

    @property
    def kept_heads(self) -> int:
        """Heads whose keys and values are kept when decoding."""
        return self.kv_heads or self.heads


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """What an attention may read.

    Attributes:
      q, k, v: projected queries, keys, values, `[B, N, H, D]`.
      x: the layer's input before projection, `[B, N, E]`; None if no attention in use reads it.
      valid: `[B, N]` bool, False at padding; None if every token is valid.
      head_keys: `[H]` PRNG keys, one for each *original* head, made from (seed, layer, head). Fixed
        randomness (random graphs, random features, hash rotations) comes from here, so that it is
        the same in training, in evaluation, after a restart and after derivation has regrouped the
        heads.
      slopes: `[H]`, of each *original* head, or None: ALiBi adds -slope |i - j| to the scaled
        scores (Press et al. 2022, arXiv:2108.12409, section 3). Rotary positions need nothing here:
        the layer has turned q and k.
      dropout: rate of attention dropout, a Python number; it holds in training only (see `rate`),
        with noise from `key`. `Traits.dropout` says what is dropped.
      kernel: how softmax over all tokens is computed, one of `dartformer.kernels.flash.KERNELS`;
        nothing else has a choice.
    """

    q: Array
    k: Array
    v: Array
    x: Array | None = None
    valid: Array | None = None
    head_keys: Array | None = None
    slopes: Array | None = None
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    kernel: str = dataclasses.field(default="auto", metadata={"static": True})

    def rate(self, train: bool) -> float:
        """The rate of attention dropout that holds: `dropout` in training, 0 outside."""
        return self.dropout if train else 0.0

    @property
    def mask(self) -> Array:
        """`[B, N]` bool: `valid`, or all True where none was given."""
        return jnp.ones(self.q.shape[:2], bool) if self.valid is None else self.valid


@dataclass(frozen=True)
class Traits:
    """What an attention can honour, known without building it.

    Attributes:
      summary: one line for `dartformer list attentions`.
      paper: where it was published.
      causal: it can be asked for `causal=True`.
      bidirectional: it can be asked for `causal=False`.
      reads: which of "q", "k", "v", "x" its output depends on.
      fixed_length: its parameters are tied to `Shape.length`; longer inputs are refused.
      matrix: its output is a matrix times v, which `weights` gives. Where there is none (it reads
        no v, or treats the numbers of a token unlike one another) the class has `reference(params,
        inputs, *, causal) -> [B, N, H, D]`, the output by definition, in place of it.
      stochastic: its output depends on `Inputs.head_keys` or on `key` in training.
      growth: exponent of N in time and in the largest array.
      order: how many times its output can be differentiated with respect to its inputs (2: exact
        bilevel search).
      positions: which of "rotary" and "alibi" it can take. "rotary": its dependence on q and k may
        be turned with the position, as that of a softmax of dot products may (positive features may
        not); one that reads neither q nor k takes it as it is. "alibi": it honours `Inputs.slopes`,
        in `weights` too.
      dropout: what attention dropout drops, each rescaled by 1 / (1 - rate), so that the mean is
        kept. "weights": single weights, after they are normalised. "values": whole tokens of v, in
        each head the same for all queries (`drop_values`), where there is no weight to drop.
        "slots": weights of slots that stand for tokens. "": it refuses a rate above 0.
    """

    summary: str
    paper: str
    causal: bool
    bidirectional: bool = True
    reads: frozenset[str] = frozenset("qkv")
    fixed_length: bool = False
    matrix: bool = True
    stochastic: bool = False
    growth: float = 1.0
    order: int = 2
    positions: frozenset[str] = frozenset()
    dropout: str = ""


@dataclass(frozen=True)
class Cost:
    """Analytic cost of one forward pass of an attention, projections excluded.

    Attributes:
      flops: floating-point operations, a multiply-add counted as two.
      parameters: number of parameters of its own.
      activation_bytes: bytes of intermediate arrays (its largest simultaneous ones, inputs
        excluded).
      state_bytes: bytes to keep for each sequence when decoding one token at a time (KV cache or
        recurrent state), for the whole batch; 0 where decoding has no meaning.
    """

    flops: float
    parameters: int
    activation_bytes: float
    state_bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            *(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(Cost))
        )


@runtime_checkable
class Attention(Protocol):
    """The protocol. No inheritance is needed; `dartformer.attention.conformance.check` tells whether a class
    keeps it."""

    traits: ClassVar[Traits]

    def init(self, key: Array, shape: Shape) -> Params:
        """Own parameters (often none), every leaf leading with H."""
        ...

    def __call__(
        self,
        params: Params,
        inputs: Inputs,
        *,
        causal: bool = False,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """Output `[B, N, H, D]` in the dtype of v; rows of invalid queries are exactly zero."""
        ...

    def weights(self, params: Params, inputs: Inputs, *, causal: bool = False) -> Array | None:
        """`[B, H, N, N]` such that the output is `weights @ v`, by definition; None if not
        `traits.matrix`."""
        ...

    def cost(self, shape: Shape) -> Cost:
        """Analytic cost at `shape`."""
        ...


def require(
    attention: Attention,
    *,
    causal: bool,
    length: int,
    order: int = 1,
    positions: str = "none",
    dropout: float = 0.0,
) -> None:
    """Raise `InputError` unless `attention` can do what is asked, before anything is built or
    trained.

    Args:
      attention: any.
      causal, length, order: of the task, of its longest input, of the derivatives that a search
        takes.
      positions: "rotary" and "alibi" must be among its traits; what is added to the embeddings
        needs nothing of it.
      dropout: rate of attention dropout.
    """
    traits = attention.traits
    name = repr(attention)
    if causal and not traits.causal:
        raise InputError(
            f"{name} cannot be causal, and this task is causal: leave it out of the candidates."
        )
    if not causal and not traits.bidirectional:
        raise InputError(
            f"{name} is causal only, and this task reads both ways: leave it out of the candidates."
        )
    if length < 1:
        raise InputError(f"length must be at least 1, got {length}.")
    if order > traits.order:
        raise InputError(
            f"{name} can be differentiated {traits.order} times, and this search needs {order}: "
            f"use search.strategy.hypergradient = 'first' or 'finite'."
        )
    unread = positions == "rotary" and not traits.reads & {"q", "k"}
    if positions in POSITIONS and positions not in traits.positions and not unread:
        raise InputError(
            f"{name} cannot take {positions} positions (it takes {_listed(traits.positions)}): leave it "
            f"out of the candidates, or use model.positions = 'learned', 'sinusoidal' or 'none'."
        )
    if dropout > 0 and not traits.dropout:
        raise InputError(
            f"{name} has no meaning for attention dropout, got a rate of {dropout}: leave it out of the "
            f"candidates, or use model.attention_dropout = 0."
        )


def accept(attention: Attention, inputs: Inputs, *, causal: bool) -> None:
    """Raise `InputError` for a call that the traits of `attention` do not cover: every `__call__`
    begins with it."""
    require(
        attention,
        causal=causal,
        length=inputs.q.shape[1],
        dropout=inputs.dropout,
        positions="none" if inputs.slopes is None else "alibi",
    )


def _listed(positions: frozenset[str]) -> str:
    return " and ".join(sorted(positions)) or "neither rotary nor alibi"


def positive(attention: Any, **fields: int) -> None:
    """Raise `InputError` for the first of `fields` that is not a whole number of at least 1."""
    for name, value in fields.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(
                f"{name_of(attention)}: {name} must be a whole number of at least 1, got {value!r}."
            )


def zero_invalid(out: Array, valid: Array) -> Array:
    """`out` [B, N, H, D] with the rows of invalid queries exactly zero (and with zero gradient)."""
    return jnp.where(valid[:, :, None, None], out, jnp.zeros((), out.dtype))


def drop_values(inputs: Inputs, train: bool, key: Array | None) -> Array:
    """v `[B, N, H, D]` with whole tokens dropped at `inputs.dropout` in training: the dropout
    called "values"."""
    rate = inputs.rate(train)
    return inputs.v if rate == 0 else inputs.v * drop(jnp.ones_like(inputs.v[..., :1]), rate, key)


def layer_input(attention: Attention, inputs: Inputs) -> Array:
    """x `[B, N, E]` in float32 or wider; raises `InputError` where it was not given."""
    if inputs.x is None:
        raise InputError(
            f"{attention!r} reads the layer's input, and inputs.x is None: give it [B, N, E]."
        )
    return inputs.x.astype(wide(inputs.x))


def fits(attention: Any, length: int, limit: int) -> None:
    """Raise `InputError` where a fixed-length attention is given a longer input."""
    if length > limit:
        raise InputError(
            f"{attention!r} was built for at most {limit} tokens and was given {length}."
        )
