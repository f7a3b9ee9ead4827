"""Provenance: which command, with which versions, on which device, for how long:
`provenance.json`."""

import contextlib
import importlib.metadata
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from dartformer import cost
from dartformer._version import __version__
from dartformer.machine.workdir import read_json, write_json

FILE, KEPT = "provenance.json", 100
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint")


@contextlib.contextmanager
def noted(folder: Path, verb: str) -> Iterator[None]:
    """Note a verb in the workdir `folder`: as it begins, when it ends, and what stopped it where
    something does."""
    entry: dict[str, Any] = {
        "verb": verb,
        "command": command(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": device(),
        "versions": versions(),
    }
    earlier = read(folder)
    started = time.monotonic()

    def write(**more: Any) -> None:
        write_json(folder / FILE, {"runs": [*earlier, {**entry, **more}][-KEPT:]})

    write(state="running")
    try:
        yield
    except BaseException as error:
        text = " ".join(str(error).split()) or type(error).__name__
        with contextlib.suppress(OSError):  # a full disk must not replace the error with its own
            write(state="stopped", why=text[:500], seconds=time.monotonic() - started)
        raise
    write(state="done", seconds=time.monotonic() - started)


def read(folder: Path) -> list[dict[str, Any]]:
    """The entries so far, the oldest first."""
    return read_json(folder / FILE)["runs"] if (folder / FILE).exists() else []


def command() -> str:
    """What was typed; of a script only its name, which is all that can be known."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if name == "__main__.py" or name == "dartformer":
        return shlex.join(["dartformer", *sys.argv[1:]])
    return f"{name} (through Python)"


def device() -> str:
    """Number and kind of the devices."""
    return f"{len(jax.devices())} x {cost.device()}"


def versions() -> dict[str, str]:
    """Of this package, of Python, and of the packages that numbers depend on."""
    found = {"dartformer": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    return found
