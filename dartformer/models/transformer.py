"""The Transformer: embed, pre-norm blocks, pool, classify. What mixes tokens in a block is given to
it.

`transformer(config, genotype)` is the derived model; `dartformer.models.supernet` puts a mixture in the
same places. Layers, heads, head width, model width and feed-forward width are free of one another:
heads times head width need not be the model width (Wide Attention, arXiv 2210.00640, widens the
heads and leaves E alone)."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dartformer.attention.base import Attention, Inputs, Params, Shape, require
from dartformer.attention.full import Full
from dartformer.attention.parallel import Parallel
from dartformer.errors import InputError, unknown
from dartformer.fields import check_types
from dartformer.kernels.flash import KERNELS, choose
from dartformer.space.genotype import Genotype

Weights = dict[str, Any]
"""Network parameters: a nested dict of arrays."""

STEMS = ("none", "bigram")
POSITIONS = ("learned", "sinusoidal", "rotary", "alibi", "none")
POOLING = ("mean", "cls", "last", "none")
CLASSIFIERS = ("linear", "mlp")
PAIRS = ("interaction", "concat")
DTYPES = ("float32", "bfloat16", "float64")
CHOICES = {
    "stem": STEMS,
    "positions": POSITIONS,
    "pooling": POOLING,
    "classifier": CLASSIFIERS,
    "pair": PAIRS,
    "dtype": DTYPES,
    "kernel": KERNELS,
}
"""What the fields of `TransformerOptions` that are names can be."""


def _require_count(name: str, value: object, least: int) -> None:
    """Raise `InputError` unless a field is a whole number of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise InputError(f"model.{name} must be a whole number of at least {least}, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """What a user chooses of a Transformer: the section `model` of a config.

    Attributes:
      layers: L, at least 1.
      heads: H, heads of queries in each layer.
      head_dim: D, the width of a head; heads * head_dim need not be model_dim.
      model_dim: E, the width of the residual stream.
      mlp_dim: hidden width of the feed-forward layers.
      kv_heads: heads of keys and values, each shared by heads / kv_heads neighbouring heads of
        queries (Ainslie et al. 2023, arXiv:2305.13245); it must divide heads. 0: as many as heads.
      stem: what else a token's embedding holds: "none", or "bigram", a learned row for the token
        before it, so that a single layer of attention can find what follows a given token.
      positions: added to the embeddings, "learned" or "sinusoidal"; inside the attentions, where
        these can take them, "rotary" (see `rotate`) or "alibi" (see `alibi_slopes`); or "none".
      qk_norm: RMS norm of every query and key, with a learned gain for each head and number (Henry
        et al. 2020, arXiv:2010.04245; in this form Gemma Team 2025, arXiv:2503.19786), before
        positions.
      pooling: over valid tokens: "mean", "cls" (a learned token put in front), "last" (for causal
        models), or "none" (an answer for every token).
      classifier: "linear", or "mlp" (one hidden ReLU layer of mlp_dim, as in Long Range Arena; for
        two documents a second one of half the width).
      pair: what the classifier sees of two documents u and v: "interaction", [u, v, u*v, u-v] (as
        published for natural-language inference), or "concat", [u, v].
      dropout: rate on embeddings and on both residual branches, in training.
      attention_dropout: rate inside the attentions, in training; what it drops is the attention's
        `Traits.dropout`.
      branch_norm: parameter-free RMS norm of every attention's output, per token and head (see
        `supernet`).
      dtype: of activations; parameters are float32 (float64 if the activations are), and so is
        softmax.
      kernel: how softmax over all tokens is computed: "auto", the first that can of "cudnn" (on a
        GPU), "chunked" (no array of N x N) and "dense"; or one of these by name.
      scan: a supernet of at least so many layers runs them as one loop, which compiles one layer in
        place of all; 0: never.
    """

    layers: int = 2
    heads: int = 4
    head_dim: int = 16
    model_dim: int = 64
    mlp_dim: int = 128
    kv_heads: int = 0
    stem: str = "none"
    positions: str = "learned"
    qk_norm: bool = False
    pooling: str = "mean"
    classifier: str = "linear"
    pair: str = "interaction"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    branch_norm: bool = True
    dtype: str = "float32"
    kernel: str = "auto"
    scan: int = 3

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("layers", "heads", "head_dim", "model_dim", "mlp_dim"):
            _require_count(name, getattr(self, name), 1)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown(f"model.{name}", getattr(self, name), choices)
        _require_count("scan", self.scan, 0)
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"model.{name} must be at least 0 and below 1, got {getattr(self, name)!r}."
                )
        kv_heads = self.kv_heads or self.heads
        if not isinstance(kv_heads, int) or kv_heads < 0 or self.heads % kv_heads:
            raise InputError(
                f"model.kv_heads must divide model.heads = {self.heads}, or be 0 for as many; "
                f"got {self.kv_heads!r}."
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise InputError(
                f"model.positions = 'rotary' turns pairs of numbers: model.head_dim must be even, "
                f"got {self.head_dim}."
            )


@dataclass(frozen=True)
class TransformerConfig(TransformerOptions):
    """Sizes and choices of a Transformer, whatever its attentions.

    Attributes:
      vocabulary: token ids, 0 among them, which is padding.
      classes: labels.
      length: the longest input in tokens.
      causal: no token sees a later one.
      seed: of fixed randomness inside attentions (random graphs, features, rotations).
      inputs: documents of an example: 1, or 2, which one encoder reads one by one.
      features: numbers of a token, `[B, N, F]`, where tokens are not ids; 0 where they are.
    """

    vocabulary: int
    classes: int
    length: int
    causal: bool = False
    seed: int = 0
    inputs: int = 1
    features: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocabulary", "classes", "length"):
            _require_count(name, getattr(self, name), 1)
        # Raises where the kernel that is named cannot compute this shape.
        choose(
            self.kernel,
            jnp.dtype(self.dtype),
            self.head_dim,
            self.tokens,
            slopes=self.positions == "alibi",
            dropout=self.attention_dropout,
        )
        if self.causal and self.pooling in ("mean", "cls"):
            raise InputError(
                f"model.pooling={self.pooling!r} does not work with a causal task. Use 'last' or "
                f"'none'."
            )
        if self.inputs not in (1, 2):
            raise InputError(f"a model reads 1 or 2 documents, got {self.inputs!r}.")
        if self.inputs == 2 and self.pooling == "none":
            raise InputError(
                "model.pooling='none' labels tokens, and cannot compare two documents."
            )
        if self.features and self.stem != "none":
            raise InputError(
                f"model.stem={self.stem!r} needs tokens that are ids; this task's are numbers."
            )

    @property
    def pooled(self) -> int:
        """Numbers that the classifier sees of an example."""
        return self.model_dim * (1 if self.inputs == 1 else 4 if self.pair == "interaction" else 2)

    def blank(
        self, batch: Any, length: Any = None
    ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shapes of tokens `[B, N]`, `[B, 2, N]` or `[B, N, F]` and of `valid`, without the
        last."""
        n = self.length if length is None else length
        shape = (batch, 2, n) if self.inputs == 2 else (batch, n)
        ids = jax.ShapeDtypeStruct(shape, jnp.int32)
        return (
            jax.ShapeDtypeStruct((*shape, self.features), jnp.float32) if self.features else ids,
            jax.ShapeDtypeStruct(shape, jnp.bool_),
        )

    @property
    def tokens(self) -> int:
        """The longest sequence inside the network: `length`, and one more for a CLS token."""
        return self.length + (self.pooling == "cls")

    @property
    def sharing(self) -> int:
        """How many heads of queries share one of keys and values."""
        return self.heads // (self.kv_heads or self.heads)

    def attention_shape(
        self,
        heads: int | None = None,
        *,
        kv_heads: int = 0,
        batch: int = 1,
        length: int | None = None,
    ) -> Shape:
        """The `Shape` of an attention over `heads` of the heads, whose keys and values are those of
        `kv_heads`."""
        return Shape(
            length=self.tokens if length is None else length,
            heads=heads or self.heads,
            kv_heads=kv_heads,
            head_dim=self.head_dim,
            model_dim=self.model_dim,
            batch=batch,
            itemsize=np.dtype(jnp.dtype(self.dtype)).itemsize,
        )


