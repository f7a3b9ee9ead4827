"""Engines: what runs the tasks of a sweep, on this machine, on Ray or on SLURM."""

from collections.abc import Callable

from dartformer.engines.base import Engine, Limits
from dartformer.engines.processes import Processes
from dartformer.errors import unknown


def _ray(limits: Limits) -> Engine:
    from dartformer.engines.ray import Ray  # which needs the extra

    return Ray(limits)


def _slurm(limits: Limits) -> Engine:
    from dartformer.engines.slurm import Slurm  # which needs the extra

    return Slurm(limits)


ENGINES: dict[str, Callable[[Limits], Engine]] = {
    "processes": Processes,
    "ray": _ray,
    "slurm": _slurm,
}
"""By name, the engine for the limits."""


def make(name: str, limits: Limits) -> Engine:
    """The engine of that name; raises `InputError` for an unknown one, or a missing extra."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    return ENGINES[name](limits)
