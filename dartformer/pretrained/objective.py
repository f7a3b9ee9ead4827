"""What a placement keeps of a checkpoint: its outputs for a sequence, and a loss of two of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.models.transformer import Transformer
from dartformer.pretrained.sentence import pooled, unit

NLL, KL, DISTANCE = "nll", "kl", "distance"


class Objective(Protocol):
    """The outputs of a model, and how far those of a student are from the teacher's.

    Attributes:
      names: of what `measured` gives: the first is the loss of a placement, and the last is `loss`.
    """

    names: ClassVar[tuple[str, ...]]

    def output(self, model: Transformer, mixture: Array, tokens: Array, positions: Array) -> Array:
        """The outputs of one sequence `[N]`, of which `positions` says what counts."""
        ...

    def loss(self, teacher: Array, student: Array) -> Array:
        """How far a student's outputs are from the teacher's: 0 where they are equal."""
        ...

    def measured(
        self, teacher: Array, student: Array, tokens: Array, positions: Array
    ) -> Mapping[str, Array]:
        """Each of `names` of one sequence."""
        ...


@dataclass(frozen=True)
class NextTokens:
    """A decoder's log-probabilities of the scored tokens `[S]`, by the KL divergence."""

    names: ClassVar[tuple[str, ...]] = (NLL, KL)

    def output(self, model: Transformer, mixture: Array, tokens: Array, positions: Array) -> Array:
        """`[S, C]`."""
        valid = jnp.ones((1, len(tokens)), bool)
        x = model.pooled(tokens[None], valid, mixture, train=False, key=None)
        # The token before predicts.
        return jax.nn.log_softmax(model.classified(x[:, positions - 1])[0])

    def loss(self, teacher: Array, student: Array) -> Array:
        """The mean of KL(teacher || student)."""
        return kl_divergence(teacher, student)

    def measured(
        self, teacher: Array, student: Array, tokens: Array, positions: Array
    ) -> dict[str, Array]:
        """The mean NLL of the tokens, and the KL divergence."""
        likelihood = jnp.take_along_axis(student, tokens[positions][:, None], 1)
        return {NLL: -likelihood.mean(), KL: kl_divergence(teacher, student)}


@dataclass(frozen=True)
class Embeddings:
    """An encoder's embedding of a text, by its cosine distance; `[N]` says which tokens are valid.

    Attributes:
      pooling: see `dartformer.pretrained.sentence.Sentence`. Whether the checkpoint normalizes its
        embeddings changes no cosine.
    """

    names: ClassVar[tuple[str, ...]] = (DISTANCE,)

    pooling: str = "mean"

    def output(self, model: Transformer, mixture: Array, tokens: Array, positions: Array) -> Array:
        """`[E]`, of length 1."""
        valid = positions[None]
        states = model.pooled(tokens[None], valid, mixture, train=False, key=None)
        return unit(pooled(states, valid, self.pooling).astype(jnp.float32))[0]

    def loss(self, teacher: Array, student: Array) -> Array:
        """1 - cosine."""
        # |a - b|^2 = 2 - 2 cos for vectors of length 1, and this loses no digits where they agree.
        return jnp.sum((teacher - student) ** 2) / 2

    def measured(
        self, teacher: Array, student: Array, tokens: Array, positions: Array
    ) -> dict[str, Array]:
        """The distance."""
        return {DISTANCE: self.loss(teacher, student)}


def kl_divergence(teacher: Array, student: Array) -> Array:
    """Mean KL divergence of log-probabilities `[S, C]`, KL(teacher || student)."""
    return jnp.sum(jnp.exp(teacher) * (teacher - student), -1).mean()
