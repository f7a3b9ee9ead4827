"""Memory that XLA frees after a step stays with the process, so that the next step finds it mapped.

On a CPU a compiled program asks for all its temporary arrays at once. Above 32 MiB the C library of
Linux takes such a block from the kernel anew at every call and hands it back afterwards, and the
kernel clears each page at its first touch: up to half of a step's time
(experiments/benchmarks/README.md, "Memory kept")."""

import ctypes
import os
from collections.abc import Mapping

OPTIONS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1), "M_TOP_PAD": (-2, 2**26)}
"""Numbers of `mallopt(3)` and what they are set to: no blocks of their own; nothing handed back;
the heap grows by 64 MiB. Threads keep their heaps: those end at 64 MiB, and larger blocks are still
mapped anew where they ask for them, but one heap for all (M_ARENA_MAX) makes them wait for one
another, which cost half as much again in training."""

VARIABLES = tuple(f"MALLOC_{name[2:]}_" for name in OPTIONS)
"""What the same options are called in the environment: who sets one, or GLIBC_TUNABLES, has decided
otherwise."""


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell the C library to keep what is freed; for a process that trains, before it does.

    The process then holds the most it ever needed until it ends. The environment's own choice is
    left alone, and libraries other than glibc are as they were.

    Returns:
      Whether all was set.
    """
    if any(name in environment for name in VARIABLES) or "glibc.malloc" in environment.get(
        "GLIBC_TUNABLES", ""
    ):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # other libraries have a mallopt that does something else, or nothing
        mallopt = libc.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return all([mallopt(number, value) == 1 for number, value in OPTIONS.values()])
