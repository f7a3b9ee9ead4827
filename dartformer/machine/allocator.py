"""Keep freed memory in the process, so the next step need not map it again.

On a CPU a compiled program requests all its temporary arrays at once. Above 32 MiB the C library of
Linux takes such a block from the kernel at every call and hands it back afterwards, and the kernel
clears each page at its first touch. That is up to half of a step's time
(experiments/benchmarks/README.md, "Memory kept")."""

import ctypes
import os
from collections.abc import Mapping

# Threads keep their own heaps, which end at 64 MiB: larger blocks in threads are still mapped at
# every call, so XLA requests smaller ones (xla_flags.SMALL_BLOCKS). A single heap for all
# (M_ARENA_MAX) would avoid that, but threads then wait for one another, and training took half as
# long again.
OPTIONS = {
    "M_MMAP_MAX": (-4, 0),  # no separate mappings for large blocks
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),  # hand nothing back
    "M_TOP_PAD": (-2, 2**26),  # grow the heap by 64 MiB at a time
}
"""Options of `mallopt(3)`: their numbers and values."""

VARIABLES = tuple(f"MALLOC_{name[2:]}_" for name in OPTIONS)
"""The same options as environment variables. A user who sets one, or GLIBC_TUNABLES, has decided."""


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell the C library to keep freed memory; call it before training.

    The process then holds the most memory it ever needed until it ends. Settings of the environment
    are respected, and libraries other than glibc are left alone.

    Returns:
      Whether all options were set.
    """
    # A variable that is set to nothing is a decision too.
    if any(name in environment for name in VARIABLES):
        return False
    if "glibc.malloc" in environment.get("GLIBC_TUNABLES", ""):
        return False
    try:
        libc = ctypes.CDLL(None)
        # Other libraries have a mallopt with another meaning, or one that does nothing.
        libc.gnu_get_libc_version  # noqa: B018
        mallopt = libc.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    # All are tried, also after a failure: each one helps alone. mallopt returns 1 for success.
    successes = 0
    for number, value in OPTIONS.values():
        successes += mallopt(number, value) == 1
    return successes == len(OPTIONS)
