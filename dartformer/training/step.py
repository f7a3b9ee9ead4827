"""One step of training: its loss, its state, and its compiled program."""

import functools
import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.stages import Compiled

from dartformer.data.splits import Batch
from dartformer.machine import hosts
from dartformer.models.transformer import Network, Weights, label_scores
from dartformer.training.accumulate import summed
from dartformer.training.devices import MeshLayout
from dartformer.training.metric import ACCURACY, Losses, Metric

Metrics = dict[str, Array]
"""Scalars of one step by name; at least `loss` and the bool `finite`."""

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of a batch's arrays, in the order of its leaves."""


class HasStep(Protocol):
    """A training state: any pytree that counts its steps."""

    @property
    def step(self) -> Array: ...


State = TypeVar("State", bound=HasStep)

Step = Callable[[State, Any], tuple[State, Metrics]]
"""(state, batch) -> (state, metrics)."""


class TrainState(NamedTuple):
    """The whole state of plain training, one pytree."""

    step: Array
    key: Array
    weights: Weights
    optimizer: optax.OptState


def begin(
    network: Network,
    optimizer: optax.GradientTransformation,
    seed: int,
    layout: MeshLayout | None = None,
) -> TrainState:
    """The state before the first step, where it lies; its values depend on the seed alone."""
    key = jax.random.key(seed)
    if layout is None:
        return _begin(network, optimizer, key)
    return layout.make(_beginning(network, optimizer), key)


@functools.lru_cache(maxsize=64)
def _beginning(
    network: Network, optimizer: optax.GradientTransformation
) -> Callable[[Array], TrainState]:
    """`_begin` of a key; one object for each model, by which its program is found again."""
    return functools.partial(_begin, network, optimizer)


