"""The only training loop, of search and retraining: step, log, evaluate, save, stop if diverged."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol

import jax
import numpy as np
import optax

from dartformer.errors import InputError
from dartformer.machine import hosts
from dartformer.machine.identity import Identity, require_same
from dartformer.machine.progress import Bar, say
from dartformer.machine.signals import StopSignal
from dartformer.training import trackers
from dartformer.training.callbacks import Callbacks, Moment, Stopped, current
from dartformer.training.checkpoint import IDENTITY, Checkpoints
from dartformer.training.finite import not_finite
from dartformer.training.log import MetricsLog, Numbers
from dartformer.training.metric import ACCURACY, Metric
from dartformer.training.step import Metrics, State, StepProgram
from dartformer.training.trace import traced

SHOWN = ("loss", "accuracy")
"""Metrics that the progress bar shows."""


class Diverged(RuntimeError):
    """The loss, a gradient or a parameter is no longer finite."""


class Interrupted(RuntimeError):
    """The process received a signal to stop, and everything is saved.

    Attributes:
      signal: the number of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class Stream(Protocol):
    """An endless, resumable iterator of batches."""

    def __next__(self) -> Any: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class ZippedStream:
    """Several streams as one stream of tuples."""

    def __init__(self, *streams: Stream):
        self.streams = streams

    def __next__(self) -> tuple[Any, ...]:
        return tuple(map(next, self.streams))

    def get_state(self) -> list[Any]:
        """The states of all streams."""
        states = []
        for stream in self.streams:
            states.append(stream.get_state())
        return states

    def set_state(self, state: list[Any]) -> None:
        """Continue where `get_state` was called."""
        for stream, position in zip(self.streams, state, strict=True):
            stream.set_state(position)


class Ahead:
    """The batches of a stream, one of which is drawn and put on the device while a step computes.

    `flax.jax_utils.prefetch_to_device` and grain's `device_put` do not say where their source stood
    before what they hold, which is what a checkpoint needs.

    Attributes:
      position: of the stream, before the batch that `take` returns next.

    Args:
      stream: of batches.
      place: begins to copy a batch to the device.
    """

    def __init__(self, stream: Stream, place: Callable[[Any], Any]):
        self._stream, self._place = stream, place
        self._held: Any = None
        self._is_held = False
        self._error: Exception | None = None
        self.position: Any = None

    def draw(self) -> None:
        """Hold the next batch, if none is held.

        What the stream raises is kept for `take`: the step before may yet be saved, or the last."""
        if self._is_held or self._error is not None:
            return
        self.position = self._stream.get_state()
        try:
            self._held = self._place(next(self._stream))
            self._is_held = True
        except Exception as error:
            self._error = error

    def take(self) -> Any:
        """The next batch; it is held no longer."""
        self.draw()
        if self._error is not None:
            raise self._error
        batch, self._held, self._is_held = self._held, None, False
        self.position = self._stream.get_state()
        return batch


