"""The Transformer: embed, blocks, pool, classify.

Its blocks are made with mixers from outside: `transformer(config, genotype)` is the derived model,
and `dartformer.models.supernet` puts a mixture in the same places. Layers, heads, head width, model
width and feed-forward width do not depend on one another: heads times head width need not be the
model width (Wide Attention, arXiv 2210.00640, widens the heads and keeps E)."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from dartformer.errors import InputError
from dartformer.models import stacks
from dartformer.models.mixers import HEADS, GroupedHeads, Mixer, require_all
from dartformer.models.positions import sinusoids
from dartformer.models.sharding import pinned
from dartformer.models.sizes import TransformerConfig, require_dtype
from dartformer.space.genotype import Genotype

Weights = stacks.Weights
"""Network parameters: a nested dict of arrays."""

OfLabels = Callable[[Array, Array], Any]
"""(logits `[B, N, C]`, labels `[B, N]`) -> arrays shaped like the labels."""

MixerOf = Callable[[int, nnx.Rngs], Mixer]
"""(layer, rngs) -> the mixer of that layer."""


Norm = nnx.LayerNorm | nnx.RMSNorm

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nnx.gelu, approximate=False),
    "gelu_tanh": nnx.gelu,
    "silu": nnx.silu,
    "relu": nnx.relu,
}
"""The activations of the feed-forward layers."""


def norm_of(config: TransformerConfig, rngs: nnx.Rngs) -> Norm:
    """A norm over the model width."""
    width, eps, dtype = config.model_dim, config.norm_eps, jnp.dtype(config.dtype)
    if config.norm == "rms":
        return nnx.RMSNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)
    return nnx.LayerNorm(width, epsilon=eps, dtype=dtype, rngs=rngs)


class Block(nnx.Module):
    """A mixer and an MLP, each with a residual connection and a norm.

    With the norm before: x + mixer(norm(x)), then x + MLP(norm(x)). With the norm after:
    norm(x + mixer(x)), then norm(x + MLP(x)), as in Vaswani et al. 2017, section 3.1.
    """

    def __init__(self, config: TransformerConfig, mixer: Mixer, *, rngs: nnx.Rngs) -> None:
        e, m, dtype = config.model_dim, config.mlp_dim, jnp.dtype(config.dtype)
        self.config, self.mixer = config, mixer
        self.norm_mixer = norm_of(config, rngs)
        self.norm_mlp = norm_of(config, rngs)
        bias = config.mlp_bias
        self.up = nnx.Linear(e, m, use_bias=bias, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(m, e, use_bias=bias, dtype=dtype, rngs=rngs)
        # Last, so that without them the weights of a seed stay what they were.
        if config.gated_mlp:
            self.gate = nnx.Linear(e, m, use_bias=bias, dtype=dtype, rngs=rngs)
        if config.out_bias:
            self.out_bias = nnx.Param(jnp.zeros(e))

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
        """`[B, N, E]`, or `[B, 1, E]` with `first_token`; see `Mixer`."""
        keys: list[Array | None] = [None] * 3
        if key is not None:
            keys = list(jax.random.split(key, 3))
        x = pinned(x)
        y = self.mixer(
            pinned(self.read(x)),
            valid,
            mixture,
            train=train,
            key=keys[0],
            layer=layer,
            first_token=first_token,
        )
        if first_token:
            x = x[:, :1]
        return self.added(x, y, train, keys)

    def read(self, x: Array) -> Array:
        """What the mixer reads of x `[B, N, E]`."""
        if self.config.norm_place == "before":
            return self.norm_mixer(x)
        return x

    def added(self, x: Array, y: Array, train: bool, keys: Sequence[Array | None]) -> Array:
        """x with the mixer's output y, and then with that of the MLP."""
        rate, before = self.config.dropout, self.config.norm_place == "before"
        if self.config.out_bias:
            y = y + self.out_bias[...].astype(y.dtype)
        x = x + dropout(y, rate, train, keys[1])
        if before:
            x = x + dropout(self.mlp(pinned(self.norm_mlp(x))), rate, train, keys[2])
            return pinned(x)
        x = pinned(self.norm_mixer(x))
        return pinned(self.norm_mlp(x + dropout(self.mlp(x), rate, train, keys[2])))

    def mlp(self, x: Array) -> Array:
        """down(act(up x)), or with a gate down(act(gate x) * up x) (Shazeer 2020, arXiv:2002.05202)."""
        act = ACTIVATIONS[self.config.activation]
        if self.config.gated_mlp:
            hidden: Array = act(self.gate(x)) * self.up(x)
        else:
            hidden = act(self.up(x))
        return self.down(pinned(hidden))


