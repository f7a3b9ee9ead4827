"""The only training loop, for search and for retraining: step, log, evaluate, checkpoint, stop when
it diverges."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from dartformer.data.batches import examine
from dartformer.data.splits import Batch, Split
from dartformer.machine.identity import Identity, require_same
from dartformer.machine.progress import Bar, say
from dartformer.machine.workdir import jsonable, write_text
from dartformer.models.transformer import Network, Weights
from dartformer.training import trackers
from dartformer.training.checkpoint import IDENTITY, Checkpoints
from dartformer.training.devices import Shared
from dartformer.training.metric import ACCURACY, Metric

Metrics = dict[str, Array]
Step = Callable[[Any, Any], tuple[Any, Metrics]]
"""(state, batch) -> (state, metrics); metrics hold at least `loss` and the bool `finite`."""


class Diverged(RuntimeError):
    """The loss or a parameter is no longer finite."""


class Interrupted(RuntimeError):
    """The process was asked to stop; everything is saved. `signal` is the signal's number."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class Stream(Protocol):
    """An endless, resumable iterator of batches."""

    def __next__(self) -> Any: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class Together:
    """Several streams as one, which yields a tuple of their batches."""

    def __init__(self, *streams: Stream):
        self.streams = streams

    def __next__(self) -> tuple[Any, ...]:
        return tuple(next(stream) for stream in self.streams)

    def get_state(self) -> list[Any]:
        """The states of all streams."""
        return [stream.get_state() for stream in self.streams]

    def set_state(self, state: list[Any]) -> None:
        """Continue where `get_state` was called."""
        for stream, one in zip(self.streams, state, strict=True):
            stream.set_state(one)


class TrainState(NamedTuple):
    """All that plain training knows, one pytree."""

    step: Array
    key: Array
    weights: Weights
    optimizer: optax.OptState


def training_loss(
    network: Network, metric: Metric = ACCURACY
) -> Callable[..., tuple[Array, Metrics]]:
    """loss(weights, mixture, batch, key) -> (mean loss, what else is logged), in training mode.

    The loss is cross-entropy (with {"accuracy"}), or the squared error where numbers are predicted.
    """

    def loss(
        weights: Weights, mixture: Array | None, batch: Batch, key: Array
    ) -> tuple[Array, Metrics]:
        logits = network.apply(
            weights, batch["tokens"], batch["valid"], mixture, train=True, key=key
        )
        return metric.training(metric.losses(logits, batch["label"]))

    return loss


def plain_step(
    network: Network, optimizer: optax.GradientTransformation, metric: Metric = ACCURACY
) -> Step:
    """One step of ordinary training of a network without a mixture."""
    loss = training_loss(network, metric)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.weights, None, batch, key
        )
        updates, moments = optimizer.update(gradient, state.optimizer, state.weights)
        norm = optax.tree.norm(gradient)
        metrics = {
            "loss": value,
            **metrics,
            "gradient_norm": norm,
            "finite": jnp.isfinite(value + norm),
        }
        return TrainState(
            state.step + 1, state.key, optax.apply_updates(state.weights, updates), moments
        ), metrics

    return step


