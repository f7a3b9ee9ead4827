"""What a block of the Transformer holds between its normalizations: projections and attentions."""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import Attention, Inputs, Params, require
from dartformer.attention.full import Full
from dartformer.attention.parallel import Parallel
from dartformer.models.positions import alibi_slopes, rotate
from dartformer.models.sharding import by_examples
from dartformer.models.sizes import TransformerConfig
from dartformer.space.genotype import Genotype


class Mixer(Protocol):
    """What a block puts between its two normalizations: tokens in, tokens out, `[B, N, E]`.

    Attributes:
      saves_by_first_token: whether the output of the first token alone costs less. The Transformer
        asks a mixer for it only then.
    """

    saves_by_first_token: ClassVar[bool]

    def __call__(
        self,
        x: Array,
        valid: Array,
        mixture: Array | None,
        *,
        train: bool,
        key: Array | None,
        layer: Array | None = None,
        first_token: bool = False,
    ) -> Array:
        """Mix the tokens of one layer.

        Args:
          x: `[B, N, E]`.
          valid: `[B, N]`.
          mixture: the layer's row `[H, K]`, or None in a derived model.
          train: whether dropout is on.
          key: for dropout and noise.
          layer: the number of the layer, traced, where one mixer stands for all layers of a scan;
            None: the layer that the mixer was made for.
          first_token: give the output of the first token alone, `[B, 1, E]`.
        """
        ...


class Context(NamedTuple):
    """Another sequence, which the heads of a layer read in place of its own: cross-attention.

    Attributes:
      keys, values: `[B, M, E]`, which become keys and values.
      valid: `[B, M]` bool; None if all tokens exist.
    """

    keys: Array
    values: Array
    valid: Array | None


HEADS = "heads"
"""The name of the sum of a layer's candidates among what a backward pass may keep."""


def head_keys(config: TransformerConfig, layer: int | Array) -> Array:
    """`[H]` PRNG keys of a layer's heads, from (seed, layer, head) alone."""
    # Folded and not split: the key of a head does not depend on how many heads there are.
    key = jax.random.fold_in(jax.random.key(config.seed), layer)
    return jax.vmap(lambda head: jax.random.fold_in(key, head))(jnp.arange(config.heads))


def rms_norm(y: Array, gain: Array | None = None, eps: float = 1e-6) -> Array:
    """`gain y / sqrt(mean(y^2) + eps)` over the last axis, in float32 or wider."""
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    # The epsilon keeps the gradient of a row of zeros finite.
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)
    if gain is not None:
        wide = wide * gain
    return wide.astype(y.dtype)


def branch_norm(y: Array) -> Array:
    """RMS norm over D without parameters for each token and head.

    Without it a mixture's weights measure how large an attention's outputs are, not how useful.
    """
    return rms_norm(y)