class Due(NamedTuple):
    """What follows a step."""

    log: bool
    evaluation: bool
    checkpoint: bool


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how often to log, evaluate and save, all in steps.

    `trackers` are names of `dartformer.training.trackers.TRACKERS`. With `pause` a training stops
    after that step, to go on later with the same rates; None: it goes on to the end. With `patience`
    it ends after so many evaluations without a better one; 0: it does not.
    """

    steps: int
    log_every: int = 20
    eval_every: int = 100
    checkpoint_every: int = 100
    trackers: tuple[str, ...] = ()
    pause: int | None = None
    patience: int = 0

    @property
    def end(self) -> int:
        """The last step of this call."""
        return self.pause or self.steps

    def due(self, done: int) -> Due:
        """What follows step number `done`; everything follows the last one."""
        # Whoever asks for 250 steps and an evaluation every 100 wants one of the final state.
        last = done == self.end
        return Due(
            log=last or done % self.log_every == 0,
            evaluation=last or done % self.eval_every == 0,
            checkpoint=last or done % self.checkpoint_every == 0,
        )

    def ended_early(self, evaluations: Sequence[Numbers], metric: Metric) -> bool:
        """Whether the last `patience` evaluations were no better than one before them."""
        scores = []
        for scored in evaluations:
            # Those of a pause stand between, so that a race ends no training sooner.
            if scored["step"] % self.eval_every == 0:
                scores.append(metric.objective(scored))
        if not scores or self.patience == 0:
            return False
        # The first of equals: one that is no better does not lengthen the wait.
        best = scores.index(max(scores))
        return len(scores) - 1 - best >= self.patience


class Form(NamedTuple, Generic[State]):
    """Two shapes of a state: as it is kept and shown, and as its step takes it.

    Attributes:
      enter: from the kept shape to that of the step.
      leave: the other way round.
    """

    enter: Callable[[State], State]
    leave: Callable[[State], State]


def _same(state: Any) -> Any:
    return state


AS_IT_IS: Form[Any] = Form(_same, _same)
"""The step takes the state as it is kept."""


@dataclass
class Fitted(Generic[State]):
    """What `fit` returns.

    Attributes:
      state: the last one.
      seconds: of training, without compiling.
      compile_seconds: of compiling the step.
      evaluations: scores on valid, each with its step.
      processor_seconds: of all cores in `seconds`.
    """

    state: State
    seconds: float
    compile_seconds: float
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    processor_seconds: float = 0.0


def fit(
    name: str,
    step: StepProgram[State],
    state: State,
    stream: Stream,
    schedule: Schedule,
    folder: Path | None,
    *,
    evaluate: Callable[[State], Numbers] | None = None,
    describe: Callable[[State], Numbers] | None = None,
    observe: Callable[[State], Numbers] | None = None,
    rates: Mapping[str, optax.Schedule] | None = None,
    metric: Metric = ACCURACY,
    identity: Identity | None = None,
    form: Form[State] = AS_IT_IS,
    kind: str = "training",
) -> Fitted[State]:
    """Train for `schedule.steps` steps, from `state` or from the folder's last checkpoint.

    Args:
      name: the title of the progress bar.
      step: a compiled step; it may reuse the memory of `state`.
      state: the state before the first step.
      stream: batches; every checkpoint holds its position.
      schedule: how long and how often.
      folder: gets `metrics.jsonl`, `tensorboard/` and `checkpoints/`. None: train in memory alone,
        without log, checkpoints and progress bar.
      evaluate: state -> scores, every `eval_every` steps and at the end; `metric` picks the best
        checkpoint by them.
      describe: state -> cheap numbers, logged with the metrics.
      observe: state -> expensive numbers, logged with each evaluation.
      rates: learning-rate schedules, logged by name (and named when training diverges).
      metric: the metric of `evaluate`.
      identity: what the training belongs to; every checkpoint holds it.
      form: of the state that `step` takes. Checkpoints, callbacks and the result have it as it is
        kept.
      kind: "training" or "search", the name of its trace (`dartformer.training.trace`).

    Raises:
      InputError: the checkpoints in `folder` belong to something else.
      Diverged: a loss, gradient or parameter is not finite. The checkpoint before is kept.
      Interrupted: on SIGTERM or SIGINT, after saving.
      Stopped: a callback of `dartformer.training.callbacks` returned False, after saving.
    """
    callbacks = _Callbacks(evaluate, describe, observe, rates or {}, metric)
    training = _Training(name, step, state, stream, schedule, callbacks, identity or {}, form, kind)
    if folder is None:
        training.compile()
        training.run(None)
        return training.result()
    hosts.by_chief(lambda: _make_folder(folder))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        # Compared before anything is restored: arrays of another model have other shapes, and their
        # errors would say nothing about the cause.
        remedy = f"Use a new workdir, or delete {folder}."
        require_same(checkpoints.identity(), training.identity, f"the training in {folder}", remedy)
        training.restore(checkpoints)
        if training.done >= schedule.end or training.ended_early:
            return training.result()
        if training.done:
            say(f"{name}: resuming at step {training.done} of {schedule.end}")
        # Opened after the restore, because each drops what it holds of later steps.
        receivers: list[trackers.Tracker] = []
        if hosts.chief():
            receivers = trackers.start(schedule.trackers, folder, name, training.done)
        log = MetricsLog(folder, training.done, receivers)
        # Compiled before signals are caught: until the first step there is nothing to save.
        training.compile()
        with StopSignal() as stop, Bar(name, schedule.end, training.done) as bar, log:
            training.run(_Outputs(folder, checkpoints, log, bar, stop, current()))
        # Until then the last two are kept, so that one that is damaged has another before it.
        checkpoints.prune()
        # What the chief logged is read next, by all.
        hosts.meet("trained")
        return training.result()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{folder} must be a folder, but a file stands there. Move it.") from None


class _Callbacks(NamedTuple, Generic[State]):
    """What `fit` is asked to compute of a state; see its arguments."""

    evaluate: Callable[[State], Numbers] | None
    describe: Callable[[State], Numbers] | None
    observe: Callable[[State], Numbers] | None
    rates: Mapping[str, optax.Schedule]
    metric: Metric


class _Outputs(NamedTuple):
    """Where a training with a folder writes and shows its progress, and how it is stopped."""

    folder: Path
    checkpoints: Checkpoints
    log: MetricsLog
    bar: Bar
    stop: StopSignal
    calls: Callbacks


class _Training(Generic[State]):
    """One call of `fit`; the methods are its phases, in their order."""

    def __init__(
        self,
        name: str,
        step: StepProgram[State],
        state: State,
        stream: Stream,
        schedule: Schedule,
        callbacks: _Callbacks[State],
        identity: Identity,
        form: Form[State],
        kind: str,
    ):
        self.name, self.step, self.stream, self.form = name, step, stream, form
        self.ahead, self.kind = Ahead(stream, step.place), kind
        self.state = step.spread(form.enter(state))
        self.schedule, self.callbacks, self.identity = schedule, callbacks, identity
        self.done = int(state.step)
        self.evaluations: list[dict[str, Any]] = []
        self.pending: list[Metrics] = []  # metrics of the steps since the last log, on the device
        # Of the calls before this one.
        self.seconds = self.processor_seconds = self.compile_seconds = 0.0
        self.last_loss = math.nan
        self.saves = False

    def restore(self, checkpoints: Checkpoints) -> None:
        """Continue from the newest checkpoint, if there is one."""
        self.saves = True
        restored = checkpoints.latest(self.form.leave(self.state), warn=say)
        if restored is None:
            return
        name = not_finite(restored.state)
        if name:
            # Version 0.1.0 could save a state after a gradient that was not finite.
            folder = checkpoints.folder / "steps" / str(restored.step)
            raise InputError(
                f"{self.name}: {name} is not finite in the checkpoint of step {restored.step}. "
                f"Delete {folder} to continue from the one before."
            )
        self.state = self.step.spread(self.form.enter(restored.state))
        # The state counts its own steps, so the counter cannot disagree with the weights.
        self.done = int(self.state.step)
        self.stream.set_state(restored.extra["stream"])
        self.evaluations = restored.extra["evaluations"]
        self.seconds = restored.extra["seconds"]
        self.processor_seconds = restored.extra.get("processor_seconds", self.seconds)
        self.compile_seconds = restored.extra["compile_seconds"]

    def compile(self) -> None:
        """Compile the step for the first batch, before the clock of training starts."""
        self.batch = self.ahead.take()
        # A step that several trainings share counts for the first of them alone.
        before = self.step.compile_seconds
        if self.saves and not before:
            say(f"{self.name}: compiling the training step")
        self.step.prepare(self.state, self.batch)
        self.compiled = self.step.compile_seconds
        self.compile_seconds += self.compiled - before
        self.started, self.processor_started = time.perf_counter(), time.process_time()

    def run(self, outputs: _Outputs | None) -> None:
        """All remaining steps."""
        remaining = self.schedule.end - self.done
        with traced(self.kind, remaining, lambda: jax.block_until_ready(self.state)) as before_step:
            for batch in self.batches():
                before_step()
                self.take_step(batch, outputs)
        late = self.step.compile_seconds - self.compiled  # for lengths that came up on the way
        self.seconds += time.perf_counter() - self.started - late
        self.processor_seconds += time.process_time() - self.processor_started - late
        self.compile_seconds += late

    def take_step(self, batch: Any, outputs: _Outputs | None) -> None:
        """A step, and what is due after it."""
        self.state, metrics = self.step(self.state, batch)
        self.pending.append(metrics)
        self.done += 1
        if self.done < self.schedule.end:
            # The step is dispatched, and the device has the next batch before it is done.
            self.ahead.draw()
        due = self.schedule.due(self.done)
        refused = outputs is not None and self.refuses_step(metrics, outputs)
        stopping = outputs is not None and outputs.stop.after_step() != 0
        if any(due) or stopping or refused:
            self.report(due, outputs, refused)

    def batches(self) -> Iterator[Any]:
        """The batches of the remaining steps."""
        yield self.batch
        while self.done < self.schedule.end and not self.ended_early:
            yield self.ahead.take()

    @property
    def ended_early(self) -> bool:
        """Whether patience is at an end."""
        return self.schedule.ended_early(self.evaluations, self.callbacks.metric)

    def refuses_step(self, metrics: Metrics, outputs: _Outputs) -> bool:
        """Whether the user's callback ends the training after a step."""
        on_step = outputs.calls.on_step
        if on_step is None:
            return False
        return hosts.by_chief(lambda: on_step(self.moment(metrics, outputs)) is False)

    def moment(self, measured: Mapping[str, Any], outputs: _Outputs) -> Moment:
        """Where the training is, for a callback."""
        return Moment(self.name, self.done, self.schedule.steps, outputs.folder, measured)

    def report(self, due: Due, outputs: _Outputs | None, refused: bool = False) -> None:
        """Check, log, evaluate and save what is due; stop if the process received a signal.

        `refused` says that a callback ends the training."""
        # First of all: no state is logged, scored or saved before it is known to be finite.
        means = self.checked_means()
        stopping = refused or (outputs is not None and outputs.stop.number != 0)
        if due.evaluation or due.checkpoint or stopping:
            self.require_finite()
        if outputs is not None:
            self.log_metrics(means, outputs)
        score = None
        if due.evaluation and self.callbacks.evaluate is not None:
            score = self.evaluate(self.callbacks.evaluate, outputs)
        if outputs is None:
            return
        if due.checkpoint or score is not None or stopping:
            self.save(score, outputs.checkpoints)
        on_evaluation = outputs.calls.on_evaluation
        if score is not None and on_evaluation is not None:
            # Saving is asynchronous, and a callback may read the checkpoint.
            outputs.checkpoints.settle()
            scored = self.moment(self.evaluations[-1], outputs)
            refused |= hosts.by_chief(lambda: on_evaluation(scored) is False)
        if refused:
            outputs.checkpoints.close()
            raise Stopped(self.moment({}, outputs))
        if stopping:
            # After the last step, too: a signal that came then would be lost to what follows.
            self.interrupt(outputs)

    def checked_means(self) -> dict[str, float]:
        """Means of the pending metrics; raises `Diverged` for the first step that is not finite.

        This is where the host waits for the device."""
        pending = jax.device_get(self.pending)
        self.pending.clear()
        first = self.done - len(pending)
        # Checked for every step, though only logged ones are averaged: the first bad step is named.
        for number, metrics in enumerate(pending, first):
            if not metrics["finite"]:
                raise Diverged(self.divergence(number, _part(metrics), float(metrics["loss"])))
        self.last_loss = float(pending[-1]["loss"])
        means = {}
        for name in pending[0]:
            values = np.array([metrics[name] for metrics in pending])  # [steps]
            # A metric may be NaN in a step that does not have it, such as one without alphas.
            values = values[np.isfinite(values)]
            if name != "finite" and len(values):
                means[name] = float(np.mean(values))
        return means

    def require_finite(self) -> None:
        """Raise `Diverged` where the state holds a number that is not finite.

        The loss of the last step was computed before its update, and says nothing about it."""
        name = not_finite(self.state)
        if name:
            raise Diverged(self.divergence(self.done - 1, name, self.last_loss))

    def divergence(self, step: int, part: str, loss: float) -> str:
        """The message about a step after which `part` is not finite; steps are counted from 0."""
        rates = []
        for name, rate in self.rates_at(step).items():
            rates.append(f"{name} {rate:.3g}")
        kept = ""
        if self.saves:
            kept = "The checkpoint before it is kept. "
        return (
            f"{self.name}: {part} is not finite at step {step + 1} (loss {loss:.4g}; "
            f"{', '.join(rates) or 'no rates'}). {kept}Try a lower learning rate, more warm-up or "
            f"a smaller clip."
        )

    def rates_at(self, step: int) -> dict[str, float]:
        """The learning rates of a step, by name."""
        rates = {}
        for name, rate in self.callbacks.rates.items():
            rates[name] = float(rate(step))
        return rates

    def log_metrics(self, means: dict[str, float], outputs: _Outputs) -> None:
        """Log the means, the learning rates and the description of the state."""
        # Schedules count from 0: step number `done` was taken with the rate of `done - 1`.
        line: dict[str, object] = {**means, **self.rates_at(self.done - 1)}
        if self.callbacks.describe is not None:
            line.update(self.callbacks.describe(self.form.leave(self.state)))
        outputs.log.write(self.done, line)
        shown_means = {}
        for name in SHOWN:
            if name in means:
                shown_means[name] = means[name]
        outputs.bar.update(self.done, shown_means)

    def evaluate(self, evaluate: Callable[[State], Numbers], outputs: _Outputs | None) -> float:
        """Evaluate the state and log its scores; returns the one that picks the best state."""
        state = self.form.leave(self.state)
        scores = evaluate(state)
        self.evaluations.append({"step": self.done, **scores})
        if outputs is not None:
            line: dict[str, object] = {}
            for name, score in scores.items():
                line[f"valid_{name}"] = score
            if self.callbacks.observe is not None:
                line.update(self.callbacks.observe(state))
            outputs.log.write(self.done, line)
        return self.callbacks.metric.objective(scores)

    def save(self, score: float | None, checkpoints: Checkpoints) -> None:
        """Save the state, and what `restore` needs to continue from it."""
        extra = {
            IDENTITY: dict(self.identity),
            # Before the batch that is drawn ahead, which nothing has been trained on.
            "stream": self.ahead.position,
            "evaluations": self.evaluations,
            # The time up to now, so that a killed run has lost none of it but the last steps'.
            "seconds": self.seconds + time.perf_counter() - self.started,
            "processor_seconds": self.processor_seconds
            + time.process_time()
            - self.processor_started,
            "compile_seconds": self.compile_seconds,
        }
        # An undefined score is kept out of the choice of the best checkpoint.
        if score is not None and not math.isfinite(score):
            score = None
        checkpoints.save(self.done, self.form.leave(self.state), extra, score)

    def interrupt(self, outputs: _Outputs) -> None:
        """Finish writing the checkpoint and raise `Interrupted`."""
        # Saving is asynchronous, and "everything is saved" must be true when it is printed.
        outputs.checkpoints.close()
        raise Interrupted(
            f"stopped at step {self.done} of {self.schedule.end} of {self.name}; "
            f"everything is saved. Run the same command again to continue.",
            outputs.stop.number,
        )

    def result(self) -> Fitted[State]:
        """The last state, with the time spent on it."""
        state = self.form.leave(self.state)
        return Fitted(
            state, self.seconds, self.compile_seconds, self.evaluations, self.processor_seconds
        )


def _part(metrics: Metrics) -> str:
    """What is not finite in a step whose `finite` is False."""
    if not np.isfinite(metrics["loss"]):
        return "the loss"
    if not np.isfinite(metrics.get("gradient_norm", 0.0)):
        return "the gradient"
    return "a parameter"