def _begin(network: Network, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    # Two keys, so that dropout during training is independent of the initialization.
    weights_key, key = jax.random.split(key)
    weights = network.init(weights_key)
    return TrainState(jnp.zeros((), jnp.int32), key, weights, optimizer.init(weights))


TrainingLoss = Callable[[Weights, Array | None, Batch, Array], tuple[Array, Metrics]]
"""(weights, mixture, batch, key) -> (mean loss, metrics to log)."""


def training_loss(network: Network, metric: Metric = ACCURACY, parts: int = 1) -> TrainingLoss:
    """The mean loss of a batch, in training mode.

    The loss is cross-entropy, logged with the accuracy, or the squared error for regression. With
    `parts` above 1 the batch is computed in so many parts, one after the other (see `summed`): the
    mean is the same, over all labels of the batch, but each part has dropout of its own.
    """
    if parts > 1:
        return _loss_in_parts(network, metric, parts)

    def loss(
        weights: Weights, mixture: Array | None, batch: Batch, key: Array
    ) -> tuple[Array, Metrics]:
        tokens, valid, labels = batch["tokens"], batch["valid"], batch["label"]
        arrays = (weights, tokens, valid, labels, mixture)
        losses = label_scores(network, metric.losses, *arrays, train=True, key=key)
        return metric.batch_mean(losses, labels)

    return loss


def _loss_in_parts(network: Network, metric: Metric, parts: int) -> TrainingLoss:
    """See `training_loss`."""

    def part_loss(
        weights: Weights, mixture: Array | None, part: Batch, key: Array
    ) -> tuple[Array, Losses[Array]]:
        arrays = (weights, part["tokens"], part["valid"], part["label"], mixture)
        losses = label_scores(network, metric.losses, *arrays, train=True, key=key)
        return jnp.sum(losses.loss * part["share"].astype(losses.loss.dtype)), losses

    total = summed(part_loss, parts)

    def loss(
        weights: Weights, mixture: Array | None, batch: Batch, key: Array
    ) -> tuple[Array, Metrics]:
        labels = jnp.asarray(batch["label"])
        # Of the whole batch: a part with few labels must not count as much as one with many.
        with_shares = {**batch, "share": metric.shares(labels)}
        value, losses = total(weights, mixture, with_shares, key)
        return value, metric.batch_mean(losses, labels)[1]

    return loss


def plain_step(
    network: Network,
    optimizer: optax.GradientTransformation,
    metric: Metric = ACCURACY,
    parts: int = 1,
) -> Step[TrainState]:
    """One step of ordinary training of a network without a mixture.

    `parts` of a batch are computed one after the other (see `training_loss`).
    """
    stepped = step_of(training_loss(network, metric, parts), optimizer)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return stepped(state, (batch, None))

    return step


def step_of(
    loss: TrainingLoss, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, tuple[Batch, Array | None]], tuple[TrainState, Metrics]]:
    """One step of ordinary training on any loss, at the mixture that comes with each batch."""
    value_and_gradient = jax.value_and_grad(loss, has_aux=True)

    def step(state: TrainState, pair: tuple[Batch, Array | None]) -> tuple[TrainState, Metrics]:
        batch, mixture = pair
        # Folded in and not split: the dropout of a step depends on its number alone.
        key = jax.random.fold_in(state.key, state.step)
        (value, metrics), gradient = value_and_gradient(state.weights, mixture, batch, key)
        updates, moments = optimizer.update(gradient, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        norm = optax.tree.norm(gradient)
        # A NaN anywhere in the gradient makes its norm NaN, so one scalar guards all parameters.
        finite = jnp.isfinite(value + norm)
        metrics = {"loss": value, **metrics, "gradient_norm": norm, "finite": finite}
        return TrainState(state.step + 1, state.key, weights, moments), metrics

    return step


class StepProgram(Protocol[State]):
    """A step that is compiled ahead of its first call."""

    @property
    def compile_seconds(self) -> float:
        """The time spent on compiling so far."""
        ...

    def prepare(self, state: State, batch: Any) -> None:
        """Compile for the shapes of this batch, if that has not been done."""
        ...

    def place(self, batch: Any) -> Any:
        """The batch where the step reads it: the copy to a device begins, and is not waited for."""
        ...

    def spread(self, state: State) -> State:
        """The state where the step takes it."""
        ...

    def __call__(self, state: State, batch: Any) -> tuple[State, Metrics]: ...


def placed(batch: Any, layout: MeshLayout | None) -> Any:
    """A batch on its device, or shared out over several; the copy is begun, and not waited for."""
    if layout is not None:
        return layout.place(batch)
    if jax.default_backend() == "cpu":
        # The device's memory is the host's, and a call of its own would cost 0.1 ms.
        return batch
    return jax.device_put(batch)


class CompiledStep(Generic[State]):
    """A step compiled once for each shape of a batch, so that compilation is timed apart.

    Attributes:
      programs: the compiled programs, by the shapes of a batch's arrays.
      compile_seconds: the time it took to compile them.

    Args:
      step: the function to compile.
      layout: where state and batch lie; None for one device.
    """

    def __init__(self, step: Step[State], layout: MeshLayout | None = None):
        self._step, self._layout = step, layout
        self.programs: dict[Shapes, Compiled] = {}
        self.compile_seconds = 0.0

    def prepare(self, state: State, batch: Any) -> None:
        """See `StepProgram`."""
        self._program(state, batch)

    def place(self, batch: Any) -> Any:
        """See `StepProgram`."""
        return placed(batch, self._layout)

    def spread(self, state: State) -> State:
        """See `StepProgram`."""
        if self._layout is None:
            return state
        return self._layout.spread(state)

    def _program(self, state: State, batch: Any) -> Compiled:
        shapes = tuple(map(np.shape, jax.tree.leaves(batch)))
        program = self.programs.get(shapes)
        if program is None:
            started = time.perf_counter()
            program = self._compiled(state, batch)
            self.programs[shapes] = program
            self.compile_seconds += time.perf_counter() - started
            hosts.meet("compiled")
        return program

    def _compiled(self, state: State, batch: Any) -> Compiled:
        # The state is donated: each step writes the new weights over the old ones.
        layout = self._layout
        if layout is None:
            return jax.jit(self._step, donate_argnums=0).lower(state, batch).compile()
        divided = layout.state(state)
        jitted = jax.jit(
            self._step,
            donate_argnums=0,
            in_shardings=(divided, layout.batch),
            out_shardings=(divided, layout.replicated),
        )
        # Within the mesh attention is divided by the examples of a batch.
        with jax.set_mesh(layout.mesh):
            return jitted.lower(state, batch).compile()

    def __call__(self, state: State, batch: Any) -> tuple[State, Metrics]:
        # A compiled program takes arrays only where it expects them, and never moves them.
        if self._layout is not None and not self._layout.holds(state):
            state = self._layout.spread(state)
        if self._layout is not None and not self._layout.holds(batch):
            batch = self._layout.place(batch)
        state, metrics = self._program(state, batch)(state, batch)
        return state, metrics
