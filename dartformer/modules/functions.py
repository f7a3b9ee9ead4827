"""A user's module and loss as pure functions of weights and mixture, which strategies see."""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from dartformer.errors import InputError
from dartformer.modules.data import Batch, Source, missing_in, size_of
from dartformer.modules.places import Place, at, places_of, set_mixture
from dartformer.strategies.base import Metrics, Weights

UserLoss = Callable[[Any, Batch, nnx.Rngs], Array]
"""(module, batch, random streams) -> a scalar."""

Statistics = dict[str, Any]
"""What batch norms and the like have counted, by name."""

BATCHES = 8
"""Of the training data, from which the statistics of batch norms are taken before an evaluation."""


class Functions:
    """A module taken apart: its weights are an argument, and so are its mixture and its noise.

    Attributes:
      places: the mixed layers, empty in a plain module.
      weights: the parameters, as they were.
      statistics: those of batch norms, as they were.
    """

    def __init__(self, model: nnx.Module, loss: UserLoss, mixed: bool = True):
        self.loss_of = loss
        self.places: tuple[Place, ...] = ()
        if mixed:
            self.places = places_of(model)
        self.paths = [place.path for place in self.places]
        # The same weights twice: what a layer does in training is part of its structure.
        training, evaluating = nnx.clone(model), nnx.clone(model)
        training.train()
        evaluating.eval()
        self._training, *states = nnx.split(training, nnx.Param, nnx.BatchStat, ...)
        self._evaluating, *_ = nnx.split(evaluating, nnx.Param, nnx.BatchStat, ...)
        weights, statistics, rest = states
        self.weights: Weights = nnx.to_pure_dict(weights)
        self.statistics: Statistics = nnx.to_pure_dict(statistics)
        self._rest = nnx.to_pure_dict(rest)

    @property
    def structure(self) -> nnx.GraphDef[Any]:
        """What a module is without its arrays; equal ones can share compiled programs."""
        return self._evaluating

    def module(
        self,
        weights: Weights,
        mixture: Array | None,
        statistics: Statistics,
        *,
        train: bool,
        key: Array | None = None,
    ) -> nnx.Module:
        """The module with these weights, at a mixture `[L, H, K]`, drawing from a key."""
        structure = self._evaluating
        if train:
            structure = self._training
        model: nnx.Module = nnx.merge(structure, weights, statistics, self._rest)
        if mixture is not None:
            for path, rows in zip(self.paths, mixture, strict=True):
                set_mixture(at(model, path), rows)
        if key is not None:
            _reseed(model, key)
        return model

    def value(self, model: nnx.Module, batch: Batch, key: Array) -> Array:
        """The user's loss, in float32 or wider; raises `InputError` unless it is a scalar."""
        returned = self.loss_of(model, batch, nnx.Rngs(key))
        if not isinstance(returned, (Array, np.ndarray, np.number, int, float)):
            raise InputError(
                f"the loss must be a scalar, got a {type(returned).__name__}. Return one number."
            )
        value = jnp.asarray(returned)
        if value.shape:
            raise InputError(
                f"the loss must be a scalar, got an array {list(value.shape)}. Return its mean."
            )
        if jnp.iscomplexobj(value):
            raise InputError("the loss must be a real number, got a complex one.")
        return value.astype(jnp.promote_types(value.dtype, jnp.float32))

    def loss(
        self, weights: Weights, mixture: Array | None, batch: Batch, key: Array
    ) -> tuple[Array, Metrics]:
        """See `dartformer.strategies.base.Loss`; in training mode."""
        model = self.module(weights, mixture, self.statistics, train=True, key=key)
        return self.value(model, batch, key), {}

    def loss_and_statistics(
        self,
        weights: Weights,
        mixture: Array | None,
        statistics: Statistics,
        batch: Batch,
        key: Array,
    ) -> tuple[Array, Statistics]:
        """The loss in training mode, and the statistics of batch norms after it."""
        model = self.module(weights, mixture, statistics, train=True, key=key)
        value = self.value(model, batch, key)
        return value, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


class Evaluator:
    """The loss on a part of the data, in evaluation mode.

    Where the module has batch norms, their statistics are first taken from a few training batches
    at the same weights and mixture: those of another mixture would say nothing (Guo et al. 2020,
    arXiv:1904.00420, section 3.4).

    Args:
      functions: of the module.
      training: batches to take statistics from.
    """

    def __init__(self, functions: Functions, training: Iterable[Batch]):
        self.functions = functions
        self.training: list[Batch] = []
        if functions.statistics:
            self.training = list(training)
        self._loss = jax.jit(self._evaluated)
        self._counted = jax.jit(functions.loss_and_statistics)

    def _evaluated(
        self, weights: Weights, mixture: Array | None, statistics: Statistics, batch: Batch
    ) -> Array:
        model = self.functions.module(weights, mixture, statistics, train=False)
        return self.functions.value(model, batch, jax.random.key(0))

    def statistics(self, weights: Weights, mixture: ArrayLike | None) -> Statistics:
        """Those of batch norms at these weights and this mixture."""
        statistics = self.functions.statistics
        for number, batch in enumerate(self.training):
            key = jax.random.key(number)
            _, statistics = self._counted(weights, mixture, statistics, batch, key)
        return statistics

    def losses(
        self,
        weights: Weights,
        mixture: ArrayLike | None,
        part: Source,
        examples: int | None = None,
        statistics: Statistics | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The loss of each batch, `[batches]`, and how many examples it has."""
        if statistics is None:
            statistics = self.statistics(weights, mixture)
        values, sizes = [], []
        for batch in part.once(examples):
            values.append(self._loss(weights, mixture, statistics, batch))
            sizes.append(size_of(batch))
        losses = np.asarray(jax.device_get(values), np.float64)
        if np.isnan(losses).any():
            self._explain(part, int(np.isnan(losses).argmax()))
        return losses, np.asarray(sizes)

    def _explain(self, part: Source, number: int) -> None:
        """Raise `InputError` where an undefined loss comes of missing values in the data."""
        batch = next(itertools.islice(part.once(), number, None))
        missing = missing_in(part.name, batch)
        if missing:
            raise InputError(
                f"{missing} of batch {number + 1}, and the loss is NaN there. Fill them, or leave "
                f"these examples out."
            )

    def mean(
        self,
        weights: Weights,
        mixture: ArrayLike | None,
        part: Source,
        statistics: Statistics | None = None,
    ) -> float:
        """The mean loss over the examples."""
        values, sizes = self.losses(weights, mixture, part, None, statistics)
        return float(np.average(values, weights=sizes))


def _reseed(model: nnx.Module, key: Array) -> None:
    """Let all random streams of a module draw from a key, each in its own way."""
    for number, stream in enumerate(_streams(model)):
        stream.key[...] = jax.random.fold_in(key, number)
        stream.count[...] = jnp.zeros((), stream.count.dtype)


def _streams(model: nnx.Module) -> Iterable[nnx.RngStream]:
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.RngStream):
            yield node