def begin(network: Network, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step; everything in it follows from the seed."""
    weights_key, key = jax.random.split(jax.random.key(seed))
    weights = network.init(weights_key)
    return TrainState(jnp.zeros((), jnp.int32), key, weights, optimizer.init(weights))


class Evaluator:
    """Loss and metric of a network over a whole split; compiled once for all weights and mixtures,
    for each length."""

    def __init__(
        self, network: Network, batch_size: int, metric: Metric = ACCURACY, buckets: int = 1
    ):
        self.batch_size, self.metric, self.buckets = batch_size, metric, buckets

        @jax.jit
        def sums(weights: Weights, mixture: Array | None, batch: Batch) -> Array:
            logits = network.apply(weights, batch["tokens"], batch["valid"], mixture)
            found = jnp.stack(metric.losses(logits, batch["label"]))
            return found.reshape(*found.shape[:2], -1).sum(-1) * batch["weight"]

        self._sums = sums

    def _each(self, weights: Weights, split: Split, mixture: ArrayLike | None) -> np.ndarray:
        """`[3, S]`: sums over the labels of each example (see `Metric.losses`)."""
        size = min(self.batch_size, len(split))
        rows, sums = [], []
        for batch in examine(split, size, self.buckets):
            rows.append(batch.pop("row"))
            sums.append(self._sums(weights, mixture, batch))
        found = np.concatenate([np.asarray(s, np.float64) for s in jax.device_get(sums)], -1)[
            :, : len(split)
        ]
        return found[:, np.argsort(np.concatenate(rows)[: len(split)])]

    def __call__(
        self, weights: Weights, split: Split, mixture: ArrayLike | None = None
    ) -> dict[str, float]:
        """`{"loss", "accuracy"}`, means over the split's labels; `{"loss", "r2"}` where numbers are
        predicted."""
        return self.metric.over(*self._each(weights, split, mixture))

    def each(
        self, weights: Weights, split: Split, mixture: ArrayLike | None = None
    ) -> dict[str, np.ndarray]:
        """The same, `[S]` for the examples: their means are those of a call, whatever number of
        labels each has."""
        return self.both(weights, split, mixture)[1]

    def both(
        self, weights: Weights, split: Split, mixture: ArrayLike | None = None
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """What a call gives, and what `each` gives, of one pass over the split."""
        loss, correct, count = self._each(weights, split, mixture)
        scale = len(split) / count.sum()
        each = {
            "loss": loss * scale,
            **({} if self.metric.name == "r2" else {"accuracy": correct * scale}),
        }
        return self.metric.over(loss, correct, count), each


class CompiledStep:
    """A step compiled once for each shape of a batch, so that compiling is counted apart from
    running.

    Attributes:
      programs: compiled so far, by the shapes of a batch's arrays.
      compile_seconds: what they took to compile.

    Args:
      step: what is compiled.
      shared: how the examples of a batch are shared out among devices; None: there is one.
    """

    def __init__(self, step: Step, shared: Shared | None = None):
        self._shared = shared
        where: dict[str, Any] = (
            {}
            if shared is None
            else {
                "in_shardings": (shared.everywhere, shared.parts),
                "out_shardings": shared.everywhere,
            }
        )
        self._jitted = jax.jit(step, donate_argnums=0, **where)
        self.programs: dict[Any, Any] = {}
        self.compile_seconds = 0.0

    def prepare(self, state: Any, batch: Any) -> None:
        """Compile for these shapes, unless that is done."""
        self._for(state, batch)

    def _for(self, state: Any, batch: Any) -> Any:
        shapes = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
        if shapes not in self.programs:
            started = time.perf_counter()
            self.programs[shapes] = self._jitted.lower(state, batch).compile()
            self.compile_seconds += time.perf_counter() - started
        return self.programs[shapes]

    def __call__(self, state: Any, batch: Any) -> tuple[Any, Metrics]:
        if self._shared is not None:
            state, batch = self._shared.place(state, batch)
        return self._for(state, batch)(state, batch)


@dataclass
class Fitted:
    """What `fit` returns: the last state, how long it took, and the evaluations made on the way."""

    state: Any
    seconds: float
    compile_seconds: float
    evaluations: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """How long, and how often, all in steps; and who else is told, names of
    `dartformer.training.trackers.TRACKERS`."""

    steps: int
    log_every: int = 20
    eval_every: int = 100
    checkpoint_every: int = 100
    trackers: tuple[str, ...] = ()


def fit(
    name: str,
    step: CompiledStep,
    state: Any,
    stream: Stream,
    schedule: Schedule,
    folder: Path,
    *,
    evaluate: Callable[[Any], Mapping[str, Any]] | None = None,
    describe: Callable[[Any], Mapping[str, Any]] | None = None,
    observe: Callable[[Any], Mapping[str, Any]] | None = None,
    rates: dict[str, optax.Schedule] | None = None,
    metric: Metric = ACCURACY,
    identity: Identity | None = None,
) -> Fitted:
    """Run `schedule.steps` steps from `state`, or from where an earlier call in the same folder
    stopped.

    Args:
      name: shown in the progress bar.
      step: a `CompiledStep`; its state has a field `step`.
      state: the state before the first step.
      stream: batches; its position is saved with every checkpoint.
      schedule: how long and how often.
      folder: gets `metrics.jsonl`, `tensorboard/` and `checkpoints/`.
      evaluate: state -> numbers, every `eval_every` steps and at the end; its `metric` decides the
        best checkpoint.
      describe: state -> anything cheap to be logged with the metrics.
      observe: state -> anything dearer, logged with each evaluation.
      rates: learning-rate schedules, logged by name (and told when training diverges).
      metric: what is scored.
      identity: what the training belongs to; saved with every checkpoint.

    Raises:
      InputError: the checkpoints in `folder` belong to something else.
      Diverged: a loss or parameter is not finite; the last good checkpoint is kept.
      Interrupted: on SIGTERM or SIGINT, after saving.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rates = rates or {}
    identity = identity or {}
    with Checkpoints(folder / "checkpoints") as checkpoints:
        remedy = f"Use a new workdir, or delete {folder}."
        require_same(checkpoints.identity(), identity, f"the training in {folder}", remedy)
        restored = checkpoints.latest(state, warn=say)
        evaluations: list[dict[str, Any]] = []
        seconds, compile_seconds = 0.0, 0.0
        if restored is not None:
            state = restored.state
            stream.set_state(restored.extra["stream"])
            evaluations = restored.extra["evaluations"]
            seconds, compile_seconds = restored.extra["seconds"], restored.extra["compile_seconds"]
        done = int(state.step)
        if done >= schedule.steps:
            return Fitted(state, seconds, compile_seconds, evaluations)
        if done:
            say(f"{name}: resuming at step {done} of {schedule.steps}")
        log = _Log(folder, done, trackers.start(schedule.trackers, folder, name, done))
        batch = next(stream)
        step.prepare(state, batch)
        compile_seconds = max(compile_seconds, step.compile_seconds)
        compiled = step.compile_seconds
        pending: list[Metrics] = []
        started = time.perf_counter()

        def save(score: float | None = None) -> None:
            spent = seconds + time.perf_counter() - started
            checkpoints.save(
                done,
                state,
                {
                    IDENTITY: dict(identity),
                    "stream": position,
                    "evaluations": evaluations,
                    "seconds": spent,
                    "compile_seconds": compile_seconds,
                },
                score,
            )

        def rates_at(s: int) -> dict[str, float]:
            return {rate: float(of(s)) for rate, of in rates.items()}

        with _StopSignal() as stop, Bar(name, schedule.steps, done) as bar, log:
            while True:
                state, metrics = step(state, batch)
                pending.append(metrics)
                done += 1
                last = done == schedule.steps
                due = {
                    kind: last or done % every == 0
                    for kind, every in (
                        ("log", schedule.log_every),
                        ("eval", schedule.eval_every),
                        ("save", schedule.checkpoint_every),
                    )
                }
                if any(due.values()) or stop.number:
                    # Nothing is saved or believed before the steps since the last look are known to
                    # be finite.
                    position = stream.get_state()
                    numbers = _look(jax.device_get(pending), done, rates_at, name)
                    pending.clear()
                    log.write(
                        done,
                        {**numbers, **rates_at(done - 1), **(describe(state) if describe else {})},
                    )
                    bar.update(done, {k: numbers[k] for k in ("loss", "accuracy") if k in numbers})
                    score = None
                    if evaluate is not None and due["eval"]:
                        found = evaluate(state)
                        evaluations.append({"step": done, **found})
                        log.write(
                            done,
                            {
                                **{f"valid_{k}": v for k, v in found.items()},
                                **(observe(state) if observe else {}),
                            },
                        )
                        score = metric.better(found)
                    if due["save"] or score is not None or stop.number:
                        save(score)
                    if stop.number and not last:
                        checkpoints.close()
                        raise Interrupted(
                            f"stopped at step {done} of {schedule.steps} of {name}; everything is saved. "
                            f"Run the same command again to continue.",
                            stop.number,
                        )
                if last:
                    break
                batch = next(stream)
        late = step.compile_seconds - compiled  # for lengths that came up on the way
        return Fitted(
            state,
            seconds + time.perf_counter() - started - late,
            compile_seconds + late,
            evaluations,
        )


def _look(
    pending: list[dict[str, Any]], done: int, rates_at: Callable[[int], dict[str, float]], name: str
) -> dict[str, float]:
    """Means of the metrics over the steps since the last look; raises `Diverged` at the first that
    is not finite."""
    first = done - len(pending)
    for i, metrics in enumerate(pending):
        if not metrics["finite"]:
            rates = ", ".join(f"{rate} {value:.3g}" for rate, value in rates_at(first + i).items())
            raise Diverged(
                f"{name}: the loss or a parameter is not finite at step {first + i + 1} "
                f"(loss {float(metrics['loss']):.4g}; {rates or 'no rates'}). The last good checkpoint is "
                f"kept; try a lower learning rate, more warm-up or a smaller clip."
            )
    names = [k for k in pending[0] if k != "finite"]
    means = {
        k: float(np.mean([m[k] for m in pending if np.isfinite(m[k])] or [math.nan])) for k in names
    }
    return {k: v for k, v in means.items() if math.isfinite(v)}


class _Log:
    """`metrics.jsonl` and the trackers; lines after the step resumed from are dropped."""

    def __init__(self, folder: Path, done: int, told: Sequence[trackers.Tracker]):
        self.file = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self.file) if line["step"] <= done]
        write_text(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        self.told = told

    def __enter__(self) -> "_Log":
        self.handle = open(self.file, "a", encoding="utf-8")
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            if (
                kind is not None
            ):  # an error is under way: a full disk must not replace it with its own
                stack.enter_context(contextlib.suppress(OSError))
            self.handle.close()
            for one in self.told:
                one.close()

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        self.handle.write(json.dumps(jsonable({"step": step, **numbers})) + "\n")
        self.handle.flush()
        # A search also notes its whole mixture, which trackers have no plot for.
        scalars = {
            name: value for name, value in numbers.items() if isinstance(value, (int, float))
        }
        for one in self.told:
            one.scalars(step, scalars)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut short by a crash is left out."""
    lines = []
    if file.exists():
        for text in file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


class _StopSignal:
    """Notes SIGTERM and SIGINT instead of dying of them, so that the step under way is finished and
    saved.

    A second one acts as usual. Outside the main thread, where Python allows no handlers, it does
    nothing."""

    number = 0

    def __enter__(self) -> "_StopSignal":
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.number:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        self.number = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
