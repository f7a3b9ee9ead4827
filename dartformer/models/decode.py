"""A causal Transformer token by token: its cache, a prompt in parallel, and the steps after it.

Padding takes no place: a token's position is the number of valid tokens before it in its row, so
prompts of different lengths continue as each alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from dartformer.attention.base import Attention, Cache, Decoder, Inputs, Params, require_decoding
from dartformer.attention.decoding import KeepsKeys
from dartformer.attention.parallel import Parallel
from dartformer.errors import InputError
from dartformer.models.layerwise import (
    block_of,
    ends_of,
    layer_kinds,
    structure_of,
    weights_of_ends,
)
from dartformer.models.mixers import (
    GroupedHeads,
    Projections,
    branch_norm,
    head_keys,
    values,
)
from dartformer.models.positions import angles, sinusoids, turned
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Block, Transformer, Weights
from dartformer.space.genotype import Genotype


class Advance(Protocol):
    """Tokens that follow those in a cache."""

    def __call__(
        self, weights: Weights, tokens: Array, valid: Array, cache: Cache
    ) -> tuple[Array, Cache]:
        """The logits `[B, C]` after the last valid token of each row, and the cache after it.

        Args:
          weights: of the network.
          tokens: ids `[B, T]`.
          valid: `[B, T]` bool. A row without any stays as it is, and its logits mean nothing.
          cache: is not changed; give it away (`donate_argnums`) to save the copy.
        """
        ...


class Decoding(NamedTuple):
    """A causal network as functions for decoding.

    Attributes:
      init_cache: (rows, tokens of the longest, dtype of keys and values) -> an empty cache.
      prefill: the first tokens, in parallel; the cache must be empty.
      step: further tokens, one or a few at a time.
    """

    init_cache: Callable[[int, int, DTypeLike], Cache]
    prefill: Advance
    step: Advance


class Place(NamedTuple):
    """Where new tokens are, the same in all layers.

    Attributes:
      start: tokens of each row before them, `[B]`.
      position: of each, `[B, T]`.
      valid: `[B, T]`; those that exist come first.
      cos, sin: of the angles of rotary positions, `[B, T, 1, D / 2]`; None without.
    """

    start: Array
    position: Array
    valid: Array
    cos: Array | None
    sin: Array | None


def require_generation(config: TransformerConfig, genotype: Genotype) -> None:
    """Raise `InputError` for a model that cannot continue a text."""
    if not config.causal:
        raise InputError(
            "generation needs a causal model, and every token of this one reads later tokens. "
            "Train one for a causal task such as language."
        )
    if config.pooling != "none" or config.classifier == "none" or config.features:
        raise InputError(
            "generation needs a model that predicts the next token after each token, and this one "
            "does not. Train one for the task language."
        )
    if config.classes != config.vocabulary:
        raise InputError(
            f"generation needs a model whose classes are its tokens, and this one has "
            f"{config.classes} classes and {config.vocabulary} tokens."
        )
    for layer in range(config.layers):
        require_decoding([attention for attention, _ in genotype.groups(layer)])


def can_generate(config: TransformerConfig, genotype: Genotype) -> bool:
    """Whether a model can continue a text."""
    try:
        require_generation(config, genotype)
    except InputError:
        return False
    return True


def decoding(config: TransformerConfig, genotype: Genotype, *, by_layer: bool = False) -> Decoding:
    """The derived model of `transformer(config, genotype)`, with the same weights.

    Args:
      config, genotype: of the model.
      by_layer: `prefill` and `step` run programs that are compiled, one for each layer, and take the
        cache. Layers that are alike share a program, so it takes a fraction of the time to compile.
        They cannot be traced.

    Raises:
      InputError: it cannot continue a text, with the reason.
    """
    require_generation(config, genotype)

    def init_cache(batch: int, length: int, dtype: DTypeLike) -> Cache:
        layers = []
        for layer in range(config.layers):
            layers.append(layer_cache(config, genotype, layer, batch, length, dtype))
        count = jnp.zeros(batch, jnp.int32)
        cache: Cache = {"count": count, "layers": layers}
        if config.stem == "bigram":
            cache["last"] = count
        return cache

    if by_layer:
        return Decoding(init_cache, *_layerwise(config, genotype))
    structure = structure_of(config, genotype)

    def prefill(weights: Weights, tokens: Array, valid: Array, cache: Cache) -> tuple[Array, Cache]:
        return _advanced(nnx.merge(structure, weights), tokens, valid, cache, prompt=True)

    def step(weights: Weights, tokens: Array, valid: Array, cache: Cache) -> tuple[Array, Cache]:
        return _advanced(nnx.merge(structure, weights), tokens, valid, cache, prompt=False)

    return Decoding(init_cache, prefill, step)


def _layerwise(config: TransformerConfig, genotype: Genotype) -> tuple[Advance, Advance]:
    """`prefill` and `step` with programs of their own for the layers, and for the ends of the model."""
    structure, kinds = ends_of(config, genotype), layer_kinds(config, genotype)

    @jax.jit
    def begin(
        weights: Weights, tokens: Array, valid: Array, cache: Cache
    ) -> tuple[Array, Place, Cache]:
        return _begun(nnx.merge(structure, weights), tokens, valid, cache)

    @jax.jit
    def finish(weights: Weights, x: Array, valid: Array) -> Array:
        return _finished(nnx.merge(structure, weights), x, valid)

    def advance(prompt: bool) -> Advance:
        programs = {}
        for layer in set(kinds):
            run = layer_advance(config, genotype, layer, prompt=prompt)
            programs[layer] = jax.jit(run, donate_argnums=3)

        def proceed(
            weights: Weights, tokens: Array, valid: Array, cache: Cache
        ) -> tuple[Array, Cache]:
            ends = weights_of_ends(weights)
            outside = {name: leaf for name, leaf in cache.items() if name != "layers"}
            x, place, after = begin(ends, tokens, valid, outside)
            after["layers"] = []
            for layer, kind in enumerate(kinds):
                x, kept = programs[kind](weights["blocks"][layer], x, place, cache["layers"][layer])
                after["layers"].append(kept)
            return finish(ends, x, place.valid), after

        return proceed

    return advance(True), advance(False)


def layer_advance(
    config: TransformerConfig, genotype: Genotype, layer: int, *, prompt: bool
) -> Callable[[Weights, Array, Place, Cache], tuple[Array, Cache]]:
    """(weights of a block, x `[B, T, E]`, their place, its cache) -> x after it, its cache after."""
    structure = block_of(config, genotype, layer)

    def advance(weights: Weights, x: Array, place: Place, cache: Cache) -> tuple[Array, Cache]:
        return _through(nnx.merge(structure, weights), x, place, cache, prompt)

    return advance


def kept_heads(config: TransformerConfig, heads: tuple[int, ...]) -> tuple[int, ...]:
    """The heads of keys and values that a group of heads reads."""
    return tuple(sorted({head // config.sharing for head in heads}))


class Lent(NamedTuple):
    """Keys and values that one group of heads reads from the cache of another.

    Attributes:
      place: among those that it reads.
      group: that keeps them.
      lender_place: among those that this group keeps.
    """

    place: int
    group: int
    lender_place: int


class Kept(NamedTuple):
    """What a group of heads keeps of the heads of keys and values that it reads.

    Attributes:
      read: how many it reads.
      own: places of those that it keeps, in this order.
      lent: the others, of which the layer keeps all tokens anyway.
    """

    read: int
    own: tuple[int, ...]
    lent: tuple[Lent, ...]


def kept_by_groups(config: TransformerConfig, genotype: Genotype, layer: int) -> list[Kept]:
    """What each group of heads of a layer keeps.

    Where heads share keys and values, a window's are among those of a head that keeps all tokens.
    """
    groups = genotype.groups(layer)
    lenders: dict[int, tuple[int, int]] = {}
    for g, (attention, heads) in enumerate(groups):
        if _is_plain(attention) and not attention.kept().forgets:
            for place, head in enumerate(kept_heads(config, heads)):
                lenders.setdefault(head, (g, place))
    kept = []
    for attention, heads in groups:
        read = kept_heads(config, heads)
        own, lent = [], []
        borrows = _is_plain(attention) and attention.kept().forgets
        for place, head in enumerate(read):
            if borrows and head in lenders:
                lent.append(Lent(place, *lenders[head]))
            else:
                own.append(place)
        kept.append(Kept(len(read), tuple(own), tuple(lent)))
    return kept


def _is_plain(attention: Attention) -> TypeGuard[KeepsKeys]:
    """Whether the cache holds keys and values as they come, and nothing else."""
    if not isinstance(attention, KeepsKeys):
        return False
    own = type(attention)
    changed = (own.init_cache, own.prefill, own.step)
    return changed == (KeepsKeys.init_cache, KeepsKeys.prefill, KeepsKeys.step)


def _with_lent(attention: KeepsKeys, kept: Kept, cache: Cache, own: Cache, start: Array) -> Cache:
    """The cache that a group would have if it kept all that it reads.

    Args:
      attention: of the group.
      kept: what it keeps.
      cache: of the layer.
      own: of the group.
      start: tokens of each row so far, `[B]`.
    """
    layout, rows = attention.kept(), jnp.arange(start.shape[0])[:, None]
    arrays: Cache = {}
    for name in ("k", "v"):
        heads: dict[int, Array] = {}
        for i, place in enumerate(kept.own):
            heads[place] = own[name][:, i]
        for lent in kept.lent:
            lender = cache[str(lent.group)][name]
            # Where all are kept, the slot of a token is its position. An empty slot gets any.
            position = layout.held(start, layout.slots(lender.shape[2]))
            heads[lent.place] = lender[rows, lent.lender_place, jnp.maximum(position, 0)]
        arrays[name] = jnp.stack([heads[place] for place in range(kept.read)], axis=1)
    return arrays


def layer_cache(
    config: TransformerConfig,
    genotype: Genotype,
    layer: int,
    batch: int,
    length: int,
    dtype: DTypeLike,
    number: int | Array | None = None,
) -> Cache:
    """The caches of the groups of heads under their numbers, and that of the short convolution.

    `number` stands for that of the layer where its heads draw what is random.
    """
    if number is None:
        number = layer
    keys = head_keys(config, number)
    cache: Cache = {}
    kept_of_groups = kept_by_groups(config, genotype, layer)
    for g, (attention, heads) in enumerate(genotype.groups(layer)):
        own = kept_of_groups[g].own
        if not own:
            cache[str(g)] = {}
            continue
        shape = config.attention_shape(len(heads), kv_heads=len(own), batch=batch, length=length)
        assert isinstance(attention, Decoder)
        cache[str(g)] = attention.init_cache(shape, dtype, keys[jnp.array(heads)])
    if config.short_conv:
        before, kept = config.short_conv - 1, config.heads // config.sharing
        for name, count in (("q_conv", config.heads), ("k_conv", kept), ("v_conv", kept)):
            cache[name] = jnp.zeros((batch, before, count, config.head_dim), dtype)
    return cache


def _advanced(
    model: Transformer, tokens: Array, valid: Array, cache: Cache, *, prompt: bool
) -> tuple[Array, Cache]:
    """See `Advance`."""
    x, place, after = _begun(model, tokens, valid, cache)
    after["layers"] = []
    for block, kept in zip(model.blocks, cache["layers"], strict=True):
        x, kept = _through(block, x, place, kept, prompt)
        after["layers"].append(kept)
    return _finished(model, x, place.valid), after


def _begun(
    model: Transformer, tokens: Array, valid: Array, cache: Cache
) -> tuple[Array, Place, Cache]:
    """What the first layer reads, `[B, T, E]`, where it is, and the cache but for the layers."""
    if tokens.shape[1] > 1:
        # Stable, so that valid tokens keep their order; the others go behind them.
        order = jnp.argsort(~valid, axis=1, stable=True)
        tokens = jnp.take_along_axis(tokens, order, axis=1)
        valid = jnp.take_along_axis(valid, order, axis=1)
    place = place_of(model.config, cache["count"], valid)
    after: Cache = {"count": cache["count"] + valid.sum(1, dtype=jnp.int32)}
    x, last = _embedded(model, tokens, place, cache.get("last"))
    if last is not None:
        after["last"] = last
    return x, place, after


def _through(
    block: Block, x: Array, place: Place, cache: Cache, prompt: bool
) -> tuple[Array, Cache]:
    """x `[B, T, E]` after a block, and its cache after."""
    assert isinstance(block.mixer, GroupedHeads)
    y, cache = advance_heads(block.mixer, block.read(x), place, cache, prompt)
    return block.added(x, y, False, [None] * 3), cache


def _finished(model: Transformer, x: Array, valid: Array) -> Array:
    """The logits after the last valid token of each row, `[B, C]`."""
    # Only the last token of a row is classified: a vocabulary may be larger than all layers.
    x = _last_of(x, valid.sum(1, dtype=jnp.int32))
    if model.config.norm_place == "before":
        x = model.norm(x)
    return model.classified(x)[:, 0]


def place_of(config: TransformerConfig, start: Array, valid: Array) -> Place:
    """Where tokens are that follow `start` `[B]` others."""
    position = start[:, None] + jnp.arange(valid.shape[1], dtype=jnp.int32)
    if config.positions != "rotary":
        return Place(start, position, valid, None, None)
    dtype = jnp.promote_types(config.dtype, jnp.float32)
    # From a table, and not by cosines of each step: the same numbers as for a whole text.
    angle = angles(config.tokens, config.head_dim, config.rope_theta)
    cos = jnp.asarray(np.cos(angle), dtype)[position]
    sin = jnp.asarray(np.sin(angle), dtype)[position]
    return Place(start, position, valid, cos[:, :, None], sin[:, :, None])


def _last_of(x: Array, count: Array) -> Array:
    """The last of the first `count` `[B]` tokens of x `[B, T, ...]`, `[B, 1, ...]`."""
    index = jnp.maximum(count - 1, 0).reshape(-1, *(1,) * (x.ndim - 1))
    return jnp.take_along_axis(x, index, axis=1)


def _embedded(
    model: Transformer, tokens: Array, place: Place, last: Array | None
) -> tuple[Array, Array | None]:
    """The embeddings `[B, T, E]`, and with the stem "bigram" the last token of each row, `[B]`."""
    config = model.config
    x = model.embed(tokens)
    if last is not None:
        previous = jnp.concatenate([last[:, None], tokens[:, :-1]], axis=1)
        follows = (place.position > 0)[..., None]
        x = x + model.before(previous) * follows.astype(x.dtype)
        # A row without new tokens keeps its last one.
        count = place.valid.sum(1)
        last = jnp.where(count > 0, _last_of(tokens, count)[:, 0], last)
    if config.positions == "learned":
        rows = model.positions[...][config.position_offset + place.position]
        x = x + rows.astype(x.dtype)
    elif config.positions == "sinusoidal":
        table = jnp.asarray(sinusoids(config.tokens, config.model_dim), x.dtype)
        x = x + table[place.position]
    return model.completed(x), last


def advance_heads(
    mixer: GroupedHeads,
    x: Array,
    place: Place,
    cache: Cache,
    prompt: bool,
    number: int | Array | None = None,
) -> tuple[Array, Cache]:
    """The mixer's output `[B, T, E]`, and the layer's cache after the tokens.

    `number` stands for that of the layer where its heads draw what is random.
    """
    config, projections = mixer.config, mixer.projections[0]
    inputs, after = _token_inputs(projections, x, place, cache)
    if not prompt:
        inputs = inputs._replace(start=place.start)
    keys = None
    if any(attention.traits.stochastic for attention, _ in mixer.groups):
        if number is None:
            number = mixer.layer
        keys = head_keys(config, number)
    outputs = []
    kept_of_groups = kept_by_groups(config, mixer.genotype, mixer.layer)
    for g, (attention, heads) in enumerate(mixer.groups):
        group = _of_group(inputs, config, heads, keys)
        params, kept, held = values(mixer.own[g]), kept_of_groups[g], cache[str(g)]
        if kept.lent:
            assert _is_plain(attention)
            held = _with_lent(attention, kept, cache, held, place.start)
        y, new = _proceed(attention, params, group, held, config)
        if kept.lent:
            new = _only(new, kept.own)
        after[str(g)] = new
        outputs.append(y)
    return projections.output(mixer.joined(outputs), x), after


def _only(cache: Cache, places: tuple[int, ...]) -> Cache:
    """Some of the heads of keys and values in a cache."""
    if not places:
        return {}
    return {name: array[:, jnp.array(places)] for name, array in cache.items()}


class _Tokens(NamedTuple):
    """What the attentions of a layer read of new tokens; keys and values are not repeated."""

    q: Array
    k: Array
    v: Array
    x: Array
    valid: Array
    slopes: Array | None
    start: Array | None = None


def _token_inputs(
    projections: Projections, x: Array, place: Place, cache: Cache
) -> tuple[_Tokens, Cache]:
    """Queries, keys and values of new tokens x `[B, T, E]`, and what the convolution keeps."""
    after: Cache = {}
    q, k, v = projections.projected(x)
    if projections.config.short_conv:
        kernels = (projections.q_conv, projections.k_conv, projections.v_conv)
        convolved = []
        for name, array, kernel in zip("qkv", (q, k, v), kernels, strict=True):
            key = f"{name}_conv"
            y, after[key] = convolved_after(array, place.valid, kernel[...], cache[key])
            convolved.append(y)
        q, k, v = convolved
    q, k = projections.normed(q, k)
    if projections.rotary:
        assert place.cos is not None
        assert place.sin is not None
        q, k = turned(q, place.cos, place.sin), turned(k, place.cos, place.sin)
    return _Tokens(q, k, v, x, place.valid, projections.slopes(q.dtype)), after


def convolved_after(x: Array, valid: Array, kernel: Array, last: Array) -> tuple[Array, Array]:
    """`mixers.convolved` of tokens that follow others, and the last tokens for those after them.

    Args:
      x: `[B, T, H, D]`.
      valid: `[B, T]`; those that exist come first.
      kernel: `[W, H, D]`, the token itself first.
      last: the W - 1 tokens before them, `[B, W - 1, H, D]`.
    """
    length, width = x.shape[1], kernel.shape[0]
    reach = jnp.concatenate([last.astype(x.dtype), jnp.where(valid[..., None, None], x, 0)], axis=1)
    total = jnp.zeros_like(x)
    for j in range(width):
        start = width - 1 - j
        total = total + reach[:, start : start + length] * kernel[j].astype(x.dtype)
    index = valid.sum(1)[:, None] + jnp.arange(width - 1)
    kept = jnp.take_along_axis(reach, index[:, :, None, None], axis=1)
    return jax.nn.silu(total), kept.astype(last.dtype)


def _of_group(
    tokens: _Tokens, config: TransformerConfig, heads: tuple[int, ...], keys: Array | None
) -> Inputs:
    """What the heads of one attention read, with the keys and values that they share kept once."""
    kept = kept_heads(config, heads)
    reads = tuple(kept.index(head // config.sharing) for head in heads)
    share = -(-len(heads) // len(kept))
    groups = reads
    if reads == tuple(i // share for i in range(share * len(kept))):
        groups = ()  # neighbours share evenly: nothing need be gathered
    q, k, v, slopes = tokens.q, tokens.k, tokens.v, tokens.slopes
    if len(heads) < config.heads:
        index = jnp.array(heads)
        q = q[:, :, index]
        k, v = k[:, :, jnp.array(kept)], v[:, :, jnp.array(kept)]
        if slopes is not None:
            slopes = slopes[index]
        if keys is not None:
            keys = keys[index]
    return Inputs(
        q,
        k,
        v,
        tokens.x,
        tokens.valid,
        keys,
        slopes,
        kernel=config.kernel,
        target=config.target,
        start=tokens.start,
        groups=groups,
    )


def _proceed(
    attention: Attention, params: Params, inputs: Inputs, cache: Cache, config: TransformerConfig
) -> tuple[Array, Cache]:
    """One attention on its heads as in `mixers.attend`, `[B, T, H, D]`, and its cache after."""
    if isinstance(attention, Parallel):
        total: Any = 0
        caches: Cache = {}
        for m, (member, share) in enumerate(attention.weighted):
            name = str(m)
            y, caches[name] = _proceed(member, params.get(name, {}), inputs, cache[name], config)
            total = total + y * jnp.asarray(share, y.dtype)
        return total, caches
    assert isinstance(attention, Decoder)
    if inputs.start is None:
        y, cache = attention.prefill(params, inputs, cache)
    else:
        y, cache = attention.step(params, inputs, cache)
    if config.branch_norm:
        y = branch_norm(y)
    return y, cache