class Mixer(Protocol):
    """What a block puts between its two normalisations: tokens in, tokens out, `[B, N, E]`.

    One that can stand for any layer of a scan also takes `layer`, a number that is traced; one that
    can save work where nothing but the first token is wanted takes `first`, and gives `[B, 1, E]`.
    """

    def __call__(
        self, x: Array, valid: Array, mixture: Array | None, *, train: bool, key: Array | None
    ) -> Array: ...


def head_keys(config: TransformerConfig, layer: int | Array) -> Array:
    """`[H]` PRNG keys of a layer's heads, from (seed, layer, head) alone."""
    key = jax.random.fold_in(jax.random.key(config.seed), layer)
    return jax.vmap(lambda h: jax.random.fold_in(key, h))(jnp.arange(config.heads))


def rms_norm(y: Array, gain: Array | None = None) -> Array:
    """`gain y / sqrt(mean(y^2) + 1e-6)` over the last axis, in float32 or wider."""
    wide = y.astype(jnp.promote_types(y.dtype, jnp.float32))
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
    return (wide if gain is None else wide * gain).astype(y.dtype)


def branch_norm(y: Array) -> Array:
    """RMS norm over D without parameters for each token and head.

    Without it a mixture's weights measure how large an attention's outputs are, not how useful.
    """
    return rms_norm(y)


