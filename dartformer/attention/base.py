"""What an attention is: a frozen dataclass whose fields are its hyper-parameters.

The letters used everywhere: B batch, N length, H heads, D head width, E model width, L layers, K
candidates.

An attention never projects: the layer owns W_q, W_k, W_v and W_o, and all candidates can share
them. An attention never keeps state: its parameters are an argument, and so is its randomness.
"""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from dartformer.errors import InputError
from dartformer.kernels.softmax import drop, wide
from dartformer.kernels.target import Target
from dartformer.spec import Spelled as Spelled  # attentions take it from here
from dartformer.spec import name_of

POSITIONS = frozenset({"rotary", "alibi"})
"""Positions that act inside an attention, for `Traits.positions`."""

DROPOUTS = ("", "weights", "values", "slots")
"""Meanings of attention dropout, for `Traits.dropout`; "" refuses it."""

Params = dict[str, Any]
"""Parameters of one attention: a (nested) dict of arrays, each with the head axis H first."""


Cache = dict[str, Any]
"""What an attention keeps between tokens when it decodes: a (nested) dict of arrays."""


@dataclass(frozen=True)
class Shape:
    """The sizes an attention is built for; `length` is that of its longest input."""

    length: int
    heads: int
    head_dim: int
    model_dim: int
    batch: int = 1
    itemsize: int = 4
    """Bytes of one activation: 4 for float32, 2 for bfloat16."""
    kv_heads: int = 0
    """Different heads of keys and values among `heads`, which decoding keeps; 0: all differ."""

    @property
    def kept_heads(self) -> int:
        """Heads whose keys and values are kept when decoding."""
        return self.kv_heads or self.heads

    @property
    def wide_itemsize(self) -> int:
        """Bytes of one number inside a softmax or a recurrence: those of float32 or more."""
        return max(4, self.itemsize)


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
      kernel: how softmax over all tokens is computed, or over a window, one of
        `dartformer.kernels.flash.KERNELS`. Of the others some recurrences have a kernel on a TPU,
        which "auto" alone allows.
      start: of tokens that follow others in a cache, `[B]`: how many valid tokens of each row came
        before. None where these are the first.
      groups: when decoding, where several heads share a key and a value, k and v are `[B, N, G, D]`
        of the G different ones, and this is the one that each of the H heads reads. Empty: H / G
        neighbouring heads share one.
      query_valid: `[B, N]` bool, where keys and values are of another sequence `[B, M, H, D]`, which
        `valid` is then of: cross-attention, see `Traits.cross`. None in self-attention.
      target: the device that the program is made for, on which the choice of `kernel` and of sizes
        depends; None for that of this process.
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
    start: Array | None = None
    groups: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    query_valid: Array | None = None
    target: Target | None = dataclasses.field(default=None, metadata={"static": True})

    def rate(self, train: bool) -> float:
        """The rate of attention dropout in force: `dropout` in training, 0 outside."""
        if train:
            return self.dropout
        return 0.0

    @property
    def mask(self) -> Array:
        """`[B, N]` bool, of keys and values: `valid`, or all True where it is None."""
        if self.valid is None:
            return jnp.ones(self.v.shape[:2], bool)
        return self.valid

    @property
    def query_mask(self) -> Array:
        """`[B, N]` bool, of queries: `mask` but in cross-attention."""
        if self.query_valid is None:
            return self.mask
        return self.query_valid


