"""A layer of one attention, or of one for each head, with projections and a cache."""

from collections.abc import Sequence
from typing import Unpack

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from dartformer import attention as attentions
from dartformer.attention.base import Attention as AttentionType
from dartformer.attention.base import Cache, require_decoding
from dartformer.errors import InputError
from dartformer.models.decode import advance_heads, layer_cache, place_of
from dartformer.models.mixers import GroupedHeads
from dartformer.nn.layer import Call, Layer, Options, layer_config
from dartformer.space.genotype import Genotype

Spec = str | AttentionType
"""An attention, or its text such as "local(window=16)"."""


def parsed(spec: Spec) -> AttentionType:
    """The attention that a text spells; an attention as it is."""
    if isinstance(spec, str):
        return attentions.parse(spec)
    return spec


class Attention(Layer):
    """Attention with its projections, in place of `nnx.MultiHeadAttention`.

    Args:
      spec: an attention, or its text such as "local(window=16)"; or one for each head, such as
        `genotype.layers[0]`.
      model_dim: width E of inputs and outputs.
      heads: of queries.
      rngs: parameters are drawn from `params`, noise from `dropout`.
      options: see `Options`.

    Raises:
      InputError: for an unknown attention or option, or options that do not work together.
    """

    heads: GroupedHeads

    def __init__(
        self,
        spec: Spec | Sequence[Spec],
        model_dim: int,
        heads: int,
        *,
        rngs: nnx.Rngs,
        **options: Unpack[Options],
    ) -> None:
        row = row_of(spec, heads)
        # Without a norm it is what its paper and flax compute.
        options.setdefault("branch_norm", False)
        distinct = tuple(dict.fromkeys(row))
        config = layer_config(distinct, model_dim, heads, options)
        super().__init__(config, distinct, options.get("dtype"), rngs)
        self.heads = GroupedHeads(config, Genotype((row,)), 0, rngs=rngs)

    @property
    def row(self) -> tuple[AttentionType, ...]:
        """The attention of each head."""
        return self.heads.genotype.layers[0]

    def _mix(self, call: Call) -> Array:
        return self.heads.mix(
            call.x,
            call.valid,
            None,
            train=call.train,
            key=call.key,
            layer=self._number(),
            context=call.context,
            causal=call.causal,
        )

    # Token by token.

    def init_cache(self, batch: int, length: int, dtype: DTypeLike = jnp.float32) -> Cache:
        """An empty cache for `batch` rows of at most `length` tokens, keys and values in `dtype`.

        Raises `InputError` where an attention cannot be run token by token.
        """
        require_decoding(self.attentions)
        config = self.config
        if not config.causal:
            raise InputError(
                "decoding needs a causal layer because later tokens change the outputs of others. "
                "Make it with causal=True."
            )
        if config.positions == "rotary" and length > config.tokens:
            raise InputError(
                f"a cache of {length} tokens with rotary positions needs max_length={length} or "
                f"more, and the layer has {config.tokens}."
            )
        genotype = self.heads.genotype
        heads = layer_cache(config, genotype, 0, batch, length, dtype, self._number())
        return {"count": jnp.zeros(batch, jnp.int32), "heads": heads}

    def prefill(self, x: Array, cache: Cache, valid: Array | None = None) -> tuple[Array, Cache]:
        """The output of the first tokens, in parallel, and the cache after them; see `step`.

        The cache must be empty.
        """
        return self._advanced(x, cache, valid, prompt=True)

    def step(self, x: Array, cache: Cache, valid: Array | None = None) -> tuple[Array, Cache]:
        """The output `[B, T, E]` of one token or a few that follow, and the cache after them.

        Args:
          x: `[B, T, E]`.
          cache: of `init_cache`, after the tokens before these.
          valid: which tokens exist, `[B, T]`. Padding takes no place, and its output is zero.
        """
        return self._advanced(x, cache, valid, prompt=False)

    def _advanced(
        self, x: Array, cache: Cache, valid: Array | None, *, prompt: bool
    ) -> tuple[Array, Cache]:
        x = self._sequence("x", x)
        exists = jnp.ones(x.shape[:2], bool)
        if valid is not None:
            exists = jnp.asarray(valid, bool)
        # Stable, so that valid tokens keep their order; the others go behind them.
        order = jnp.argsort(~exists, axis=1, stable=True)
        moved = jnp.take_along_axis(x, order[..., None], axis=1)
        place = place_of(self.config, cache["count"], jnp.take_along_axis(exists, order, axis=1))
        y, heads = advance_heads(self.heads, moved, place, cache["heads"], prompt, self._number())
        y = jnp.take_along_axis(y, jnp.argsort(order, axis=1)[..., None], axis=1)
        if self.config.out_bias:
            y = y + self.out_bias[...].astype(y.dtype)
        count = cache["count"] + exists.sum(1, dtype=jnp.int32)
        return y, {"count": count, "heads": heads}


def row_of(spec: Spec | Sequence[Spec], heads: int) -> tuple[AttentionType, ...]:
    """The attention of each head; one attention is that of all."""
    if isinstance(spec, (str, AttentionType)):
        return (parsed(spec),) * heads
    row = tuple(map(parsed, spec))
    if len(row) != heads:
        raise InputError(f"the row has {len(row)} attentions, and the layer {heads} heads.")
    return row
