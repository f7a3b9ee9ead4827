"""Placement: which layers or KV groups of a checkpoint keep full attention. Nothing is trained.

With frozen weights, the mixture m(t) = t full + (1 - t) cheap leads from the cheap attention in all
places to the checkpoint as it is. F(t) is the KL divergence of its logits from the checkpoint's, or
the cosine distance of an encoder's embeddings. The score of a place is its share of what the path loses on the way,

    F(0) - F(1) = sum_{l,h} int_0^1 (dF/dm[l, h, cheap] - dF/dm[l, h, full]) dt

(integrated gradients, Sundararajan et al. 2017, arXiv:1703.01365, equation 1), by the midpoint rule
with P points: P backward passes score all places at once."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from dartformer.attention import to_text
from dartformer.attention.base import Attention
from dartformer.attention.full import Full
from dartformer.cost.budget import Price
from dartformer.cost.integer_program import Limits, solve
from dartformer.errors import InputError
from dartformer.models.mixers import require_all
from dartformer.models.sizes import TransformerConfig
from dartformer.models.stacks import stacked
from dartformer.models.supernet import MixedHeads
from dartformer.models.transformer import Transformer, Weights, graph
from dartformer.pretrained.base import Described
from dartformer.pretrained.load import Pretrained
from dartformer.pretrained.objective import Embeddings, NextTokens, Objective
from dartformer.pretrained.passages import Documents, Row, Sequences
from dartformer.pretrained.sentence import is_encoder, sentence_of
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace, everywhere


class Quality(NamedTuple):
    """How placements of a decoder predict some sequences, `[M, B]` for M placements and B sequences.

    Attributes:
      nll: mean negative log-likelihood of the scored tokens, in nats.
      kl: mean KL divergence from the checkpoint's predictions, in nats.
    """

    nll: np.ndarray
    kl: np.ndarray


class PathScores(NamedTuple):
    """Scores along the path from the cheap attention everywhere to the checkpoint.

    Attributes:
      groups: `[L, G]`, what each KV group is worth in nats of KL divergence, or in cosine distance
        of an encoder's embeddings.
      total: the loss with the cheap attention everywhere, which the scores add up to.
    """

    groups: np.ndarray
    total: float

    @property
    def layers(self) -> np.ndarray:
        """`[L, 1]`, what each layer is worth."""
        return self.groups.sum(1, keepdims=True)


class LearnedShares(NamedTuple):
    """What places learn with the weights frozen.

    Attributes:
      shares: `[L, C]` of full attention, from 0 to 1.
      total: the KL divergence with the cheap attention everywhere.
    """

    shares: np.ndarray
    total: float


ALPHA_RATE = 0.1
"""The learning rate of alphas, which move by about as much in each step of Adam."""


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Which places to keep, bool like the scores `[L, C]`: the `count` with the highest ones.

    No choice of as many places has a higher sum. See `Placement.within` for unequal prices.
    """
    if not 0 <= count <= scores.size:
        raise InputError(f"keep must be from 0 to the {scores.size} places, got {count}.")
    kept = np.zeros(scores.size, bool)
    # Stable, so that equal scores are kept in order.
    kept[np.argsort(-scores, axis=None, kind="stable")[:count]] = True
    return kept.reshape(scores.shape)


def uniform(layers: int, count: int) -> np.ndarray:
    """`[L, 1]`: layers at equal distances."""
    kept = np.zeros((layers, 1), bool)
    if not count:
        return kept
    kept[((np.arange(count) + 0.5) * layers / count).astype(int)] = True
    return kept


