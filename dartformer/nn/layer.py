"""What all layers share: their options, what a call reads, and weights from flax's own layer."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import Attention, require_cross
from dartformer.errors import InputError, unknown
from dartformer.models.mixers import Context, GroupedHeads, Projections, require_all
from dartformer.models.sizes import TransformerConfig
from dartformer.models.supernet import MixedHeads

POSITIONS = ("none", "rotary", "alibi")

RngSource = nnx.Rngs | nnx.RngStream | Array
"""Where a call draws from: NNX's random streams, or a key."""


class Options(TypedDict, total=False):
    """What a layer may be told beside its attentions and sizes.

    Attributes:
      head_dim: width of a head; `model_dim / heads` by default.
      kv_heads: heads of keys and values, each shared by neighbouring heads; as many by default.
      causal: no token sees a later one. A call may say otherwise.
      positions: "none", "rotary" or "alibi".
      dropout: rate inside the attentions, in training.
      max_length: tokens of the longest input. Needed where a type learns something for each
        position (`linformer`, `sinkhorn`, `synthesizer`), and to decode with rotary positions.
      qkv_bias, out_bias: biases of queries, keys and values, and behind the output projection.
      qk_norm: RMS norm of queries and keys, with a learned gain.
      rope_theta: base of the wavelengths of rotary positions.
      output_gate: "none", "sigmoid" or "silu" of a projection of the input, times the output.
      short_conv: tokens that a causal convolution of queries, keys and values reads; 0 for none.
      branch_norm: RMS norm without parameters of each attention's output, for each token and head.
      kernel: how softmax over all tokens is computed: "auto", "cudnn", "chunked" or "dense".
      dtype: to compute in; that of the input by default. Parameters are float32.
    """

    head_dim: int | None
    kv_heads: int | None
    causal: bool
    positions: str
    dropout: float
    max_length: int | None
    qkv_bias: bool
    out_bias: bool
    qk_norm: bool
    rope_theta: float
    output_gate: str
    short_conv: int
    branch_norm: bool
    kernel: str
    dtype: DTypeLike | None


OPTIONS = tuple(Options.__annotations__)


class HeadsNumber(nnx.Variable[Array]):
    """The number from which the fixed randomness of a layer's heads follows, such as features."""


def layer_config(
    attentions: Sequence[Attention], model_dim: int, heads: int, options: Options
) -> TransformerConfig:
    """A layer's options as those of a model with this layer alone, checked for its attentions.

    Raises `InputError` where they do not work, or not together.
    """
    for name in options:
        if name not in OPTIONS:
            raise unknown("option", name, OPTIONS)
    values: dict[str, Any] = dict(options)
    positions = values.pop("positions", "none")
    if positions not in POSITIONS:
        raise unknown("positions", positions, POSITIONS)
    length = values.pop("max_length", None)
    fixed = [attention for attention in attentions if attention.traits.fixed_length]
    if length is None and fixed:
        raise InputError(
            f"{fixed[0]!r} learns something for each position. Set max_length, the tokens of the "
            f"longest input."
        )
    try:
        config = TransformerConfig(
            layers=1,
            heads=heads,
            head_dim=_head_dim(values.pop("head_dim", None), model_dim, heads),
            model_dim=model_dim,
            kv_heads=values.pop("kv_heads", None) or 0,
            positions=positions,
            attention_dropout=values.pop("dropout", 0.0),
            dtype=jnp.dtype(values.pop("dtype", None) or "float32").name,
            length=length or 1,
            # Of the model around the layer, which is not ours.
            pooling="none",
            vocabulary=1,
            classes=1,
            **values,
        )
        require_all(attentions, config)
    except InputError as error:
        # The options of a layer have the names of a model's.
        message = str(error).replace("model.attention_dropout", "dropout").replace("model.", "")
        raise InputError(message) from None
    return config


def _head_dim(head_dim: int | None, model_dim: int, heads: int) -> int:
    if head_dim is not None:
        return head_dim
    if not isinstance(heads, int) or not isinstance(model_dim, int) or heads < 1:
        raise InputError(
            f"model_dim and heads must be whole numbers of at least 1, got {model_dim!r} and "
            f"{heads!r}."
        )
    if model_dim % heads:
        raise InputError(
            f"model_dim={model_dim} must be a multiple of heads={heads}, or set head_dim."
        )
    return model_dim // heads


class Call(NamedTuple):
    """What a layer reads in one call.

    Attributes:
      x: `[B, N, E]`.
      valid: `[B, N]`; None if all tokens exist.
      context: another sequence, whose keys and values are read; None for its own.
      causal: no token sees a later one.
      train: dropout is on.
      key: for dropout and the like; None where nothing is drawn.
      leading: the axes of the input in place of B.
    """

    x: Array
    valid: Array | None
    context: Context | None
    causal: bool
    train: bool
    key: Array | None
    leading: tuple[int, ...]


