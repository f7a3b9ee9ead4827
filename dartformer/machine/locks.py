"""Locks of files, which the system frees when a process ends, however it ends."""

from typing import IO, Any

from dartformer.errors import InputError

try:
    import fcntl
except ImportError:
    raise InputError("dartformer runs on Linux and macOS. On Windows, use WSL.") from None


def lock(file: IO[Any], wait: bool) -> None:
    """Lock an open file until it is closed.

    Raises `BlockingIOError` where another process holds it and `wait` is false, and another
    `OSError` where the disk has no locks.
    """
    flags = fcntl.LOCK_EX
    if not wait:
        flags |= fcntl.LOCK_NB
    fcntl.flock(file, flags)