class Transformer(nnx.Module):
    """tokens `[B, N]`, valid `[B, N]`, mixture `[L, H, K]` or None, to logits `[B, C]`.

    Without pooling the logits are `[B, N, C]`. Of two documents tokens and valid are `[B, 2, N]`;
    tokens that are not ids are `[B, N, F]`. With `scan` the layers, which must be alike, are one
    loop over weights with an axis of layers (`dartformer.models.stacks`). With `remat` blocks are
    computed again in the backward pass (see `recomputed`)."""

    stacked_blocks: Block
    """The blocks of a loop as one, whose weights have an axis of layers; only `graph` sets it."""

    def __init__(
        self,
        config: TransformerConfig,
        mixers: MixerOf,
        scan: bool = False,
        remat: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        e, dtype = config.model_dim, jnp.dtype(config.dtype)
        self.config, self.scan, self.remat = config, scan, remat

        # A tied table is the head's, too: logits of a normed vector then begin with a variance of 1.
        deviation = 1.0
        if config.tie_embeddings:
            deviation = e**-0.5

        def table() -> nnx.Embed:
            normal = nnx.initializers.normal(deviation)
            return nnx.Embed(config.vocabulary, e, dtype=dtype, rngs=rngs, embedding_init=normal)

        # The names of these attributes are keys of saved weights, and their order decides the
        # weights of a seed.
        if config.features:
            self.embed: nnx.Module = nnx.Linear(config.features, e, dtype=dtype, rngs=rngs)
        else:
            self.embed = table()
        if config.stem == "bigram":
            self.before = table()
        if config.positions == "learned":
            rows = config.position_offset + config.tokens
            self.positions = nnx.Param(0.1 * jax.random.normal(rngs.params(), (rows, e)))
        if config.token_types:
            rows = config.token_types
            self.types = nnx.Param(0.1 * jax.random.normal(rngs.params(), (rows, e)))
        if config.embed_norm:
            self.embed_norm = norm_of(config, rngs)
        if config.pooling == "cls":
            self.cls = nnx.Param(jnp.zeros(e))
        blocks = []
        for layer in range(config.layers):
            mixer = mixers(layer, rngs)
            blocks.append(Block(config, mixer, rngs=rngs))
        self.blocks = nnx.List(blocks)
        if config.norm_place == "before":
            # With the norm after, that of the last block is the last one.
            self.norm = norm_of(config, rngs)
        if config.classifier != "none":
            self.add_classifier(rngs)

    def add_classifier(self, rngs: nnx.Rngs) -> None:
        """The layers that make logits of what was pooled."""
        config, dtype, bias = self.config, jnp.dtype(self.config.dtype), self.config.head_bias
        width = config.pooled
        if config.classifier == "mlp":
            self.hidden = nnx.Linear(width, config.mlp_dim, dtype=dtype, rngs=rngs)
            width = config.mlp_dim
            if config.inputs == 2:
                width = max(config.mlp_dim // 2, 1)
                self.hidden_half = nnx.Linear(config.mlp_dim, width, dtype=dtype, rngs=rngs)
        if not config.tie_embeddings:
            self.head = nnx.Linear(width, config.classes, use_bias=bias, dtype=dtype, rngs=rngs)
        elif bias:
            self.head_bias = nnx.Param(jnp.zeros(config.classes))

    def __call__(
        self,
        tokens: Array,
        valid: Array,
        mixture: Array | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """The logits, in float32 or wider."""
        return self.classified(self.pooled(tokens, valid, mixture, train=train, key=key))

    def of_labels(
        self,
        function: OfLabels,
        tokens: Array,
        valid: Array,
        labels: Array,
        mixture: Array | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Any:
        """`function(logits, labels)`, whose results are shaped like the labels.

        Where the logits of all tokens together are large they are computed some tokens at a time,
        and again in the backward pass: a vocabulary of 50,000 takes more memory than the layers.
        """
        x = self.pooled(tokens, valid, mixture, train=train, key=key)
        size = self.config.logits_size(x.shape[0], valid.shape[-1])
        if not size:
            return function(self.classified(x), labels)

        def part(arrays: tuple[Array, Array]) -> Any:
            vectors, labels = arrays
            return function(self.classified(vectors), labels)

        # Along the tokens and not the examples, which devices may share.
        parts = jax.lax.map(jax.checkpoint(part), (in_parts(x, size), in_parts(labels, size, -1)))
        return jax.tree.map(lambda part: joined(part, labels.shape[1]), parts)

    def pooled(
        self,
        tokens: Array,
        valid: Array,
        mixture: Array | None,
        *,
        train: bool,
        key: Array | None,
    ) -> Array:
        """What the classifier reads, `[B, E]`, or `[B, N, E]` where there is a label for each token."""
        config = self.config
        if config.inputs == 2:
            # 2 B documents: u v u v ...
            tokens = tokens.reshape(-1, *tokens.shape[2:])
            valid = valid.reshape(-1, *valid.shape[2:])
        x, valid = self.embedded(tokens, valid)
        layer_keys = embedding_key = None
        if key is not None:
            # The last is of the embedding: layer l has key l, scanned or unrolled.
            keys = jax.random.split(key, config.layers + 1)
            layer_keys, embedding_key = keys[:-1], keys[-1]
        x = dropout(x, config.dropout, train, embedding_key)
        if self.scan:
            x = self.scanned(x, valid, mixture, layer_keys, train)
        else:
            x = self.unrolled(x, valid, mixture, layer_keys, train)
        if config.norm_place == "before":
            x = self.norm(x)
        return pool(x, valid, config.pooling)

    def embedded(self, tokens: Array, valid: Array) -> tuple[Array, Array]:
        """Embeddings with stem, CLS token and positions, `[B, N, E]`, and their `valid`."""
        dtype = jnp.dtype(self.config.dtype)
        if isinstance(self.embed, nnx.Embed):
            x = rows_of(self.embed, tokens, dtype)
        else:
            x = self.embed(tokens)
        if self.config.stem == "bigram":
            # Row t of the second table is read at t + 1; nothing is added where no valid token
            # comes before.
            shifted = rows_of(self.before, tokens[:, :-1], dtype) * valid[:, :-1, None].astype(
                x.dtype
            )
            x = x + jnp.pad(shifted, ((0, 0), (1, 0), (0, 0)))
        if self.config.pooling == "cls":
            cls = self.cls[...].astype(x.dtype)
            cls = jnp.broadcast_to(cls, (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([cls, x], 1)
            valid = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
        x = pinned(x) + self.position_table(x.shape[1], x.dtype)
        return pinned(self.completed(x)), valid

    def completed(self, x: Array) -> Array:
        """Embeddings with the token type and the norm."""
        if self.config.token_types:
            # All tokens are of the first type: a document is read on its own.
            x = x + self.types[0].astype(x.dtype)
        if self.config.embed_norm:
            x = self.embed_norm(x)
        return x

    def unrolled(
        self, x: Array, valid: Array, mixture: Array | None, keys: Array | None, train: bool
    ) -> Array:
        """All blocks, one after the other."""
        for layer, block in enumerate(self.blocks):
            # Nothing reads what the last layer makes of other tokens than CLS: all of it but
            # their keys and values is left out, forward and backward.
            last = layer == self.config.layers - 1
            cls_alone = last and self.config.pooling == "cls"
            row = key = None
            if mixture is not None:
                row = mixture[layer]
            if keys is not None:
                key = keys[layer]
            first_token = cls_alone and block.mixer.saves_by_first_token
            run = functools.partial(block, train=train, first_token=first_token)
            if self.remat:
                run = recomputed(run)
            x = run(x, valid, row, key=key)
        return x

    def scanned(
        self, x: Array, valid: Array, mixture: Array | None, keys: Array | None, train: bool
    ) -> Array:
        """All blocks as one `lax.scan` over their weights."""
        # Each array is `[L, ...]`: one compiled body reads the weights of its layer.
        structure, state = nnx.split(self.stacked_blocks)
        layers = jnp.arange(self.config.layers)

        def body(x: Array, scanned: Any) -> tuple[Array, None]:
            weights, row, key, layer = scanned
            block = nnx.merge(structure, weights)
            return block(x, valid, row, train=train, key=key, layer=layer), None

        if self.remat:
            body = recomputed(body)
        x, _ = jax.lax.scan(body, x, (nnx.to_pure_dict(state), mixture, keys, layers))
        return x

    def classified(self, x: Array) -> Array:
        """Logits of pooled documents."""
        config = self.config
        if config.inputs == 2:
            u, v = x.reshape(-1, 2, x.shape[-1]).swapaxes(0, 1)
            parts = [u, v]
            if config.pair == "interaction":
                parts += [u * v, u - v]
            x = jnp.concatenate(parts, -1)
        if config.classifier == "mlp":
            x = nnx.relu(self.hidden(x))
            if config.inputs == 2:
                x = nnx.relu(self.hidden_half(x))
        # The loss is a log-softmax, which bfloat16 would round to two or three digits.
        return pinned(self.logits(pinned(x))).astype(jnp.promote_types(x.dtype, jnp.float32))

    def logits(self, x: Array) -> Array:
        """The head on `[..., E]`."""
        config = self.config
        if config.classifier == "none":
            return x
        if not config.tie_embeddings:
            return self.head(x)
        assert isinstance(self.embed, nnx.Embed)
        logits: Array = self.embed.attend(x)
        if config.head_bias:
            logits = logits + self.head_bias[...].astype(logits.dtype)
        return logits

    def position_table(self, length: int, dtype: DTypeLike) -> Array:
        """What is added to the embeddings of `length` tokens: `[N, E]`, or 0."""
        config = self.config
        if length > config.tokens:
            raise InputError(
                f"the model takes at most {config.length} tokens, got "
                f"{length - (config.pooling == 'cls')}."
            )
        if config.positions == "learned":
            offset = config.position_offset
            return self.positions[offset : offset + length].astype(dtype)
        if config.positions == "sinusoidal":
            return jnp.asarray(sinusoids(length, config.model_dim), dtype)
        return jnp.zeros((), dtype)


Run = TypeVar("Run", bound=Callable[..., Any])


def recomputed(run: Run) -> Run:
    """A block of which the backward pass keeps its input and the sum of its heads' candidates.

    It computes everything else again. The sum is kept because the candidates are run again for their
    own gradients (`sum_of_active`): they would be run a third time for the layers that follow them.
    """
    kept = jax.checkpoint_policies.save_only_these_names(HEADS)
    return cast(Run, jax.checkpoint(run, policy=kept))


def rows_of(table: nnx.Embed, tokens: Array, dtype: DTypeLike) -> Array:
    """Embeddings `[B, N, E]`, read in the type of the table.

    Then the gradient of a row, a sum over all its tokens, is in that type too: in bfloat16 a sum of
    ones stops at 256."""
    return jnp.take(table.embedding[...], tokens, axis=0).astype(dtype)


def dropout(x: Array, rate: float, train: bool, key: Array | None) -> Array:
    """Inverted dropout, in training alone. Raises `ValueError` without a key."""
    if not train or rate == 0:
        return x
    if key is None:
        raise ValueError(f"dropout of {rate} in training needs a key.")
    return nnx.Dropout(rate)(x, deterministic=False, rngs=key)


def pool(x: Array, valid: Array, how: str) -> Array:
    """`[B, N, E]` to `[B, E]`: "mean" over valid tokens, "cls" the first, "last" the last valid one.

    "none" keeps all of them; "decode" has the last valid one in place of each, with positions."""
    if how == "mean":
        total = jnp.sum(jnp.where(valid[..., None], x, 0), 1)
        # At least 1, for documents without a token.
        return total / jnp.maximum(valid.sum(1), 1)[:, None].astype(x.dtype)
    if how == "cls":
        return x[:, 0]
    if how in ("last", "decode"):
        n = valid.shape[1]
        last = jnp.max(jnp.where(valid, jnp.arange(n), 0), 1)
        vector = jnp.take_along_axis(x, last[:, None, None], 1)  # [B, 1, E]
        if how == "last":
            return vector[:, 0]
        # Nothing else of a token than its position reaches the classifier.
        return vector + jnp.asarray(sinusoids(n, x.shape[2]), x.dtype)
    return x


def in_parts(x: Array, size: int, filling: int = 0) -> Array:
    """`[B, N, ...]` to `[N / size, B, size, ...]`, filled up at the end."""
    b, n = x.shape[:2]
    count = -(-n // size)
    beyond = [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, ((0, 0), (0, count * size - n), *beyond), constant_values=filling)
    return x.reshape(b, count, size, *x.shape[2:]).swapaxes(0, 1)


def joined(parts: Array, n: int) -> Array:
    """`[P, B, size, ...]` to `[B, n, ...]`: the inverse of `in_parts`."""
    count, b, size = parts.shape[:3]
    x = parts.swapaxes(0, 1).reshape(b, count * size, *parts.shape[3:])
    return x[:, :n]


class Apply(Protocol):
    """The forward pass of a `Network`."""

    def __call__(
        self,
        weights: Weights,
        tokens: ArrayLike,
        valid: ArrayLike,
        mixture: ArrayLike | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """Logits of tokens `[B, N]` at a mixture `[L, H, K]`, or None for a derived model."""
        ...


class ApplyToLabels(Protocol):
    """The forward pass of a `Network`, and a function of the logits of each label."""

    def __call__(
        self,
        function: OfLabels,
        weights: Weights,
        tokens: ArrayLike,
        valid: ArrayLike,
        labels: ArrayLike,
        mixture: ArrayLike | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Any:
        """See `Transformer.of_labels`."""
        ...


class Network(NamedTuple):
    """A network as pure functions; the weights are an argument.

    init: key -> weights. apply: see `Apply`. of_labels: see `label_scores`, which reads it."""

    init: Callable[[Array], Weights]
    apply: Apply
    of_labels: ApplyToLabels | None = None


def label_scores(
    network: Network,
    function: OfLabels,
    weights: Weights,
    tokens: ArrayLike,
    valid: ArrayLike,
    labels: ArrayLike,
    mixture: ArrayLike | None = None,
    *,
    train: bool = False,
    key: Array | None = None,
) -> Any:
    """`function(logits, labels)` of a network, without all logits at once where they are large."""
    arguments = (weights, tokens, valid)
    if network.of_labels is None:
        apply = network.apply
        if train:
            apply = functools.partial(apply, train=True, key=key)
        return function(apply(*arguments, mixture), jnp.asarray(labels))
    return network.of_labels(function, *arguments, labels, mixture, train=train, key=key)


def network(
    config: TransformerConfig, mixers: MixerOf, scan: bool = False, remat: bool = False
) -> Network:
    """The pure functions behind a `Transformer`, which says what `scan` and `remat` are."""
    require_dtype(config.dtype)
    structure = graph(config, mixers, scan, remat)
    # Programs over one state can differ: some layers of a supernet may compute fewer candidates.
    arranged = stacks.stacked if scan else stacks.by_layer

    def init(key: Array) -> Weights:
        # Not one program: drawing compiles once for each shape, where a program would compile it
        # for each parameter.
        model = Transformer(config, mixers, scan, rngs=nnx.Rngs(params=key))
        weights = nnx.to_pure_dict(nnx.state(model))
        if config.dtype == "float64":
            weights = jax.tree.map(lambda w: w.astype(jnp.float64), weights)
        return arranged(weights)

    def apply(
        weights: Weights,
        tokens: ArrayLike,
        valid: ArrayLike,
        mixture: ArrayLike | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        model: Transformer = nnx.merge(structure, arranged(weights))
        if mixture is not None:
            mixture = jnp.asarray(mixture)
        return model(jnp.asarray(tokens), jnp.asarray(valid), mixture, train=train, key=key)

    def of_labels(
        function: OfLabels,
        weights: Weights,
        tokens: ArrayLike,
        valid: ArrayLike,
        labels: ArrayLike,
        mixture: ArrayLike | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Any:
        model: Transformer = nnx.merge(structure, arranged(weights))
        if mixture is not None:
            mixture = jnp.asarray(mixture)
        tokens, valid, labels = map(jnp.asarray, (tokens, valid, labels))
        return model.of_labels(function, tokens, valid, labels, mixture, train=train, key=key)

    return Network(init, apply, of_labels)


def graph(
    config: TransformerConfig, mixers: MixerOf, scan: bool = False, remat: bool = False
) -> nnx.GraphDef[Transformer]:
    """The structure of a `Transformer`, without its weights: `nnx.merge` joins the two.

    With `scan` the weights are stacked (`dartformer.models.stacks`).
    """

    def make() -> Transformer:
        model = Transformer(config, mixers, scan, remat, rngs=nnx.Rngs(params=jax.random.key(0)))
        if scan:
            model.stacked_blocks = model.blocks[0]
            del model.blocks
        return model

    structure, _ = nnx.split(nnx.eval_shape(make))
    return structure


def transformer(config: TransformerConfig, genotype: Genotype) -> Network:
    """The derived model: a plain Transformer with the genotype's attentions."""
    if (len(genotype.layers), genotype.heads) != (config.layers, config.heads):
        raise InputError(
            f"the genotype is {len(genotype.layers)}x{genotype.heads} (layers x heads), the model "
            f"{config.layers}x{config.heads}."
        )
    # Each once, in the order of layers and heads: the first that does not work is named.
    attentions = dict.fromkeys(itertools.chain.from_iterable(genotype.layers))
    require_all(attentions, config)

    def mixer(layer: int, rngs: nnx.Rngs) -> GroupedHeads:
        return GroupedHeads(config, genotype, layer, rngs=rngs)

    return network(config, mixer)