def cache_price(config: TransformerConfig, space: SearchSpace, length: int) -> Price:
    """What the caches of a sequence of `length` tokens take, by candidate and number of heads."""
    groups = np.zeros((len(space.candidates), config.heads + 1))
    for k, candidate in enumerate(space.candidates):
        for count in range(config.sharing, config.heads + 1, config.sharing):
            shape = config.attention_shape(count, kv_heads=count // config.sharing, length=length)
            groups[k, count] = candidate.cost(shape).state_bytes
    return Price("kv_bytes", 0.0, groups)


@dataclass(frozen=True)
class Places:
    """The layers or KV groups of a checkpoint that keep full attention, or take a cheap one.

    Places are `[L, 1]` layers or `[L, G]` KV groups, the heads that share keys and values: a cache
    keeps all tokens of a group as soon as one of its heads is full. Needs no weights.

    Attributes:
      described: the checkpoint, a decoder or an encoder with full attention in all layers.
      cheap: what the other places have, such as `sink(window=32, sinks=4)`: an attention without
        parameters of its own.

    Raises:
      InputError: the checkpoint or the attention is of another kind.
    """

    described: Described
    cheap: Attention

    def __post_init__(self) -> None:
        folder, _, config, genotype = self.described
        if not self.encodes and config.classifier == "none":
            raise InputError(
                f"placement does not work with {folder} because it predicts no next tokens. Use a "
                f"decoder, such as a Llama, or an encoder, such as a BERT."
            )
        if genotype != Genotype.homogeneous(Full(), config.layers, config.heads):
            raise InputError(
                f"placement does not work with {folder} because some of its layers have no full "
                f"attention. Use a checkpoint with full attention in all layers."
            )
        if self.cheap == Full():
            raise InputError("the cheap attention of a placement must not be full itself.")
        require_all([self.cheap], config)
        shape = config.attention_shape(config.heads)
        # The key within, so that none is made and nothing is compiled.
        parameters = jax.eval_shape(lambda: self.cheap.init(jax.random.key(0), shape))
        if jax.tree.leaves(parameters):
            raise InputError(
                f"placement does not work with {to_text(self.cheap)} because it has parameters, "
                f"which the checkpoint lacks. Use a window, such as sink(window=32, sinks=4)."
            )

    @property
    def encodes(self) -> bool:
        """Whether the checkpoint is an encoder, which has embeddings and no cache."""
        return is_encoder(self.described)

    @cached_property
    def space(self) -> SearchSpace:
        """Full and the cheap attention in each KV group."""
        config = self.described.config
        kv_heads = config.heads // config.sharing
        return SearchSpace((Full(), self.cheap), config.layers, config.heads, "kv_group", kv_heads)

    @property
    def groups(self) -> int:
        """G, the KV groups of a layer."""
        return self.space.alphas_shape[1]

    def genotype(self, kept: np.ndarray) -> Genotype:
        """The genotype that keeps places `[L, 1]` or `[L, G]`."""
        return self.space.genotype(np.where(kept, 0, 1))

    def mixture(self, kept: np.ndarray) -> np.ndarray:
        """The mixture `[L, H, 2]` of places that are kept, or of shares of full from 0 to 1."""
        full = everywhere(np.asarray(kept, np.float32), self.space.mixture_shape[:2])
        return np.stack([full, 1 - full], -1)

    def kv_bytes(self, length: int) -> Price:
        """What the caches of a sequence of `length` tokens take, for `within`."""
        return cache_price(self.described.config, self.space, length)

    def require_length(self, length: int) -> None:
        """Raise `InputError` for sequences that are too long, or on which nothing is saved."""
        most = self.described.config.length
        if length > most:
            reason = ""
            if self.described.config.positions == "learned":
                reason = ", because its table of positions has no more rows"
            raise InputError(f"the model takes at most {most} tokens{reason}, got {length}.")
        if self.encodes:
            self._require_saving(length)
            return
        full, cheap = self.kv_bytes(length).groups[:, -1]
        if cheap >= full:
            raise InputError(
                f"{to_text(self.cheap)} keeps as much as full attention of sequences of {length} "
                f"tokens, so nothing is tested. Use longer sequences or a smaller window."
            )

    def _require_saving(self, length: int) -> None:
        """Raise `InputError` where an encoder's cheap attention computes as much as full attention."""
        config = self.described.config
        shape = config.attention_shape(config.heads, length=length)
        if self.cheap.cost(shape).flops >= Full().cost(shape).flops:
            raise InputError(
                f"{to_text(self.cheap)} computes as much as full attention of texts of {length} "
                f"tokens, so nothing is saved. Use longer texts or a smaller window."
            )

    def bytes_of(self, kept: np.ndarray, length: int) -> int:
        """What the caches of a sequence of `length` tokens take where these places are kept."""
        return round(self.kv_bytes(length).of(self.genotype(kept), self.space))

    def within(self, scores: np.ndarray, limits: Limits) -> np.ndarray:
        """Which places `[L, C]` to keep: the highest sum of scores within all limits, exactly.

        Raises `InputError` where nothing is within the limits.
        """
        space = self.space
        if scores.shape[1] == 1:
            space = dataclasses.replace(space, granularity="layer")
        values = np.stack([scores, np.zeros_like(scores)], -1)
        kept: np.ndarray = solve(space, values, limits) == 0
        return kept


@dataclass(frozen=True)
class Placement:
    """A checkpoint whose layers or KV groups keep full attention, or take a cheap one untrained.

    Attributes:
      model: the checkpoint, see `Places`.
      cheap: what the other places have, such as `sink(window=32, sinks=4)`.

    Raises:
      InputError: the checkpoint or the attention is of another kind.
    """

    model: Pretrained
    cheap: Attention

    def __post_init__(self) -> None:
        self.places  # noqa: B018 - raises where the checkpoint or the attention does not work

    @cached_property
    def places(self) -> Places:
        """The layers and KV groups, and what they cost."""
        return Places(self.model.described, self.cheap)

    @property
    def space(self) -> SearchSpace:
        """Full and the cheap attention in each KV group."""
        return self.places.space

    def genotype(self, kept: np.ndarray) -> Genotype:
        """The genotype that keeps places `[L, 1]` or `[L, G]`."""
        return self.places.genotype(kept)

    def mixture(self, kept: np.ndarray) -> np.ndarray:
        """The mixture `[L, H, 2]` of places that are kept, or of shares of full from 0 to 1."""
        return self.places.mixture(kept)

    def kv_bytes(self, length: int) -> Price:
        """What the caches of a sequence of `length` tokens take, for `within`."""
        return self.places.kv_bytes(length)

    def within(self, scores: np.ndarray, limits: Limits) -> np.ndarray:
        """See `Places.within`."""
        return self.places.within(scores, limits)

    @cached_property
    def objective(self) -> Objective:
        """What is compared with the checkpoint: predictions of tokens, or embeddings of texts."""
        if self.places.encodes:
            return Embeddings(sentence_of(self.model.described).pooling)
        return NextTokens()

    def evaluate(self, placements: Sequence[np.ndarray], sequences: Sequences) -> Quality:
        """How placements `[L, 1]` or `[L, G]` of a decoder predict the sequences."""
        if self.places.encodes:
            raise InputError(
                f"{self.model.folder} is an encoder, which predicts no tokens. Use `measure`."
            )
        return Quality(**self.measure(placements, sequences))

    def measure(
        self, placements: Sequence[np.ndarray], sequences: Sequences | Documents
    ) -> dict[str, np.ndarray]:
        """Each name of the objective, such as "distance", of placements and sequences `[M, B]`."""
        self.places.require_length(sequences.tokens.shape[1])
        mixtures = list(map(self.mixture, placements))
        columns: dict[str, list[list[float]]] = {name: [] for name in self.objective.names}
        for tokens, positions in sequences.rows():
            teacher = self._teacher(tokens, positions)
            row = []
            for mixture in mixtures:
                student = self._predict(self.model.weights, mixture, tokens, positions)
                row.append(self._measured(teacher, student, tokens, positions))
            for name, column in columns.items():
                column.append([float(values[name]) for values in row])
        return {name: np.array(column).T for name, column in columns.items()}

    def divergence(
        self, placements: Sequence[np.ndarray], sequences: Sequences | Documents
    ) -> np.ndarray:
        """`[M, B]`, the loss that scores add up to: the KL divergence, or the cosine distance."""
        return self.measure(placements, sequences)[self.objective.names[-1]]

    def path(self, sequences: Sequences | Documents, points: int = 4) -> PathScores:
        """Scores of all KV groups by the gradient at `points` points of the path; 1: its middle."""
        self.places.require_length(sequences.tokens.shape[1])
        if points < 1:
            raise InputError(f"points must be at least 1, got {points}.")
        layers, columns, _ = self.space.alphas_shape
        total, none = 0.0, np.zeros((layers, 1))
        gradient = np.zeros(self.space.mixture_shape)
        for tokens, positions in sequences.rows():
            teacher = self._teacher(tokens, positions)
            cheap = self._predict(self.model.weights, self.mixture(none), tokens, positions)
            total += float(self._loss(teacher, cheap))
            for point in range(points):
                mixture = self.mixture(none + (point + 0.5) / points)
                slope = self._slope(mixture, self.model.weights, tokens, positions, teacher)
                gradient += np.asarray(slope) / points
        heads = (gradient[..., 1] - gradient[..., 0]) / len(sequences.tokens)  # [L, H]
        # Neighbouring heads share a group: [L, G, H / G].
        groups = heads.reshape(layers, columns, -1).sum(-1)
        return PathScores(groups, total / len(sequences.tokens))

    def swap(self, sequences: Sequences | Documents) -> np.ndarray:
        """`[L, 1]`: the divergence where that layer alone is cheap."""
        placements = [~row[:, None] for row in np.eye(self.space.layers, dtype=bool)]
        return self.divergence(placements, sequences).mean(1)[:, None]

    def restore(self, sequences: Sequences | Documents) -> np.ndarray:
        """`[L, 1]`: by how much that layer alone, where it is full, lowers the divergence."""
        placements = [row[:, None] for row in np.eye(self.space.layers, dtype=bool)]
        placements.append(np.zeros((self.space.layers, 1), bool))
        losses = self.divergence(placements, sequences).mean(1)
        return (losses[-1] - losses[:-1])[:, None]

    def learned(
        self, sequences: Sequences | Documents, steps: int, target: float, columns: int
    ) -> LearnedShares:
        """The share of full attention that each place learns, with the weights frozen.

        Adam lowers F(m) + F(0) (mean m / target - 1)^2 over alphas, where m = sigmoid(alpha) and
        F(0) is what the cheap attention everywhere loses: the divergence, and a price that
        leads to the budget (alphas alone, as DASH has them, arXiv:2605.20936).

        Args:
          sequences: each one learns shares of its own, whose mean is returned.
          steps: of Adam for each sequence.
          target: share of the places that the budget has room for.
          columns: places of a layer, 1 or all its KV groups.
        """
        self.places.require_length(sequences.tokens.shape[1])
        shares, total = np.zeros((self.space.layers, columns)), 0.0
        for row in sequences.rows():
            teacher = self._teacher(*row)
            cheap = self.mixture(np.zeros((self.space.layers, 1)))
            loss = float(self._loss(teacher, self._predict(self.model.weights, cheap, *row)))

            def slope(m: np.ndarray, row: Row = row, full: Array = teacher) -> Any:
                mixture = self.mixture(m)
                heads = self._slope(mixture, self.model.weights, *row, full)
                # Heads of a place share its m: [L, H] to [L, C, H / C].
                difference = np.asarray(heads)[..., 0] - np.asarray(heads)[..., 1]
                return difference.reshape(*m.shape, -1).sum(-1)

            total += loss
            shares += _learned(slope, shares.shape, steps, loss, target)
        count = len(sequences.tokens)
        return LearnedShares(shares / count, total / count)

    @cached_property
    def _structure(self) -> nnx.GraphDef[Transformer]:
        config, candidates = self.model.config, self.space.candidates

        def mixer(layer: int, rngs: nnx.Rngs) -> MixedHeads:
            return MixedHeads(config, candidates, "shared", layer, rngs=rngs)

        return graph(config, mixer, self._scans)

    @property
    def _scans(self) -> bool:
        # One loop over layers compiles one of them, and needs layers that compute the same.
        return self.model.config.layers > 1 and not self.model.config.nope_layers

    def _output(self, mixture: Array, weights: Weights, tokens: Array, positions: Array) -> Array:
        """What is compared, of one sequence `[N]`."""
        if self._scans:
            weights = stacked(weights)
        model: Transformer = nnx.merge(self._structure, weights)
        return self.objective.output(model, mixture, tokens, positions)

    @cached_property
    def _predict(self) -> Any:
        def predict(weights: Weights, mixture: Array, tokens: Array, positions: Array) -> Array:
            return self._output(mixture, weights, tokens, positions)

        return jax.jit(predict)

    @cached_property
    def _slope(self) -> Any:
        def loss(
            mixture: Array, weights: Weights, tokens: Array, positions: Array, teacher: Array
        ) -> Array:
            student = self._output(mixture, weights, tokens, positions)
            return self.objective.loss(teacher, student)

        return jax.jit(jax.grad(loss))

    @cached_property
    def _loss(self) -> Any:
        return jax.jit(self.objective.loss)

    @cached_property
    def _measured(self) -> Any:
        return jax.jit(self.objective.measured)

    def _teacher(self, tokens: np.ndarray, positions: np.ndarray) -> Array:
        """What the checkpoint itself gives."""
        full = self.mixture(np.ones((self.space.layers, 1)))
        output: Array = self._predict(self.model.weights, full, tokens, positions)
        return output


def _learned(
    slope: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    steps: int,
    loss: float,
    target: float,
) -> np.ndarray:
    """Shares `[L, C]` after some steps of Adam on their alphas, see `Placement.learned`."""
    alphas = jnp.zeros(shape)  # halfway between full and cheap
    optimizer = optax.adam(ALPHA_RATE)
    state = optimizer.init(alphas)
    target = max(target, 1 / alphas.size)
    for _ in range(steps):
        m = np.asarray(jax.nn.sigmoid(alphas), np.float64)
        price = 2 * loss * (m.mean() / target - 1) / (target * m.size)
        gradient = (slope(m) + price) * m * (1 - m)
        change, state = optimizer.update(jnp.asarray(gradient, alphas.dtype), state)
        alphas = alphas + change
    return np.asarray(jax.nn.sigmoid(alphas), np.float64)
