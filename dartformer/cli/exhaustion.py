"""Errors that mean a full disk or too little memory, told apart by their type and words."""

import errno
import math
import os
import re
from collections.abc import Iterator

from dartformer.machine.memory import in_units

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

# XLA and numpy say how much they could not get in one of these forms: "allocating 1024 bytes",
# "allocate 2.50GiB", "allocate request for 8.00GiB", "Used 20.5G of 15.7G hbm".
AMOUNT = re.compile(
    r"(?:allocat\w+|request for|used)\s+(\d+(?:\.\d*)?)\s*([KMGTPE]?)i?(?:bytes|B)?\b",
    re.IGNORECASE,
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50, "E": 2**60}

TOO_LARGE = (
    "Maximum allowed dimension exceeded",
    "Maximum allowed size exceeded",
    "array is too big",
    "cannot fit 'int' into an index-sized integer",
    "too large to convert to C",
)
"""How numpy and Python refuse a size beyond 64 bits."""

NO_MEMORY = ("std::bad_alloc", "cannot allocate memory", "out of memory", "failed to allocate")
"""How libraries in C++ and the system say that there is too little memory."""


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
        if (
            exhausted
            or isinstance(cause, MemoryError)
            or any(words in lower for words in NO_MEMORY)
        ):
            return _lacking(text)
        if isinstance(cause, OSError) and cause.errno == errno.ENOMEM:
            return _lacking(text)
        oversized = isinstance(cause, (ValueError, OverflowError))
        if oversized and any(words in text for words in TOO_LARGE):
            return "out of memory: an array would be larger than any memory."
    return None


def _lacking(text: str) -> str:
    match = AMOUNT.search(text)
    if match is None:
        return "out of memory."
    number, unit = match.groups()
    size = float(number) * UNITS[unit.upper()]
    if not math.isfinite(size):
        return "out of memory."
    return f"out of memory: cannot allocate {in_units(size)}."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, then those that it follows from."""
    cause: BaseException | None = error
    visited: set[int] = set()
    # A chain can be a circle, where a library raises one error again and again.
    while cause is not None and id(cause) not in visited:
        visited.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
