"""Compiled programs kept in the user's cache folder, so that what was compiled once starts at once
the next time."""

import hashlib
import os
import platform
import tempfile
from pathlib import Path

from dartformer.machine import user_cache
from dartformer.machine.progress import say

VARIABLE = "DARTFORMER_COMPILE_CACHE"
"""Set to "off" to compile everything anew."""


def folder() -> Path:
    """Where programs for this machine are kept.

    `JAX_COMPILATION_CACHE_DIR` chooses another. The folder's name holds the kind of machine: a
    program compiled for one CPU may use instructions that another lacks."""
    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(given)
    cpu = Path("/proc/cpuinfo")
    flags = (
        next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "")
        if cpu.exists()
        else platform.processor()
    )
    kind = hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
    return user_cache.folder() / f"compiled-{kind}"


def use() -> Path | None:
    """Turn the cache on, unless it is off or another is chosen already; the folder, or None.

    A folder that cannot be written is told of once, and does without. An entry that cannot be read
    is compiled again: JAX warns of it."""
    import jax

    if os.environ.get(VARIABLE, "").lower() in ("off", "0", "false", "no"):
        return None
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen:
        return Path(chosen)
    try:
        where = folder()
        where.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=where):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        os.environ[VARIABLE] = "off"
        say(
            f"programs are compiled anew each time: {error} (set XDG_CACHE_HOME, or {VARIABLE}=off to say nothing)"
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(where))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    return where