def rotate(x: Array) -> Array:
    """x `[B, N, H, D]` with the pairs (i, i + D/2) of token n turned by the angle n / 10000^(2 i /
    D).

    The dot product of a turned query and a turned key depends on their distance and on no position
    (Su et al. 2021, arXiv:2104.09864, equation 34; halves for pairs, as in GPT-NeoX). In float32 or
    wider."""
    half = x.shape[-1] // 2
    angle = np.arange(x.shape[1])[:, None] / 10_000 ** (np.arange(half) / half)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    cos, sin = (jnp.asarray(f(angle), dtype)[:, None] for f in (np.cos, np.sin))
    first, second = x[..., :half].astype(dtype), x[..., half:].astype(dtype)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
        x.dtype
    )


def alibi_slopes(heads: int) -> np.ndarray:
    """`[H]`: 2^(-8 (h + 1) / H); if H is not a power of two, of the next smaller one, and every
    second of its double.

    Press et al. 2022, arXiv:2108.12409, section 3 and the authors' code.
    """
    power = 2 ** int(np.log2(heads))
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power + 1, 2) / power)
    return np.concatenate([slopes, between[: heads - power]])


class Projections(nnx.Module):
    """W_q `[E, H, D]`, W_k and W_v `[E, kv_heads, D]` and W_o `[H, D, E]`, without biases; gains of
    q/k norm."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        e, h, d = config.model_dim, config.heads, config.head_dim
        kv = h // config.sharing

        def normal(shape: tuple[int, ...], fan_in: int) -> nnx.Param[Any]:
            return nnx.Param(jax.random.normal(rngs.params(), shape) / np.sqrt(fan_in))

        self.q, self.k, self.v = (normal((e, n, d), e) for n in (h, kv, kv))
        self.o = normal((h, d, e), h * d)
        if config.qk_norm:
            self.q_norm, self.k_norm = (nnx.Param(jnp.ones((n, d))) for n in (h, kv))

    def inputs(
        self, x: Array, valid: Array, keys: Array | None, queries: int | None = None
    ) -> Inputs:
        """Queries, keys and values `[B, N, H, D]` of x `[B, N, E]`, in its dtype; shared heads are
        repeated.

        Queries of the first `queries` tokens alone; of all if None.
        """
        config = self.config
        q, k, v = (
            jnp.einsum("bne,ehd->bnhd", y, w[...].astype(x.dtype))
            for y, w in ((x[:, :queries], self.q), (x, self.k), (x, self.v))
        )
        if config.qk_norm:
            q, k = (rms_norm(y, g[...]) for y, g in ((q, self.q_norm), (k, self.k_norm)))
        if config.positions == "rotary":
            q, k = rotate(q), rotate(k)
        if config.sharing > 1:
            k, v = (jnp.repeat(y, config.sharing, axis=2) for y in (k, v))
        slopes = (
            jnp.asarray(alibi_slopes(config.heads), q.dtype)
            if config.positions == "alibi"
            else None
        )
        return Inputs(q, k, v, x, valid, keys, slopes, config.attention_dropout, config.kernel)

    def output(self, y: Array) -> Array:
        """`[B, N, H, D]` to `[B, N, E]`."""
        return jnp.einsum("bnhd,hde->bne", y, self.o[...].astype(y.dtype))


class GroupedHeads(nnx.Module):
    """A derived layer: heads grouped by attention, each attention run once, on its group."""

    def __init__(
        self, config: TransformerConfig, genotype: Genotype, layer: int, *, rngs: nnx.Rngs
    ) -> None:
        self.config, self.layer, self.groups = config, layer, genotype.groups(layer)
        self.projections = nnx.List([Projections(config, rngs=rngs)])
        self.own = nnx.data(
            [own_parameters(a, config, len(heads), rngs) for a, heads in self.groups]
        )

    def __call__(
        self,
        x: Array,
        valid: Array,
        mixture: Array | None,
        *,
        train: bool,
        key: Array | None,
        first: bool = False,
    ) -> Array:
        stochastic = any(a.traits.stochastic for a, _ in self.groups)
        alone = first and all(isinstance(a, Full) for a, _ in self.groups)
        inputs = self.projections[0].inputs(
            x,
            valid,
            head_keys(self.config, self.layer) if stochastic else None,
            1 if alone else None,
        )
        if len(self.groups) == 1:
            ((attention, _),) = self.groups
            y = attend(
                attention,
                values(self.own[0]),
                inputs,
                self.config,
                train=train,
                key=key,
                first=first,
            )
        else:
            parts = [
                attend(
                    a,
                    values(own),
                    take_heads(inputs, heads),
                    self.config,
                    train=train,
                    first=first,
                    key=None if key is None else jax.random.fold_in(key, heads[0]),
                )
                for (a, heads), own in zip(self.groups, self.own, strict=True)
            ]
            order = np.argsort(np.concatenate([heads for _, heads in self.groups]))
            y = jnp.concatenate(parts, axis=2)[:, :, order]
        return self.projections[0].output(y)


def attend(
    attention: Attention,
    params: Params,
    inputs: Inputs,
    config: TransformerConfig,
    *,
    train: bool,
    key: Array | None,
    first: bool = False,
) -> Array:
    """One attention on its heads, normalised if the config says so: `[B, N, H, D]`; each member of
    a parallel one.

    Of the first token alone, `[B, 1, H, D]`, if `first`: then full attention needs one query.
    """
    if isinstance(attention, Parallel):
        total: Any = 0
        for m, (one, share) in enumerate(attention.weighted):
            y = attend(
                one,
                params.get(str(m), {}),
                inputs,
                config,
                train=train,
                key=attention.member_key(key, m),
                first=first,
            )
            total = total + y * jnp.asarray(share, y.dtype)
        return total
    if first and isinstance(attention, Full):
        y = attention.first(inputs, train=train, key=key)
    else:
        y = attention(params, inputs, causal=config.causal, train=train, key=key)
        y = y[:, :1] if first else y
    return branch_norm(y) if config.branch_norm else y


def require_all(attentions: Iterable[Attention], config: TransformerConfig) -> None:
    """Raise `InputError` for the first of `attentions` that cannot do what the model asks of it."""
    for one in attentions:
        require(
            one,
            causal=config.causal,
            length=config.tokens,
            positions=config.positions,
            dropout=config.attention_dropout,
        )


def own_parameters(
    attention: Attention, config: TransformerConfig, heads: int, rngs: nnx.Rngs
) -> Any:
    """An attention's own parameters as NNX variables."""
    return jax.tree.map(nnx.Param, attention.init(rngs.params(), config.attention_shape(heads)))


