"""Provenance: which command, with which versions, on which device, and for how long."""

import contextlib
import importlib.metadata
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax

from dartformer import cost
from dartformer._version import __version__
from dartformer.machine import hosts
from dartformer.machine.workdir import read_json, write_checked_json
from dartformer.results import Invocation, Provenance

FILE, KEPT = "provenance.json", 100
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


@contextlib.contextmanager
def noted(folder: Path, verb: str, where: str = "") -> Iterator[None]:
    """Note a verb in the workdir `folder` as it begins, when it ends, and what stopped it.

    `where` it runs, if not on the devices of this process."""
    invocation = Invocation(
        verb=verb,
        command=command(),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        device=where or device(),
        processes=hosts.count(),
        versions=versions(),
        state="running",
    )
    earlier = read(folder)
    started = time.monotonic()  # which no change of the clock disturbs

    def write(state: str, why: str | None = None) -> None:
        ended = replace(invocation, state=state, why=why)
        if state != "running":
            ended = replace(ended, seconds=time.monotonic() - started)
        runs = (*earlier, ended)[-KEPT:]
        record = Provenance(runs).to_dict()
        # Where one process fails the others are elsewhere.
        hosts.chief_alone(lambda: write_checked_json(folder / FILE, record))

    # At the beginning, too: a process that is killed leaves no other note.
    write("running")
    try:
        yield
    except BaseException as error:
        text = " ".join(str(error).split()) or type(error).__name__
        with contextlib.suppress(OSError):  # a full disk must not replace the error with its own
            write("stopped", text[:500])
        raise
    write("done")


def read(folder: Path) -> tuple[Invocation, ...]:
    """The entries so far, the oldest first."""
    file = folder / FILE
    if not os.path.lexists(file):
        return ()
    return Provenance.from_dict(read_json(file), str(file)).runs


def command() -> str:
    """What was typed; of a script only its name, which is all that can be known."""
    name = "python"  # of a notebook or an interpreter
    if sys.argv and sys.argv[0]:
        name = Path(sys.argv[0]).name
    if name in ("__main__.py", "dartformer"):
        return shlex.join(["dartformer", *sys.argv[1:]])
    return f"{name} (through Python)"


def device() -> str:
    """Number and kind of the devices."""
    return f"{len(jax.devices())} x {cost.device()}"


def versions() -> dict[str, str]:
    """Of this package, of Python, and of the packages that numbers depend on."""
    numbers = {"dartformer": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        numbers[name] = importlib.metadata.version(name)
    return numbers
