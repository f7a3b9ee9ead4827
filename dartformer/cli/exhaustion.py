"""Errors that mean a full disk or too little memory, told apart by their type and words."""

import errno
import os
import re
from collections.abc import Iterator

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# XLA and numpy say how much they could not get in one of these forms: "allocating 1024 bytes",
# "allocate 2.50GiB", "allocate request for 8.00GiB", "Used 20.5G of 15.7G hbm".
AMOUNT = re.compile(
    r"(?:allocat\w+|request for|used)\s+(\d+(?:\.\d*)?)\s*([KMGT]?)i?(?:bytes|B)?\b", re.IGNORECASE
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def disk_full(error: BaseException) -> bool:
    """Whether the error, or one that it follows from, is a full disk or an exceeded quota."""
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            return True
        # Libraries written in C++ report a full disk in words alone: with RESOURCE_EXHAUSTED, the
        # status that XLA uses for memory, and the text of the errno.
        text = str(cause)
        if any(os.strerror(number) in text for number in DISK_FULL):
            return True
    return False


def out_of_memory(error: BaseException) -> str | None:
    """A line that says how much memory is lacking; None if the error has another cause."""
    for cause in _chain(error):
        text = str(cause)
        lower = text.lower()
        # RESOURCE_EXHAUSTED alone is no proof: too many open files have this status too.
        exhausted = "RESOURCE_EXHAUSTED" in text and ("memory" in lower or "allocat" in lower)
        if exhausted or isinstance(cause, MemoryError):
            return _lacking(text)
    return None


def _lacking(text: str) -> str:
    match = AMOUNT.search(text)
    if match is None:
        return "out of memory."
    number, unit = match.groups()
    size = float(number) * UNITS[unit.upper()]
    return f"out of memory: cannot allocate {_size(size)}."


def _size(size: float) -> str:
    """Bytes as people read them: 256 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then those that it follows from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