def values(own: Any) -> Params:
    """The arrays behind `own_parameters`."""
    return jax.tree.map(lambda v: v[...], own, is_leaf=lambda v: isinstance(v, nnx.Variable))


def take_heads(inputs: Inputs, heads: tuple[int, ...]) -> Inputs:
    """The inputs of some heads."""
    index = np.array(heads)
    keys = None if inputs.head_keys is None else inputs.head_keys[index]
    slopes = None if inputs.slopes is None else inputs.slopes[index]
    return dataclasses.replace(
        inputs,
        q=inputs.q[:, :, index],
        k=inputs.k[:, :, index],
        v=inputs.v[:, :, index],
        head_keys=keys,
        slopes=slopes,
    )


class Block(nnx.Module):
    """Pre-norm: x + mixer(LN(x)), then x + MLP(LN(x)) with GELU."""

    def __init__(self, config: TransformerConfig, mixer: Mixer, *, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype(config.dtype)
        self.mixer = mixer
        self.norm_mixer = nnx.LayerNorm(config.model_dim, dtype=dtype, rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(config.model_dim, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(config.model_dim, config.mlp_dim, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(config.mlp_dim, config.model_dim, dtype=dtype, rngs=rngs)
        self.rate = config.dropout

    def __call__(
        self,
        x: Array,
        valid: Array,
        mixture: Array | None,
        *,
        train: bool,
        key: Array | None,
        **special: Any,
    ) -> Array:
        keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
        y = self.mixer(self.norm_mixer(x), valid, mixture, train=train, key=keys[0], **special)
        x = x[:, :1] if special.get("first") else x
        x = x + dropout(y, self.rate, train, keys[1])
        y = self.down(nnx.gelu(self.up(self.norm_mlp(x))))
        return x + dropout(y, self.rate, train, keys[2])


class Transformer(nnx.Module):
    """tokens `[B, N]`, valid `[B, N]`, mixture `[L, H, K]` or None, to logits `[B, C]` (or `[B, N,
    C]`).

    Of two documents tokens and valid are `[B, 2, N]`; tokens that are not ids are `[B, N, F]`. With
    `scan` the layers, which must be alike, are one loop: weights are stacked on the way in, and
    stand layer by layer outside."""

    def __init__(
        self,
        config: TransformerConfig,
        mixers: Callable[[int, nnx.Rngs], Mixer],
        scan: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        e, dtype = config.model_dim, jnp.dtype(config.dtype)
        self.config, self.scan = config, scan
        if config.features:
            self.embed: nnx.Module = nnx.Linear(config.features, e, dtype=dtype, rngs=rngs)
        else:
            self.embed = nnx.Embed(
                config.vocabulary,
                e,
                dtype=dtype,
                rngs=rngs,
                embedding_init=nnx.initializers.normal(1.0),
            )
        if config.stem == "bigram":
            self.before = nnx.Embed(
                config.vocabulary,
                e,
                dtype=dtype,
                rngs=rngs,
                embedding_init=nnx.initializers.normal(1.0),
            )
        if config.positions == "learned":
            self.positions = nnx.Param(0.1 * jax.random.normal(rngs.params(), (config.tokens, e)))
        if config.pooling == "cls":
            self.cls = nnx.Param(jnp.zeros(e))
        self.blocks = nnx.List(
            [Block(config, mixers(l, rngs), rngs=rngs) for l in range(config.layers)]
        )
        self.norm = nnx.LayerNorm(e, dtype=dtype, rngs=rngs)
        if config.classifier == "mlp":
            self.hidden = nnx.Linear(config.pooled, config.mlp_dim, dtype=dtype, rngs=rngs)
        last = config.mlp_dim if config.classifier == "mlp" else config.pooled
        if config.classifier == "mlp" and config.inputs == 2:
            last = max(config.mlp_dim // 2, 1)
            self.hidden_half = nnx.Linear(config.mlp_dim, last, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(last, config.classes, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        tokens: Array,
        valid: Array,
        mixture: Array | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        config = self.config
        if config.inputs == 2:
            tokens, valid = (
                a.reshape(-1, *a.shape[2:]) for a in (tokens, valid)
            )  # 2 B documents, u v u v ...
        x = self.embed(tokens)
        if config.stem == "bigram":
            # Row t of the second table is read at t + 1; nothing is added where no valid token
            # comes before.
            shifted = self.before(tokens[:, :-1]) * valid[:, :-1, None].astype(x.dtype)
            x = x + jnp.pad(shifted, ((0, 0), (1, 0), (0, 0)))
        if config.pooling == "cls":
            cls = jnp.broadcast_to(self.cls[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([cls, x], 1)
            valid = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
        x = x + self.position_table(x.shape[1], x.dtype)
        keys = None if key is None else jax.random.split(key, config.layers + 1)
        x = dropout(x, config.dropout, train, None if keys is None else keys[-1])
        layers = None if keys is None else keys[:-1]
        if self.scan:
            x = self.loop(x, valid, mixture, layers, train)
        else:
            for l, block in enumerate(self.blocks):
                row, noise = (None if a is None else a[l] for a in (mixture, layers))
                # Nothing reads what the last layer makes of other tokens than CLS: all of it but
                # their keys and values is left out, forward and backward.
                first = (
                    config.pooling == "cls"
                    and l == config.layers - 1
                    and isinstance(block.mixer, GroupedHeads)
                )
                x = block(
                    x, valid, row, train=train, key=noise, **({"first": True} if first else {})
                )
        x = pool(self.norm(x), valid, config.pooling)
        if config.inputs == 2:
            u, v = x.reshape(-1, 2, x.shape[-1]).swapaxes(0, 1)
            x = jnp.concatenate(
                [u, v, u * v, u - v] if config.pair == "interaction" else [u, v], -1
            )
        if config.classifier == "mlp":
            x = nnx.relu(self.hidden(x))
            if config.inputs == 2:
                x = nnx.relu(self.hidden_half(x))
        return self.head(x).astype(jnp.promote_types(x.dtype, jnp.float32))

    def loop(
        self, x: Array, valid: Array, mixture: Array | None, keys: Array | None, train: bool
    ) -> Array:
        """All blocks as one `lax.scan` over their weights."""
        structure = nnx.graphdef(self.blocks[0])
        stacked = jax.tree.map(
            lambda *w: jnp.stack(w), *(nnx.to_pure_dict(nnx.state(b)) for b in self.blocks)
        )

        def body(x: Array, of_layer: Any) -> tuple[Array, None]:
            weights, row, key, layer = of_layer
            return nnx.merge(structure, weights)(
                x, valid, row, train=train, key=key, layer=layer
            ), None

        return jax.lax.scan(body, x, (stacked, mixture, keys, jnp.arange(len(self.blocks))))[0]

    def position_table(self, length: int, dtype: Any) -> Array:
        """What is added to the embeddings of `length` tokens: `[N, E]`, or 0."""
        if length > self.config.tokens:
            raise InputError(
                f"the model takes at most {self.config.length} tokens, got "
                f"{length - (self.config.pooling == 'cls')}."
            )
        if self.config.positions == "learned":
            return self.positions[:length].astype(dtype)
        if self.config.positions == "sinusoidal":
            return jnp.asarray(sinusoids(length, self.config.model_dim), dtype)
        return jnp.zeros((), dtype)


def dropout(x: Array, rate: float, train: bool, key: Array | None) -> Array:
    """Inverted dropout; nothing outside training. Raises if it is asked for without a key."""
    if not train or rate == 0:
        return x
    if key is None:
        raise ValueError(f"dropout of {rate} in training needs a key.")
    return nnx.Dropout(rate)(x, deterministic=False, rngs=key)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Sinusoidal positions `[N, E]` (Vaswani et al. 2017, section 3.5): sines first, then
    cosines."""
    half = (width + 1) // 2
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(half)[None] / max(half - 1, 1))
    return np.concatenate([np.sin(angle), np.cos(angle)], 1)[:, :width].astype(np.float32)


def pool(x: Array, valid: Array, how: str) -> Array:
    """`[B, N, E]` to `[B, E]`: the mean over valid tokens, the first token, the last valid one; or
    all of them."""
    if how == "mean":
        total = jnp.sum(jnp.where(valid[..., None], x, 0), 1)
        return total / jnp.maximum(valid.sum(1), 1)[:, None].astype(x.dtype)
    if how == "cls":
        return x[:, 0]
    if how == "last":
        n = valid.shape[1]
        last = jnp.max(jnp.where(valid, jnp.arange(n), 0), 1)
        return jnp.take_along_axis(x, last[:, None, None], 1)[:, 0]
    return x


class Network(NamedTuple):
    """A network as two pure functions; the weights are an argument.

    init: key -> weights. apply: (weights, tokens [B, N], valid [B, N], mixture [L, H, K] or None,
    *, train, key) -> logits."""

    init: Callable[[Array], Weights]
    apply: Callable[..., Array]


def network(
    config: TransformerConfig, mixers: Callable[[int, nnx.Rngs], Mixer], scan: bool = False
) -> Network:
    """The pure functions behind a `Transformer` with `mixers(layer, rngs)` in its blocks, as one
    loop if `scan`."""

    def make(key: Array) -> Transformer:
        return Transformer(config, mixers, scan, rngs=nnx.Rngs(params=key))

    structure, _ = nnx.split(nnx.eval_shape(lambda: make(jax.random.key(0))))

    def init(key: Array) -> Weights:
        # Not one program: drawing compiles once for each shape, where a program would compile it
        # for each parameter.
        weights = nnx.to_pure_dict(nnx.state(make(key)))
        if config.dtype == "float64":
            weights = jax.tree.map(lambda w: w.astype(jnp.float64), weights)
        return weights

    def apply(
        weights: Weights,
        tokens: Array,
        valid: Array,
        mixture: Array | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        return nnx.merge(structure, weights)(tokens, valid, mixture, train=train, key=key)

    return Network(init, apply)


def transformer(config: TransformerConfig, genotype: Genotype) -> Network:
    """The derived model: a plain Transformer with the genotype's attentions."""
    if (len(genotype.layers), genotype.heads) != (config.layers, config.heads):
        raise InputError(
            f"the genotype is {len(genotype.layers)}x{genotype.heads} (layers x heads), the model "
            f"{config.layers}x{config.heads}."
        )
    require_all(dict.fromkeys(a for heads in genotype.layers for a in heads), config)
    return network(config, lambda l, rngs: GroupedHeads(config, genotype, l, rngs=rngs))
