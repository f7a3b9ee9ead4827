"""Flags for XLA, set before JAX starts: one keeps CPU reductions right, one keeps memory mapped.

XLA reads its flags once, when the first backend starts.

From jaxlib 0.10.2 on, XLA hands reductions on a CPU to the YNNPACK library, with two faults:

* A sum of products over seven axes, one of them of length 1, can end the process with a
  segmentation fault, or hang (github.com/jax-ml/jax/issues/39257 and 40412).
* Sums of squares over many short rows can come out wrong in the last rows
  (github.com/jax-ml/jax/issues/39103).

The processor and the tile sizes decide which shapes are hit; no x86-64 processor is known to be
safe. `DOTS_ONLY` leaves matrix products to the library and takes reductions from it.

XLA requests the temporary arrays of a CPU program as one block. Threads of glibc keep freed blocks
of up to 64 MiB; larger ones are mapped again at every call, and the kernel clears each page. That
was a third of the time of a step of `local` or `performer` at 8,192 tokens. `SMALL_BLOCKS` has XLA
request several blocks."""

import enum
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import warnings
from collections.abc import MutableMapping

from dartformer.machine import user_cache

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
DOTS_ONLY = f"{FLAG}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"

FIRST_FAULTY = (0, 10, 2)
FIRST_UNKNOWN = (0, 12)
"""Releases from `FIRST_FAULTY` up to here have the fault; for later ones a probe decides."""

BLOCK_FLAG = "--xla_multiheap_size_constraint_per_heap"
SMALL_BLOCKS = f"{BLOCK_FLAG}={2**25}"
"""Bytes in a block of temporaries, but for a single array that is larger.

Twice as many would not fit a thread's heap, which has a header.
"""

PROBE = """
import jax, jax.numpy as jnp
a = jnp.ones((3, 1, 2, 2, 8, 8, 8))
jax.jit(lambda a, b: jnp.sum(a * b, axis=3))(a, a + 1).block_until_ready()
rows = jnp.stack([jnp.arange(32769.0), jnp.zeros(32769), jnp.zeros(32769)], axis=1)
squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
print("sound" if jnp.allclose(squares, rows[:, 0] ** 2) else "wrong")
"""
"""The smallest known program that crashes, then the smallest known that computes wrong numbers."""


NOTES = {True: "faulty", False: "sound"}
"""What a probe notes of a release, by whether it needs the flag."""


class Verdict(enum.Enum):
    """What the probe's program did in a process of its own."""

    SOUND = "sound"
    WRONG = "computes wrong sums"
    CRASHES = "crashes"
    HANGS = "hangs"
    FAILED = "the probe could not run"


class Protection(enum.Enum):
    """What `protect` did."""

    UNNEEDED = "not needed"
    SET = "set by dartformer"
    CHOSEN = "chosen by XLA_FLAGS"
    TOO_LATE = "not set: JAX had started before dartformer was imported"


def protect(
    environment: MutableMapping[str, str] = os.environ, *, may_probe: bool = False
) -> Protection:
    """Add `DOTS_ONLY` to `XLA_FLAGS` if jaxlib needs it and the user has not set the flag.

    Warns with `RuntimeWarning` if the CPU backend runs already, because the flag would then have no
    effect.

    Args:
      environment: the variables to read and change.
      may_probe: whether to probe a jaxlib that is newer than this code, which takes seconds, once
        for each release.
    """
    flags = environment.get("XLA_FLAGS", "")
    if DOTS_ONLY in flags:
        return Protection.SET
    if FLAG in flags:
        return Protection.CHOSEN
    version = jaxlib_version()
    if version is None or not _is_faulty(version, may_probe):
        return Protection.UNNEEDED
    if _backend_is_running():
        warnings.warn(
            f"JAX was started before dartformer was imported, and reductions of jaxlib {version} "
            f"on a CPU can crash or be wrong. Import dartformer before the first computation, or "
            f"set XLA_FLAGS={DOTS_ONLY}.",
            RuntimeWarning,
            stacklevel=2,
        )
        return Protection.TOO_LATE
    environment["XLA_FLAGS"] = f"{flags} {DOTS_ONLY}".strip()
    return Protection.SET


def split_temporaries(environment: MutableMapping[str, str] = os.environ) -> bool:
    """Add `SMALL_BLOCKS` to `XLA_FLAGS` where programs run on a CPU, and say whether it is there.

    For processes that keep freed memory (allocator.py), before JAX is imported. XLA then warns of
    each array that is larger than a block, unless TF_CPP_MIN_LOG_LEVEL is 2 or more.

    Not if the user has set the flag, if JAX has started a backend, or if an accelerator's plug-in
    is installed: all backends read the flag, and their own allocators do not need it. Nor for a
    jaxlib that is newer than this code, because an unknown flag ends the process.
    """
    flags = environment.get("XLA_FLAGS", "")
    if BLOCK_FLAG in flags:
        return SMALL_BLOCKS in flags
    version = jaxlib_version()
    if version is None or _release(version) >= FIRST_UNKNOWN:
        return False
    if _has_accelerator_plugin() or _backend_is_running():
        return False
    environment["XLA_FLAGS"] = f"{flags} {SMALL_BLOCKS}".strip()
    return True


def _has_accelerator_plugin() -> bool:
    """Whether JAX would find a plug-in of a GPU or a TPU, by the names of their packages."""
    return any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


def jaxlib_version() -> str | None:
    """The installed release of jaxlib, found without importing it; None if there is none."""
    try:
        return importlib.metadata.version("jaxlib")
    except importlib.metadata.PackageNotFoundError:
        return None


def probe(flag: str = "", seconds: float = 120) -> Verdict:
    """Run `PROBE` in its own process, on a CPU, with `flag` in place of any other `FLAG`."""
    flags = []
    for word in os.environ.get("XLA_FLAGS", "").split():
        if not word.startswith(FLAG):
            flags.append(word)
    flags.append(flag)
    # An accelerator may be held by this process already, and the fault is one of the CPU.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
    try:
        process = subprocess.run(
            [sys.executable, "-c", PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Verdict.HANGS
    # Negative: ended by a signal. XLA also aborts at a flag that it does not know.
    if process.returncode < 0 and "Unknown flag" not in process.stderr:
        return Verdict.CRASHES
    answers = {"sound": Verdict.SOUND, "wrong": Verdict.WRONG}
    return answers.get(process.stdout.strip(), Verdict.FAILED)


def _is_faulty(version: str, may_probe: bool) -> bool:
    """Whether this jaxlib needs the flag, and knows it: an unknown flag ends the process."""
    release = _release(version)
    if release < FIRST_UNKNOWN:
        return release >= FIRST_FAULTY
    try:
        note = user_cache.folder() / f"jaxlib-{version}-reductions.txt"
        if note.exists():
            return note.read_text() == NOTES[True]
        if not may_probe:
            return False
        faulty = probe() not in (Verdict.SOUND, Verdict.FAILED)
        # The flag is set only where it is known, and helps.
        faulty = faulty and probe(DOTS_ONLY) is Verdict.SOUND
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(NOTES[faulty])
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return False
    return faulty


def _release(version: str) -> tuple[int, ...]:
    """Three numbers only: "0.10.2.dev20250101" has the code of 0.10.2."""
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _backend_is_running() -> bool:
    """Whether JAX has started a backend in this process; JAX offers no public way to ask."""
    # From sys.modules, because importing the bridge would import JAX.
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()