class Projections(nnx.Module):
    """W_q `[E, H, D]`, W_k and W_v `[E, kv_heads, D]`, W_o `[H, D, E]`, and what stands around them.

    That is, where the config has them, biases, short convolutions and norms of queries, keys and
    values, and a gate of the output. The bias behind W_o is the block's: candidates with
    projections of their own would add it several times.
    """

    def __init__(self, config: TransformerConfig, layer: int, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.rotary = config.positions == "rotary" and layer not in config.nope_layers
        e, h, d = config.model_dim, config.heads, config.head_dim
        kv = h // config.sharing

        def normal(shape: tuple[int, ...], fan_in: int) -> nnx.Param[Array]:
            return nnx.Param(jax.random.normal(rngs.params(), shape) / np.sqrt(fan_in))

        # Drawn in this order, which decides the weights of a seed.
        self.q = normal((e, h, d), e)
        self.k = normal((e, kv, d), e)
        self.v = normal((e, kv, d), e)
        self.o = normal((h, d, e), h * d)
        if config.qk_norm:
            q_gains: tuple[int, ...] = (h, d)
            k_gains: tuple[int, ...] = (kv, d)
            if config.qk_norm_shared:
                q_gains = k_gains = (d,)
            self.q_norm = nnx.Param(jnp.ones(q_gains))
            self.k_norm = nnx.Param(jnp.ones(k_gains))
        if config.qkv_bias:
            self.q_bias = nnx.Param(jnp.zeros((h, d)))
            self.k_bias = nnx.Param(jnp.zeros((kv, d)))
            self.v_bias = nnx.Param(jnp.zeros((kv, d)))
        if config.short_conv:
            width = config.short_conv
            self.q_conv = normal((width, h, d), width)
            self.k_conv = normal((width, kv, d), width)
            self.v_conv = normal((width, kv, d), width)
        if config.output_gate != "none":
            self.gate = normal((e, h, d), e)

    def inputs(
        self,
        x: Array,
        valid: Array | None,
        keys: Array | None,
        queries: int | None = None,
        context: Context | None = None,
    ) -> Inputs:
        """Queries, keys and values `[B, N, H, D]` of x `[B, N, E]`, in its dtype.

        Keys and values that heads share are repeated. With `queries` there are queries of the first
        tokens alone, so many of them. With a `context` of M tokens keys and values are those of the
        context, `[B, M, H, D]`.
        """
        config = self.config
        q, k, v = self.projected(x, queries, context)
        if config.short_conv:
            exists = valid
            if exists is None:
                exists = jnp.ones(x.shape[:2], bool)
            q = convolved(q, exists[:, :queries], self.q_conv[...])
            k = convolved(k, exists, self.k_conv[...])
            v = convolved(v, exists, self.v_conv[...])
        # The norm comes first: its gains, after a rotation, would make scores depend on positions
        # and not on distances alone.
        q, k = self.normed(q, k)
        if self.rotary:
            q, k = rotate(q, config.rope_theta), rotate(k, config.rope_theta)
        if config.sharing > 1:
            k = jnp.repeat(k, config.sharing, axis=2)
            v = jnp.repeat(v, config.sharing, axis=2)
        slopes = self.slopes(q.dtype)
        inputs = Inputs(
            q,
            k,
            v,
            x,
            valid,
            keys,
            slopes,
            config.attention_dropout,
            config.kernel,
            target=config.target,
        )
        if context is None:
            return inputs
        if valid is None:
            valid = jnp.ones(x.shape[:2], bool)
        return dataclasses.replace(inputs, valid=context.valid, query_valid=valid)

    def projected(
        self, x: Array, queries: int | None = None, context: Context | None = None
    ) -> tuple[Array, Array, Array]:
        """Queries `[B, N, H, D]`, keys and values `[B, N, kv_heads, D]` of x, with their biases.

        With a `context` of M tokens keys and values are those of the context.
        """
        of_keys = of_values = x
        if context is not None:
            of_keys, of_values = context.keys, context.values
        q = project(x[:, :queries], self.q)
        k, v = project(of_keys, self.k), project(of_values, self.v)
        if self.config.qkv_bias:
            q = q + self.q_bias[...].astype(q.dtype)
            k = k + self.k_bias[...].astype(k.dtype)
            v = v + self.v_bias[...].astype(v.dtype)
        return q, k, v

    def normed(self, q: Array, k: Array) -> tuple[Array, Array]:
        """Queries and keys after their norm, where the config has one."""
        if not self.config.qk_norm:
            return q, k
        eps = self.config.norm_eps
        return rms_norm(q, self.q_norm[...], eps), rms_norm(k, self.k_norm[...], eps)

    def slopes(self, dtype: DTypeLike) -> Array | None:
        """Those of ALiBi, `[H]`, where the config has them."""
        if self.config.positions != "alibi":
            return None
        return jnp.asarray(alibi_slopes(self.config.heads), dtype)

    def output(self, y: Array, x: Array) -> Array:
        """Heads `[B, N, H, D]` to `[B, N, E]`; x `[B, N, E]` is what the layer read.

        The gate comes after the norm of the heads, as in GLA (Yang et al. 2023, arXiv:2312.06635,
        section 4.4): y * act(x W_g).
        """
        if self.config.output_gate != "none":
            # y may be of the first token alone.
            gate = project(x[:, : y.shape[1]], self.gate)
            y = y * GATES[self.config.output_gate](gate)
        return jnp.einsum("bnhd,hde->bne", y, self.o[...].astype(y.dtype))


def project(x: Array, matrix: nnx.Param[Array]) -> Array:
    """`[B, N, E]` to `[B, N, H, D]`, in the dtype of x."""
    return jnp.einsum("bne,ehd->bnhd", x, matrix[...].astype(x.dtype))


GATES = {"sigmoid": jax.nn.sigmoid, "silu": jax.nn.silu}
"""The activations of `output_gate`."""


def convolved(x: Array, valid: Array, kernel: Array) -> Array:
    """SiLU of a causal convolution along N, for each head and number apart.

    y_n = silu(sum_j kernel_j x_(n-j)), where padding counts as zero. Dao and Gu 2024,
    arXiv:2405.21060, section 7, which convolves what becomes queries, keys and values.

    Args:
      x: `[B, N, H, D]`.
      valid: `[B, N]`.
      kernel: `[W, H, D]`, the token itself first.
    """
    n, width = x.shape[1], kernel.shape[0]
    x = jnp.where(valid[..., None, None], x, 0)
    padded = jnp.pad(x, ((0, 0), (width - 1, 0), (0, 0), (0, 0)))
    total = jnp.zeros_like(x)
    # A sum of a few shifted copies is quicker on a CPU than XLA's convolution with many groups.
    for j in range(width):
        start = width - 1 - j
        total = total + padded[:, start : start + n] * kernel[j].astype(x.dtype)
    return jax.nn.silu(total)


class GroupedHeads(nnx.Module):
    """A derived layer: heads grouped by attention, each attention run once, on its group."""

    saves_by_first_token: ClassVar[bool] = True

    def __init__(
        self, config: TransformerConfig, genotype: Genotype, layer: int, *, rngs: nnx.Rngs
    ) -> None:
        self.config, self.genotype, self.layer = config, genotype, layer
        self.groups = genotype.groups(layer)
        self.projections = nnx.List([Projections(config, layer, rngs=rngs)])
        parameters = []
        for attention, heads in self.groups:
            parameters.append(own_parameters(attention, config, len(heads), rngs))
        # "own" is a key of saved weights: the parameters that attentions have beside projections.
        self.own = nnx.data(parameters)

    def __call__(
        self,
        x: Array,
        valid: Array,
        mixture: Array | None,
        *,
        train: bool,
        key: Array | None,
        layer: Array | None = None,
        first_token: bool = False,
    ) -> Array:
        """See `Mixer`."""
        return self.mix(
            x, valid, mixture, train=train, key=key, layer=layer, first_token=first_token
        )

    def mix(
        self,
        x: Array,
        valid: Array | None,
        mixture: Array | None,
        *,
        train: bool,
        key: Array | None,
        layer: Array | None = None,
        first_token: bool = False,
        context: Context | None = None,
        causal: bool | None = None,
    ) -> Array:
        """As `Mixer`, for any layer of heads.

        `valid` may be None, where all tokens exist. With a `context` keys and values are of that
        sequence. `causal` stands for the config's.
        """
        config = with_causal(self.config, causal)
        attentions = [attention for attention, _ in self.groups]
        keys = None
        if any(a.traits.stochastic for a in attentions):
            # Of all heads of the layer: a group takes those of its heads, as the supernet did.
            keys = head_keys(self.config, self.layer if layer is None else layer)
        # Full attention computes each query apart; the others share work among them.
        queries = None
        if first_token and all(isinstance(a, Full) for a in attentions):
            queries = 1
        inputs = self.projections[0].inputs(x, valid, keys, queries, context)
        outputs = []
        for (attention, heads), parameters in zip(self.groups, self.own, strict=True):
            group, noise = inputs, key
            if len(self.groups) > 1:
                group = take_heads(inputs, heads)
                if key is not None:
                    # By the first head: groups must not drop the same weights.
                    noise = jax.random.fold_in(key, heads[0])
            y = attend(
                attention,
                values(parameters),
                group,
                config,
                train=train,
                key=noise,
                first_token=first_token,
            )
            outputs.append(y)
        return self.projections[0].output(self.joined(outputs), x)

    def joined(self, outputs: list[Array]) -> Array:
        """The outputs of all groups with their heads in order, `[B, N, H, D]`."""
        if len(outputs) == 1:
            return outputs[0]
        # Heads stand group by group: put them back in their order.
        grouped = np.concatenate([heads for _, heads in self.groups])
        return jnp.concatenate(outputs, axis=2)[:, :, np.argsort(grouped)]


def attend(
    attention: Attention,
    params: Params,
    inputs: Inputs,
    config: TransformerConfig,
    *,
    train: bool,
    key: Array | None,
    first_token: bool = False,
) -> Array:
    """One attention on its heads, normalized if the config says so: `[B, N, H, D]`.

    The members of a parallel attention are normalized one by one. With `first_token` the result is
    that of the first token alone, `[B, 1, H, D]`, for which full attention needs one query. On
    several devices each computes its own examples (`by_examples`).
    """

    def mix(params: Params, inputs: Inputs, key: Array | None) -> Array:
        return _attend(
            attention, params, inputs, config, train=train, key=key, first_token=first_token
        )

    return by_examples(mix, params, inputs, key)


def _attend(
    attention: Attention,
    params: Params,
    inputs: Inputs,
    config: TransformerConfig,
    *,
    train: bool,
    key: Array | None,
    first_token: bool,
) -> Array:
    """`attend` on one device."""
    if isinstance(attention, Parallel):
        total: Array | int = 0
        for m, (member, share) in enumerate(attention.weighted):
            y = _attend(
                member,
                params.get(str(m), {}),
                inputs,
                config,
                train=train,
                key=attention.member_key(key, m),
                first_token=first_token,
            )
            total = total + y * jnp.asarray(share, y.dtype)
        return jnp.asarray(total)
    if first_token and isinstance(attention, Full):
        y = attention.first(inputs, train=train, key=key)
    else:
        y = attention(params, inputs, causal=config.causal, train=train, key=key)
        if first_token:
            y = y[:, :1]
    if config.branch_norm:
        y = branch_norm(y)
    return y


def with_causal(config: TransformerConfig, causal: bool | None) -> TransformerConfig:
    """The config with another `causal`; None keeps its own."""
    if causal is None or causal == config.causal:
        return config
    return dataclasses.replace(config, causal=causal)


def require_all(attentions: Iterable[Attention], config: TransformerConfig) -> None:
    """Raise `InputError` for the first of `attentions` that does not work in the model."""
    for attention in attentions:
        require(
            attention,
            causal=config.causal,
            length=config.tokens,
            positions=config.positions,
            dropout=config.attention_dropout,
            head_dim=config.head_dim,
        )


def own_parameters(
    attention: Attention, config: TransformerConfig, heads: int, rngs: nnx.Rngs
) -> Any:
    """An attention's own parameters as NNX variables."""
    return jax.tree.map(nnx.Param, attention.init(rngs.params(), config.attention_shape(heads)))


def values(parameters: Any) -> Params:
    """The arrays behind `own_parameters`."""
    return jax.tree.map(
        lambda variable: variable[...],
        parameters,
        is_leaf=lambda leaf: isinstance(leaf, nnx.Variable),
    )


def take_heads(inputs: Inputs, heads: tuple[int, ...]) -> Inputs:
    """The inputs of some heads."""
    index = np.array(heads)
    keys, slopes = inputs.head_keys, inputs.slopes
    if keys is not None:
        keys = keys[index]
    if slopes is not None:
        slopes = slopes[index]
    return dataclasses.replace(
        inputs,
        q=inputs.q[:, :, index],
        k=inputs.k[:, :, index],
        v=inputs.v[:, :, index],
        head_keys=keys,
        slopes=slopes,
    )
