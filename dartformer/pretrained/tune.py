"""Tune: a hybrid trained end to end to predict what its checkpoint predicts.

The teacher T is the checkpoint, and the student S has other attentions in some places. Both read
the same sequences, and each step of Adam lowers

    mean_n KL(T_n || S_n)

over some positions n (distillation with temperature 1, Hinton et al. 2015, arXiv:1503.02531; the
last stage of conversions to linear attention such as RADLADS, arXiv:2505.03005). Either all weights
are trained, or low-rank adapters: W + A B with B = 0 at first (LoRA, Hu et al. 2021,
arXiv:2106.09685). Adapters are added to the weights at the end, so the tuned model is one like any
other.

Adam keeps two numbers for each that is trained, and a step makes a gradient: with all weights in
float32 that is 4 times their bytes beside the teacher's."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from dartformer.errors import InputError
from dartformer.fields import FieldError, at_least, check_types
from dartformer.models.layerwise import structure_of
from dartformer.models.transformer import Transformer, Weights, in_parts, joined
from dartformer.pretrained.load import Pretrained
from dartformer.pretrained.objective import kl_divergence
from dartformer.pretrained.passages import Documents, Sequences
from dartformer.pretrained.placement import Quality
from dartformer.training.checkpoint import named_leaves
from dartformer.training.optimizer import Optimizer, build

MOST_LOGITS = 2**22
"""Numbers of the logits that stand at once: 85 tokens of a vocabulary of 49,152."""

ADAPTED = re.compile(r"blocks/\d+/(mixer/projections/\d+/[qkvo]|(up|down|gate)/kernel)")
"""The matrices that get adapters."""

OWN = re.compile(r"blocks/\d+/mixer/own/.*")
"""Parameters that the attentions of the student have of their own, which are trained as a whole."""


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a hybrid is tuned.

    Attributes:
      steps: of Adam.
      batch: sequences of a step.
      rate: the highest learning rate: it rises for a twentieth of the steps and falls to 0. Of all
        weights, 2e-4 undid an alignment of SmolLM2 in 25 steps; adapters take higher ones.
      adapters: rank of the low-rank adapters that are trained in place of all weights; 0: all.
      positions: tokens of each sequence whose predictions are compared, drawn in each step.
      seed: of the sequences and positions of each step, and of the adapters.
    """

    steps: int = 200
    batch: int = 2
    rate: float = 2e-5
    adapters: int = 0
    positions: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        at_least(self, 1, "batch", "positions")
        at_least(self, 0, "steps", "adapters", "seed")
        if not 0 < self.rate < math.inf:
            raise FieldError("rate", f"must be above 0, got {self.rate}.")


class Trained(NamedTuple):
    """What is trained, by the names of the weights.

    Attributes:
      whole: weights that are trained themselves.
      low_rank: A and B of those that get the product of two matrices added.
    """

    whole: Mapping[str, Array]
    low_rank: Mapping[str, tuple[Array, Array]]

    @property
    def size(self) -> int:
        """How many numbers are trained."""
        return sum(leaf.size for leaf in jax.tree.leaves(self))


