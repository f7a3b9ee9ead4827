"""Predict: what the training steps of a config cost on a device that is not here.

The compiler for the device says it, in a process of its own (`dartformer.stages.predict_process`).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dartformer.accelerators import compile as compiling
from dartformer.accelerators.compile import Estimate, GaveUp, TooLarge
from dartformer.accelerators.devices import Device, device_of
from dartformer.config import Config
from dartformer.errors import InputError
from dartformer.machine.progress import say
from dartformer.results import Prediction, StepPrediction
from dartformer.space.genotype import Genotype
from dartformer.stages.search import groups, initial, step_of
from dartformer.stages.study import Study
from dartformer.training.step import begin, plain_step

PROCESS = "dartformer.stages.predict_process"

LARGEST = 2**16
"""The largest batch that is tried, in examples."""


class Step(NamedTuple):
    """A step of training, as `jax.jit` takes it, and shapes of its arguments.

    Attributes:
      function: (state, batch) -> (state, metrics).
      arguments: a state, and a batch.
    """

    function: Callable[..., object]
    arguments: tuple[object, object]


def predict(
    config: Config,
    source: tuple[str, Mapping[str, str]],
    genotypes: Mapping[str, Genotype],
    device: str,
    batch: int = 0,
) -> Prediction:
    """What the steps of the search and of single models cost on a device that is not here.

    Args:
      config: of the study.
      source: its file and what overrides it, which the other process loads again.
      genotypes: that are trained, by name; empty for the homogeneous ones of the space.
      device: a name of `dartformer.accelerators.devices.DEVICES`.
      batch: examples of a step; 0 for `data.batch_size`.

    Raises:
      InputError: the device is unknown, its compiler is not installed, or the compiler ended its
        process.
    """
    known = device_of(device)
    if batch < 0:
        raise InputError(f"batch must be a whole number of at least 1, got {batch}.")
    batch = batch or config.data.batch_size
    file, overrides = source
    request = {
        "device": device,
        "batch": batch,
        "config": str(Path(file).resolve()),
        "overrides": dict(overrides),
        "genotypes": {name: genotype.to_dict() for name, genotype in genotypes.items()},
    }
    steps = []
    with contextlib.closing(compiling.Process(known, PROCESS)) as process:
        for answer in process.ask(request):
            steps.append(StepPrediction.from_dict(answer))
            say(f"profile: compiled {steps[-1].name} for {device}")
    return Prediction(
        device=device,
        kind=known.target.kind,
        memory_bytes=known.memory,
        flops_per_second=known.flops,
        bytes_per_second=known.bandwidth,
        jax=jax.__version__,
        dtype=config.transformer.dtype,
        length=config.transformer.length,
        steps=tuple(steps),
    )


# In the other process.


def predicted(
    config: Config, genotypes: Mapping[str, Genotype], device: Device, batch: int
) -> Iterator[StepPrediction]:
    """What each step costs, one after another; `genotypes` as in `predict`."""
    study, parts = Study(config, device.target), config.data.accumulate
    if batch % parts:
        raise InputError(
            f"a batch of {batch} is not data.accumulate = {parts} equal parts. Use a multiple."
        )
    named = dict(genotypes)
    if not named:
        for genotype in study.space.homogeneous():
            named[str(genotype)] = genotype
    if study.strategy.traits.supernet and "given" not in named:
        yield step_prediction("search", lambda size: searching(study, size), device, batch, parts)
    for name, genotype in named.items():

        def trains(size: int, genotype: Genotype = genotype) -> Step:
            return training(study, genotype, size)

        yield step_prediction(name, trains, device, batch, parts)


def searching(study: Study, size: int) -> Step:
    """A step of the search on batches of `size` examples, of all seeds that share a program."""
    group = groups(study)[0]
    state = jax.eval_shape(lambda: initial(study, group))
    batch = batch_of(study, size)
    if group.together:
        seeds = len(group.seeds)
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), batch)
    count = 1
    if study.strategy.traits.halves:
        count = 2
    return Step(step_of(study, group), (state, (batch,) * count))


def training(study: Study, genotype: Genotype, size: int) -> Step:
    """A step that trains a genotype on `size` examples."""
    program = study.program(genotype)
    state = jax.eval_shape(lambda: begin(program.network, program.optimizer, 0))
    parts = study.config.data.accumulate
    step = plain_step(program.network, program.optimizer, study.metric, parts)
    return Step(step, (state, batch_of(study, size)))


def batch_of(study: Study, size: int) -> dict[str, Any]:
    """Shapes of a batch of the longest examples."""
    tokens, valid = study.model.blank(size)
    shape: tuple[int, ...] = (size,)
    if study.task.traits.per_token:
        shape = valid.shape
    dtype = jnp.int32
    if study.metric.regression:
        dtype = jnp.float32
    return {"tokens": tokens, "valid": valid, "label": jax.ShapeDtypeStruct(shape, dtype)}


def step_prediction(
    name: str, step: Callable[[int], Step], device: Device, batch: int, parts: int = 1
) -> StepPrediction:
    """What a step costs at a batch of so many parts, and the largest batch that fits."""
    tried = Tried(step, device)
    found = tried(batch)
    if tried.refusal:
        return StepPrediction(name, batch, fits=False, refusal=tried.refusal)
    largest = largest_batch(tried, device.memory, batch, parts)
    if not isinstance(found, Estimate):
        needed = found or None
        return StepPrediction(name, batch, False, peak_bytes=needed, largest_batch=largest)
    return StepPrediction(
        name,
        batch,
        True,
        peak_bytes=found.peak_bytes,
        temp_bytes=found.temp_bytes,
        flops=found.flops,
        moved_bytes=found.moved_bytes,
        roofline_ms=found.roofline_ms,
        bound=found.bound,
        compile_seconds=found.compile_seconds,
        largest_batch=largest,
    )


class Tried:
    """A step by the compiler for a device, once for each batch.

    A call gives its estimate, or the bytes that are needed where it does not fit (0 where the
    compiler does not say).

    Attributes:
      refusal: why the compiler gave up, or "".
    """

    def __init__(self, step: Callable[[int], Step], device: Device):
        self.step, self.device = step, device
        self.refusal = ""
        self._found: dict[int, Estimate | int] = {}

    def __call__(self, batch: int) -> Estimate | int:
        if batch not in self._found:
            self._found[batch] = self._compiled(batch)
        return self._found[batch]

    def _compiled(self, batch: int) -> Estimate | int:
        step = self.step(batch)
        try:
            # The state is donated, as in training.
            return compiling.estimate(self.device, step.function, *step.arguments, donate=(0,))
        except TooLarge as error:
            return error.needed
        except GaveUp as error:
            self.refusal = str(error)
            return 0


def largest_batch(
    tried: Callable[[int], Estimate | int], memory: int, batch: int, parts: int = 1
) -> int | None:
    """The largest of batch x 2^n that fits in `memory`; None where none of equal parts does.

    The peak grows about linearly with the batch, and two compiled programs foretell the rest; the
    answer itself was compiled.
    """
    size = batch
    first = tried(batch)
    if isinstance(first, Estimate):
        size = _foretold(tried, memory, batch, first.peak_bytes, parts)
    while size >= 1 and size % parts == 0:
        if isinstance(tried(size), Estimate):
            return size
        size //= 2
    return None


def _foretold(
    tried: Callable[[int], Estimate | int], memory: int, batch: int, peak: int, parts: int
) -> int:
    """The largest of batch x 2^n whose peak on a straight line is within `memory`."""
    other = batch // 2
    if other == 0 or other % parts:
        other = 2 * batch
    second = tried(other)
    if not isinstance(second, Estimate):
        return batch
    slope = (peak - second.peak_bytes) / (batch - other)
    size = batch
    while size * 2 <= LARGEST and peak + slope * (size * 2 - batch) <= memory:
        size *= 2
    return size