class Layer(nnx.Module):
    """Attention heads with their projections; a subclass says which attentions run.

    Attributes:
      config: sizes and options.
      attentions: those that may run.
      deterministic: no dropout. `model.train()` and `model.eval()` set it.
    """

    heads: GroupedHeads | MixedHeads

    def __init__(
        self,
        config: TransformerConfig,
        attentions: tuple[Attention, ...],
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.attentions = config, attentions
        self.dtype = None
        if dtype is not None:
            self.dtype = jnp.dtype(dtype)
        self.deterministic = False
        stochastic = any(attention.traits.stochastic for attention in attentions)
        self.number: HeadsNumber | None = nnx.data(None)
        if stochastic:
            # Layers that were made with one stream draw different features.
            bits = jax.random.bits(rngs.params(), (), jnp.uint32) >> 1
            self.number = HeadsNumber(bits.astype(jnp.int32))
        self.rngs: nnx.RngStream | None = nnx.data(None)
        if stochastic or config.attention_dropout > 0:
            self.rngs = rngs.dropout.fork()
        if config.out_bias:
            self.out_bias = nnx.Param(jnp.zeros(config.model_dim))

    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        values: Array | None = None,
        *,
        mask: Array | None = None,
        valid: Array | None = None,
        context_valid: Array | None = None,
        causal: bool | None = None,
        deterministic: bool | None = None,
        rngs: RngSource | None = None,
    ) -> Array:
        """The layer's output `[..., N, E]`, without a residual connection.

        Args:
          x: `[..., N, E]`, which becomes queries, and without a context keys and values.
          context: another sequence `[..., M, E]`, which becomes keys and values.
          values: a third one `[..., M, E]`, which becomes values.
          mask: which keys exist, `[..., 1, 1, M]`, as flax has it.
          valid: which tokens of x exist, `[..., N]`. The output of the others is zero before the
            bias.
          context_valid: which tokens of the context exist, `[..., M]`.
          causal: no token sees a later one; by default as the layer was made.
          deterministic: no dropout; by default the layer's attribute.
          rngs: what dropout draws from; by default the layer's own stream.

        Raises:
          InputError: shapes that do not fit, or what an attention does not support.
        """
        train = not self.deterministic
        if deterministic is not None:
            train = not deterministic
        key = self._key(rngs, train)
        if causal is None:
            causal = self.config.causal
        call = self._call(x, context, values, mask, valid, context_valid, causal, train, key)
        y = self._mix(call)
        if self.config.out_bias:
            y = y + self.out_bias[...].astype(y.dtype)
        return y.reshape(*call.leading, *y.shape[1:])

    @abstractmethod
    def _mix(self, call: Call) -> Array:
        """The heads' output `[B, N, E]`."""

    def _number(self) -> Array | None:
        if self.number is None:
            return None
        return self.number[...]

    def _key(self, rngs: RngSource | None, train: bool) -> Array | None:
        if not train or self.rngs is None:
            return None
        if rngs is None:
            return self.rngs()
        if isinstance(rngs, nnx.Rngs):
            return rngs.dropout()
        if isinstance(rngs, nnx.RngStream):
            return rngs()
        return rngs

    def _call(
        self,
        x: Array,
        context: Array | None,
        values: Array | None,
        mask: Array | None,
        valid: Array | None,
        context_valid: Array | None,
        causal: bool,
        train: bool,
        key: Array | None,
    ) -> Call:
        """The arguments of a call, checked, with one axis B."""
        x = self._sequence("x", x)
        leading = x.shape[:-2]
        if values is not None and context is None:
            raise InputError("values need a context. Pass both, or x alone.")
        # flax's layer is called with the same array twice for self-attention.
        if context is x and (values is None or values is x):
            context = values = None
        if context is None:
            if mask is not None:
                context_valid = _both(context_valid, keys_of(mask, x.shape[-2]))
            valid = _both(valid, context_valid)
            return Call(
                _joined(x, 2),
                self._mask("valid", valid, x),
                None,
                causal,
                train,
                key,
                leading,
            )
        read = self._context(x, context, values, mask, context_valid, causal)
        valid = self._mask("valid", valid, x)
        return Call(_joined(x, 2), valid, read, causal, train, key, leading)

    def _context(
        self,
        x: Array,
        context: Array,
        values: Array | None,
        mask: Array | None,
        valid: Array | None,
        causal: bool,
    ) -> Context:
        for attention in self.attentions:
            require_cross(attention, causal=causal, positions=self.config.positions)
        if self.config.short_conv:
            raise InputError(
                "short_conv does not work across two sequences because it reads neighbouring "
                "tokens of one. Use short_conv=0."
            )
        context = self._sequence("context", context)
        if values is None:
            values = context
        values = self._sequence("values", values)
        if context.shape[:-2] != x.shape[:-2] or values.shape != context.shape:
            raise InputError(
                f"context and values must be [..., M, {self.config.model_dim}] with the leading "
                f"axes of x, {list(x.shape[:-2])}; got {list(context.shape)} and "
                f"{list(values.shape)}."
            )
        if mask is not None:
            valid = _both(valid, keys_of(mask, context.shape[-2]))
        exists = self._mask("context_valid", valid, context)
        return Context(_joined(context, 2), _joined(values, 2), exists)

    def _sequence(self, name: str, x: Array) -> Array:
        """An input `[..., N, E]` in the dtype of the layer."""
        x = jnp.asarray(x)
        width = self.config.model_dim
        if x.ndim < 2 or x.shape[-1] != width:
            raise InputError(f"{name} must be [..., tokens, {width}], got {list(x.shape)}.")
        if self.dtype is not None:
            return x.astype(self.dtype)
        return x

    def _mask(self, name: str, valid: Array | None, x: Array) -> Array | None:
        """Which tokens of x `[..., N, E]` exist, `[B, N]`; None for all."""
        if valid is None:
            return None
        valid = jnp.asarray(valid)
        shape = x.shape[:-1]
        if valid.ndim > len(shape) or valid.shape[-1:] != shape[-1:]:
            raise InputError(f"{name} must be {list(shape)}, got {list(valid.shape)}.")
        try:
            valid = jnp.broadcast_to(valid, shape)
        except ValueError:
            raise InputError(f"{name} must be {list(shape)}, got {list(valid.shape)}.") from None
        return _joined(valid.astype(bool), 1)

    def copy_from(self, layer: nnx.MultiHeadAttention) -> None:
        """Take the weights of flax's own layer, to compute what it computes (type `full`).

        Raises `InputError` where it has other sizes, or something that has no place here.
        """
        if layer.normalize_qk:
            raise InputError(
                "the layer normalizes queries and keys with a LayerNorm, which df.nn has not. Use "
                "qk_norm=True and train it."
            )
        biases = self.config.qkv_bias and self.config.out_bias
        if layer.use_bias and not biases:
            raise InputError(
                "the layer has biases. Make this one with qkv_bias=True and out_bias=True."
            )
        for projections in self.heads.projections:
            _copy_projections(projections, layer)
        if layer.use_bias:
            assert layer.out.bias is not None
            _assign(self.out_bias, layer.out.bias, "the output bias")