class TuneState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      trained: the parameters.
      optimizer: the state of Adam.
    """

    trained: Trained
    optimizer: optax.OptState


def begin(weights: Weights, options: Tuning) -> Trained:
    """The parameters that tuning begins with, which change no prediction."""
    whole, low_rank = {}, {}
    key = jax.random.key(options.seed)
    for number, (name, leaf) in enumerate(named_leaves(weights)):
        if not options.adapters or OWN.fullmatch(name):
            # Copied, because a step writes over them, and the teacher has the same arrays.
            whole[name] = jnp.array(leaf, copy=True)
        elif ADAPTED.fullmatch(name):
            rows, columns = leaf.shape[:1], leaf.shape[1:]
            if name.endswith("/o"):
                rows, columns = leaf.shape[:2], leaf.shape[2:]  # [H, D, E]
            deviation = np.prod(rows) ** -0.5
            drawn = jax.random.normal(jax.random.fold_in(key, number), (*rows, options.adapters))
            a = (deviation * drawn).astype(leaf.dtype)
            low_rank[name] = a, jnp.zeros((options.adapters, *columns), leaf.dtype)
    return Trained(whole, low_rank)


def merged(weights: Weights, trained: Trained) -> Weights:
    """The weights with what was trained."""

    def merge(path: Any, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in trained.low_rank:
            a, b = trained.low_rank[name]
            return leaf + jnp.tensordot(a, b, 1)
        return trained.whole.get(name, leaf)

    tuned: Weights = jax.tree_util.tree_map_with_path(merge, weights)
    return tuned


def chunked_divergence(
    teacher: Callable[[Array], Array],
    student: Callable[[Array], Array],
    taught: Array,
    learned: Array,
    size: int,
) -> Array:
    """Mean KL(T || S) of last hidden states `[B, P, E]`; no gradient passes to the teacher.

    Args:
      teacher, student: hidden states to logits.
      taught, learned: the hidden states of each.
      size: positions whose logits stand at once. In the backward pass they are computed again.
    """

    @jax.checkpoint
    def part(hidden: tuple[Array, Array]) -> Array:
        target = jax.nn.log_softmax(jax.lax.stop_gradient(teacher(hidden[0])))
        return jnp.sum(jnp.exp(target) * (target - jax.nn.log_softmax(student(hidden[1]))), -1)

    parts = jax.lax.map(part, (in_parts(taught, size), in_parts(learned, size)))
    return joined(parts, taught.shape[1]).mean()


@dataclasses.dataclass(frozen=True)
class Tuner:
    """The tuning of one hybrid: the same state, step and seed give the same next state.

    Attributes:
      teacher: the checkpoint.
      student: the checkpoint with the attentions of the hybrid, aligned or not.
      tokens: sequences `[S, N]` without padding.
      options: see `Tuning`.

    Raises:
      InputError: the tokens are no sequences of the model, or it predicts no next tokens.
    """

    teacher: Pretrained
    student: Pretrained
    tokens: np.ndarray
    options: Tuning

    def __post_init__(self) -> None:
        config = self.teacher.config
        if not config.causal or config.classifier == "none":
            raise InputError(
                f"tuning does not work with {self.teacher.folder} because it predicts no next "
                f"tokens. Use a decoder, such as a Llama."
            )
        tokens = self.tokens
        if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind not in "iu":
            raise InputError(
                f"tokens must be whole numbers [S, N], got {tokens.dtype} {tokens.shape}."
            )
        if not 0 <= tokens.min() <= tokens.max() < config.vocabulary:
            raise InputError(f"tokens must be from 0 to {config.vocabulary - 1}.")
        if tokens.shape[1] > config.length:
            raise InputError(f"the model takes at most {config.length} tokens.")

    def begin(self) -> TuneState:
        """The state before the first step."""
        trained = begin(self.student.weights, self.options)
        return TuneState(trained, self._optimizer.init(trained))

    def advance(self, state: TuneState, step: int) -> tuple[TuneState, float]:
        """The state after a step, and the KL divergence before it; the old state is used up."""
        rng = np.random.default_rng((self.options.seed, step))
        count, length = self.tokens.shape
        rows = rng.choice(count, min(self.options.batch, count), replace=False)
        # The same positions in all sequences, sorted, so that they are one slice of each.
        chosen = rng.choice(length, min(self.options.positions, length), replace=False)
        batch, positions = self.tokens[rows], np.sort(chosen)
        teacher, student = self.teacher.weights, self.student.weights
        state, divergence = self._step(state, student, teacher, batch, positions)
        return state, float(divergence)

    def model(self, state: TuneState) -> Pretrained:
        """The tuned model."""
        # Copied, because the next step writes over what is trained.
        trained = jax.tree.map(jnp.copy, state.trained)
        return dataclasses.replace(self.student, weights=merged(self.student.weights, trained))

    @cached_property
    def _optimizer(self) -> optax.GradientTransformation:
        options = Optimizer("adam", self.options.rate, final=0.0, weight_decay=0.0)
        return build(options, self.options.steps)

    @cached_property
    def _step(self) -> Any:
        structures = []
        for model in (self.teacher, self.student):
            structures.append(structure_of(model.config, model.genotype))
        optimizer = self._optimizer

        def hidden(model: Transformer, tokens: Array, positions: Array) -> Array:
            valid = jnp.ones(tokens.shape, bool)
            return model.pooled(tokens, valid, None, train=False, key=None)[:, positions]

        def step(
            state: TuneState, weights: Weights, taught: Weights, tokens: Array, positions: Array
        ) -> tuple[TuneState, Array]:
            teacher: Transformer = nnx.merge(structures[0], taught)
            target = hidden(teacher, tokens, positions)
            rows = tokens.shape[0] * self.teacher.config.vocabulary
            size = min(max(1, MOST_LOGITS // rows), len(positions))

            def divergence(trained: Trained) -> Array:
                student: Transformer = nnx.merge(structures[1], merged(weights, trained))
                learned = hidden(student, tokens, positions)
                return chunked_divergence(
                    teacher.classified, student.classified, target, learned, size
                )

            value, slope = jax.value_and_grad(divergence)(state.trained)
            change, inner = optimizer.update(slope, state.optimizer, state.trained)
            moved: Any = optax.apply_updates(state.trained, change)
            return TuneState(moved, inner), value

        # Adam is as large as two models, so its state is written over.
        return jax.jit(step, donate_argnums=0)


def tune(
    teacher: Pretrained, student: Pretrained, tokens: np.ndarray, options: Tuning | None = None
) -> tuple[Pretrained, list[float]]:
    """A hybrid tuned on its checkpoint's predictions, and the KL divergence of each step.

    Args:
      teacher: the checkpoint.
      student: with other attentions, see `dartformer.pretrained.align.align`.
      tokens: sequences `[S, N]` without padding.
      options: see `Tuning`.
    """
    options = options or Tuning()
    tuner = Tuner(teacher, student, np.asarray(tokens), options)
    state, losses = tuner.begin(), []
    for step in range(options.steps):
        state, loss = tuner.advance(state, step)
        losses.append(loss)
    return tuner.model(state), losses


def measure(teacher: Pretrained, student: Pretrained, sequences: Sequences | Documents) -> Quality:
    """How a model predicts the sequences, `[1, B]`: its NLL, and its KL divergence from another."""
    if isinstance(sequences, Documents):
        raise InputError("an encoder predicts no tokens. Measure its embeddings.")
    return compare(predictions(teacher, sequences), predictions(student, sequences), sequences)


def predictions(model: Pretrained, sequences: Sequences) -> list[Array]:
    """Log-probabilities `[S, C]` of the scored tokens of each sequence."""
    rows = []
    for tokens in sequences.tokens:
        logits = model(tokens[None])[0, sequences.scored - 1]  # the token before predicts
        rows.append(jax.nn.log_softmax(logits))
    return rows


def compare(teacher: list[Array], student: list[Array], sequences: Sequences) -> Quality:
    """The quality of `predictions` beside those of the teacher."""
    rows = []
    for tokens, target, found in zip(sequences.tokens, teacher, student, strict=True):
        labels = tokens[sequences.scored]
        likelihood = found[np.arange(len(labels)), labels]
        rows.append((-float(likelihood.mean()), float(kl_divergence(target, found))))
    nll, kl = np.array(rows).T
    return Quality(nll[None], kl[None])


def training_sequences(text: np.ndarray, length: int) -> np.ndarray:
    """`[S, N]`: a text cut into sequences, in every second of which a passage comes again.

    As in `dartformer.pretrained.passages.repeated`: what plain text does not need, such as
    recalling a passage that stands far back, is not kept unless it is trained.
    """
    count = len(text) // length
    if not count:
        raise InputError(
            f"tuning needs at least {length} tokens of text, got {len(text)}. Use a longer text."
        )
    sequences = np.array(text[: count * length]).reshape(count, length)
    passage = 5 * length // 16
    sequences[1::2, length - passage :] = sequences[1::2, :passage]
    return sequences