@dataclass(frozen=True)
class Traits:
    """What an attention can honour, known without building it.

    Attributes:
      summary: one line for `dartformer list attentions`.
      paper: where it was published.
      causal: it supports `causal=True`.
      bidirectional: it supports `causal=False`.
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
      head_dim_multiple: the head width must be a multiple of it.
      decodes: it can be run token by token, and has the methods of `Decoder`.
      cross: queries may be of another sequence than keys and values, of another length
        (`Inputs.query_valid`). Its weights compare queries with keys, and no positions.
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
    head_dim_multiple: int = 1
    decodes: bool = False
    cross: bool = False


class FieldTraits:
    """`traits` that depend on the fields of an attention, as a descriptor.

    On the class they are `general`, what the type can do with some fields. On an instance they are
    `of(instance)`, computed from its fields each time.
    """

    def __init__(self, general: Traits, of: Callable[[Any], Traits]) -> None:
        self.general = general
        self.of = of

    def __get__(self, instance: object | None, owner: type) -> Traits:
        if instance is None:
            return self.general
        return self.of(instance)


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

    def __add__(self, cost: "Cost") -> "Cost":
        return Cost(
            flops=self.flops + cost.flops,
            parameters=self.parameters + cost.parameters,
            activation_bytes=self.activation_bytes + cost.activation_bytes,
            state_bytes=self.state_bytes + cost.state_bytes,
        )


@runtime_checkable
class Attention(Protocol):
    """The protocol. No inheritance is needed.

    `dartformer.attention.check` tells whether a class keeps it.
    """

    @property
    def traits(self) -> Traits:
        """What it can honour; the class has them too, as `FieldTraits` where fields decide."""
        ...

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
        """The matrix `[B, H, N, N]` whose product with v is the output, by definition.

        None where `traits.matrix` is False.
        """
        ...

    def cost(self, shape: Shape) -> Cost:
        """Analytic cost at `shape`."""
        ...


@runtime_checkable
class Decoder(Attention, Protocol):
    """An attention that can be run token by token: `traits.decodes`.

    Padding takes no place here: a token's position is the number of valid tokens before it in its
    row, and outputs are those of the row without its padding.
    """

    def init_cache(
        self, shape: Shape, dtype: DTypeLike = jnp.float32, head_keys: Array | None = None
    ) -> Cache:
        """An empty cache for `shape.batch` rows of at most `shape.length` tokens.

        Its arrays have `cost(shape).state_bytes` bytes, where `shape.itemsize` is that of `dtype`.

        Args:
          shape: sizes; `kv_heads` different keys and values are kept.
          dtype: of keys and values; sums and states are in float32 or wider.
          head_keys: as in `Inputs`, for a type that is random.
        """
        ...

    def prefill(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output of a prompt, computed in parallel, and the cache after it.

        Args:
          params: as in `__call__`.
          inputs: a prompt of any length; k and v may have fewer heads, see `Inputs.groups`.
          cache: an empty one.
        """
        ...

    def step(self, params: Params, inputs: Inputs, cache: Cache) -> tuple[Array, Cache]:
        """The output `[B, T, H, D]` of one token or a few that follow, and the cache after them.

        `inputs.start` says how many tokens of each row came before.
        """
        ...


def require(
    attention: Attention,
    *,
    causal: bool,
    length: int,
    order: int = 1,
    positions: str = "none",
    dropout: float = 0.0,
    head_dim: int | None = None,
) -> None:
    """Raise `InputError` unless `attention` can do all of this, before anything is built.

    Args:
      attention: any.
      causal: whether the task is causal.
      length: of the longest input.
      order: of the derivatives that a search takes.
      positions: "rotary" and "alibi" must be among its traits. Positions that are added to the
        embeddings work with every attention.
      dropout: rate of attention dropout.
      head_dim: width of a head; None where it is not known.
    """
    traits = attention.traits
    name = repr(attention)
    if causal and not traits.causal:
        raise InputError(
            f"{name} does not work with a causal task. Leave it out of the candidates."
        )
    if not causal and not traits.bidirectional:
        raise InputError(
            f"{name} works only with a causal task, and this one is bidirectional. Leave it out of "
            f"the candidates."
        )
    if length < 1:
        raise InputError(f"length must be at least 1, got {length}.")
    if order > traits.order:
        raise InputError(
            f"{name} can be differentiated {traits.order} times, and this search needs {order}. "
            f"Use search.strategy.hypergradient = 'first' or 'finite'."
        )
    unread = positions == "rotary" and not traits.reads & {"q", "k"}
    if positions in POSITIONS and positions not in traits.positions and not unread:
        raise InputError(
            f"{name} does not work with {positions} positions ({_supported(traits.positions)}). "
            f"Leave it out of the candidates, or use model.positions = 'learned', 'sinusoidal' or "
            f"'none'."
        )
    if dropout > 0 and not traits.dropout:
        raise InputError(
            f"{name} does not support attention dropout, got a rate of {dropout}. Leave it out of "
            f"the candidates, or use model.attention_dropout = 0."
        )
    if head_dim is not None:
        accept_width(attention, head_dim)


def require_decoding(attentions: Iterable[Attention]) -> None:
    """Raise `InputError` for the first of `attentions` that cannot be run token by token."""
    for attention in attentions:
        if not attention.traits.decodes:
            raise InputError(
                f"{attention!r} cannot be run token by token because {_no_decoding(attention)}. Use "
                f"a type that can (`dartformer list attentions`, column steps)."
            )


def _no_decoding(attention: Attention) -> str:
    if not attention.traits.causal:
        return "a later token changes earlier outputs"
    return "its outputs depend on how many tokens follow, or it has no step"


