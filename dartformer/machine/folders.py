"""Folders that are written whole: beside their place, and moved there once nothing is missing."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from dartformer.errors import InputError
from dartformer.machine.memory import in_units


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of `folder` at the end of the block.

    Where the block raises, nothing of it stays, and `folder` is as it was.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old)
    else:
        partial.rename(folder)


def require_space(folder: Path, size: int) -> None:
    """Raise `InputError` where the disk of a folder, which need not exist, has less free."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < size:
        raise InputError(
            f"{folder} needs {in_units(size)}, and its disk has {in_units(free)} free. Free some "
            f"space, or choose a folder on another disk."
        )
