"""A run or a race whose trainings are tasks of an engine, and the options of engines."""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from dartformer import api
from dartformer.api import Session
from dartformer.config import Config
from dartformer.engines import make
from dartformer.engines.base import DIVERGED, DONE, Engine, Limits, Task
from dartformer.engines.runner import last_line
from dartformer.errors import InputError
from dartformer.kernels.target import elsewhere
from dartformer.machine.progress import say
from dartformer.machine.workdir import LockedFolder
from dartformer.stages.layout import Workdir
from dartformer.stages.study import Study
from dartformer.sweeps.entrants import ENGINE, EngineTrainer, command, refusal
from dartformer.sweeps.supervise import supervise
from dartformer.training.loop import Diverged

MOST_DEVICES = 64
"""Devices that a task may share its batches among."""

LIMITS = ("jobs", "devices", "cpus", "memory", "minutes", "tries", "slurm")


@contextlib.contextmanager
def leaving_devices() -> Iterator[None]:
    """Keep the accelerators free for the tasks: configs are only checked here, on the CPU.

    Inside the block a kernel of a device that is not here is allowed."""
    # The checks count devices, and those of a task are not here.
    with contextlib.suppress(RuntimeError):  # where JAX has started, as in a notebook
        jax.config.update("jax_num_cpu_devices", MOST_DEVICES)
        jax.config.update("jax_platforms", "cpu")
    with elsewhere():
        yield


def limits_of(arguments: argparse.Namespace) -> Limits:
    """What each task may use; raises `InputError` for a value that cannot be."""
    values: dict[str, Any] = {}
    for name in LIMITS:
        value = getattr(arguments, name)
        if value is not None:
            values[name] = value
    values["slurm"] = options(values.get("slurm", ()))
    return Limits(**values)


def options(texts: list[str] | tuple[str, ...]) -> dict[str, str]:
    """The options in `--slurm=partition=gpu,account=mine`, which may be repeated."""
    found = {}
    for text in texts:
        for part in filter(None, map(str.strip, text.split(","))):
            key, equals, value = part.partition("=")
            if not equals:
                raise InputError(f"--slurm takes KEY=VALUE, as in partition=gpu, got {part!r}.")
            found[key] = value
    return found


def is_wanted(arguments: argparse.Namespace) -> bool:
    """Whether an engine is named; raises `InputError` for options that need one or go without."""
    if arguments.engine is None:
        for name in LIMITS:
            if getattr(arguments, name) is not None:
                raise InputError(f"--{name} needs --engine, as in --engine=processes.")
        return False
    if arguments.profile_trace is not None:
        raise InputError(
            "--profile-trace does not work with --engine, whose trainings are other processes. "
            "Leave one out."
        )
    return True


@contextlib.contextmanager
def trainer_of(arguments: argparse.Namespace) -> Iterator[EngineTrainer | None]:
    """What trains the entrants of a race, if an engine is named.

    Inside the block this process leaves the devices to them."""
    if not is_wanted(arguments):
        yield None
        return
    limits = limits_of(arguments)
    with leaving_devices():
        yield EngineTrainer(make(arguments.engine, limits), limits.tries, _passed_on(arguments))


def _passed_on(arguments: argparse.Namespace) -> tuple[str, ...]:
    if arguments.no_compile_cache:
        return ("--no-compile-cache",)
    return ()


def run(arguments: argparse.Namespace, config: Config, trainer: EngineTrainer) -> Mapping[str, Any]:
    """All stages: each a task, but the race, whose entrants are; returns `results.json`."""
    if config.space.aspect != "given":
        raise InputError(
            f"--engine does not work with space.aspect={config.space.aspect!r}, which searches "
            f"several shapes. Leave --engine out, or use space.aspect='given'."
        )
    path = Path(arguments.workdir).absolute()
    # A stage alone may use what all entrants use together.
    limits = dataclasses.replace(limits_of(arguments), jobs=1)
    stages = _Stages(make(arguments.engine, limits), trainer, path)
    Workdir(path, config).close()
    with contextlib.closing(LockedFolder(path / ENGINE)):
        study = Study(config)
        for verb in ("search", "derive"):
            with Workdir(path, config) as workdir:
                is_finished = api.finished(Session(study, workdir), verb)
            if not is_finished:
                stages.run(verb)
        with Workdir(path, config) as workdir:
            session = Session(study, workdir)
            if not api.finished(session, "race"):
                api.do(session, "race", trainer=trainer)
        # The rest, and what of the stages before a damaged file makes necessary.
        stages.run("run")
        with Workdir(path, config) as workdir:
            return workdir.read_results().to_dict()


class _Stages:
    """Runs verbs on a workdir, each as one task."""

    def __init__(self, engine: Engine, trainer: EngineTrainer, path: Path):
        self.engine, self.trainer, self.path = engine, trainer, path

    def run(self, verb: str) -> None:
        """Run a verb to its end; raises what it raised."""
        words = (*command(verb, self.path), *self.trainer.options)
        task = Task(verb, words, self.path, Path.cwd(), title=verb, shared=self.path / ENGINE)
        say(f"{verb}: on {self.engine.name}, see {self.path / 'task.log'}")
        supervise(self.engine, [task], self.trainer.tries, self._ended, "run")

    def _ended(self, task: Task, code: int | None, starts: int) -> None:
        line = last_line(self.path)
        if code == DIVERGED:
            raise Diverged(line)
        if code != DONE:
            raise refusal(task.title, code, starts, line)