def require_cross(attention: Attention, *, causal: bool, positions: str) -> None:
    """Raise `InputError` unless `attention` can read keys and values of another sequence."""
    if not attention.traits.cross:
        raise InputError(
            f"{attention!r} does not work across two sequences because it compares positions or "
            f"reads one sequence. Use 'full', 'linear', 'performer', 'differential' or 'uniform'."
        )
    if causal:
        raise InputError(
            "causal=True does not work across two sequences because their positions are not of one "
            "order. Use causal=False."
        )
    if positions in POSITIONS:
        raise InputError(
            f"{positions} positions do not work across two sequences because the distance of their "
            f"tokens has no meaning. Use positions='none'."
        )


def accept_width(attention: Attention, head_dim: int) -> None:
    """Raise `InputError` for a head width that `attention` does not work with."""
    multiple = attention.traits.head_dim_multiple
    if head_dim % multiple:
        raise InputError(
            f"{attention!r} does not work with a head width of {head_dim} because it needs a "
            f"multiple of {multiple}. Leave it out of the candidates, or change model.head_dim."
        )


def accept(attention: Attention, inputs: Inputs, *, causal: bool) -> None:
    """Raise `InputError` for a call that the traits of `attention` do not cover.

    Every `__call__` begins with it.
    """
    positions = "none"
    if inputs.slopes is not None:
        positions = "alibi"
    if inputs.query_valid is not None:
        require_cross(attention, causal=causal, positions=positions)
    require(
        attention,
        causal=causal,
        length=inputs.q.shape[1],
        positions=positions,
        dropout=inputs.dropout,
        head_dim=inputs.q.shape[-1],
    )


def _supported(positions: frozenset[str]) -> str:
    if not positions:
        return "it supports neither rotary nor alibi"
    return f"it supports {' and '.join(sorted(positions))}"


def positive(attention: object, **fields: int) -> None:
    """Raise `InputError` for the first of `fields` that is not a whole number of at least 1."""
    _at_least(1, attention, fields)


def not_negative(attention: object, **fields: int) -> None:
    """Raise `InputError` for the first of `fields` that is not a whole number of at least 0."""
    _at_least(0, attention, fields)


def _at_least(least: int, attention: object, fields: dict[str, int]) -> None:
    for name, value in fields.items():
        # True is an int in Python, and no size.
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(
                f"{name_of(attention)}: {name} must be a whole number of at least {least}, "
                f"got {value!r}."
            )


def zero_invalid(out: Array, valid: Array) -> Array:
    """`out` [B, N, H, D] with the rows of invalid queries exactly zero (and with zero gradient)."""
    # A choice and not a product: 0 times NaN is NaN, and padding may hold anything.
    return jnp.where(valid[:, :, None, None], out, jnp.zeros((), out.dtype))


def drop_values(inputs: Inputs, train: bool, key: Array | None) -> Array:
    """v `[B, N, H, D]`, in training with tokens dropped at `inputs.dropout`: dropout "values"."""
    rate = inputs.rate(train)
    if rate == 0:
        return inputs.v
    tokens = jnp.ones_like(inputs.v[..., :1])  # [B, N, H, 1]: all D numbers of a token or none
    return inputs.v * drop(tokens, rate, key)


def kv_cache_bytes(shape: Shape, tokens: int) -> int:
    """Bytes of the keys and values of `tokens` tokens, for `Cost.state_bytes`."""
    numbers = shape.batch * tokens * shape.kept_heads * shape.head_dim
    return 2 * numbers * shape.itemsize  # keys and values


def layer_input(attention: Attention, inputs: Inputs) -> Array:
    """x `[B, N, E]` in float32 or wider; raises `InputError` where it is None."""
    if inputs.x is None:
        raise InputError(
            f"{attention!r} reads the layer's input, but inputs.x is None. Pass an array [B, N, E]."
        )
    return inputs.x.astype(wide(inputs.x))


def fits(attention: object, length: int, limit: int) -> None:
    """Raise `InputError` for an input longer than a fixed-length attention was built for."""
    if length > limit:
        raise InputError(f"{attention!r} was built for at most {limit} tokens, got {length}.")


def head_keys(attention: Attention, inputs: Inputs) -> Array:
    """`inputs.head_keys` `[H]`; raises `InputError` where it is None."""
    if inputs.head_keys is None:
        raise InputError(
            f"{attention!r} is random, but inputs.head_keys is None. Pass a PRNG key for each head."
        )
    return inputs.head_keys