def _copy_projections(projections: Projections, layer: nnx.MultiHeadAttention) -> None:
    _assign(projections.q, layer.query.kernel, "the queries")
    _assign(projections.k, layer.key.kernel, "the keys")
    _assign(projections.v, layer.value.kernel, "the values")
    _assign(projections.o, layer.out.kernel, "the output")
    if layer.use_bias:
        assert layer.query.bias is not None
        assert layer.key.bias is not None
        assert layer.value.bias is not None
        _assign(projections.q_bias, layer.query.bias, "the queries' bias")
        _assign(projections.k_bias, layer.key.bias, "the keys' bias")
        _assign(projections.v_bias, layer.value.bias, "the values' bias")


def _assign(ours: nnx.Param[Array], theirs: nnx.Param[Any], name: str) -> None:
    if ours.shape != theirs.shape:
        raise InputError(
            f"{name} of the layer are {list(theirs.shape)}, and here {list(ours.shape)}. Use its "
            f"model_dim, heads, head_dim and kv_heads."
        )
    ours[...] = theirs[...].astype(ours.dtype)


def keys_of(mask: Array, length: int) -> Array:
    """Which keys exist, `[..., M]`, of a mask `[..., heads, queries, M]` that says no more.

    Raises `InputError` for a mask that differs between heads or queries.
    """
    mask = jnp.asarray(mask)
    if mask.ndim < 3 or mask.shape[-3:-1] != (1, 1) or mask.shape[-1] != length:
        raise InputError(
            f"mask must say which keys exist, [..., 1, 1, {length}], got {list(mask.shape)}. Use "
            f"causal=True for a causal mask, and valid and context_valid for padding."
        )
    return mask[..., 0, 0, :].astype(bool)


def _both(first: Array | None, second: Array | None) -> Array | None:
    """What both masks allow; None allows all."""
    if first is None:
        return second
    if second is None:
        return first
    return jnp.asarray(first) & jnp.asarray(second)


def _joined(x: Array, trailing: int) -> Array:
    """An array with all axes but the last `trailing` as one."""
    return x.reshape(-1, *x.shape[x.ndim - trailing :])


def options_of(config: TransformerConfig) -> Options:
    """The options that a layer was made with, but for its dtype."""
    return Options(
        head_dim=config.head_dim,
        kv_heads=config.kv_heads,
        causal=config.causal,
        positions=config.positions,
        dropout=config.attention_dropout,
        max_length=config.length,
        qkv_bias=config.qkv_bias,
        out_bias=config.out_bias,
        qk_norm=config.qk_norm,
        rope_theta=config.rope_theta,
        output_gate=config.output_gate,
        short_conv=config.short_conv,
        branch_norm=config.branch_norm,
        kernel=config.kernel,
    )
