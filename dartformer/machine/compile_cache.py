"""Keep compiled programs in the user's cache folder, so the next run starts sooner."""

import hashlib
import os
import platform
import tempfile
from pathlib import Path

from dartformer.machine import user_cache
from dartformer.machine.progress import say

VARIABLE = "DARTFORMER_COMPILE_CACHE"
"""Set to "off" to compile every program in every run."""

MIN_SECONDS = 0.2
"""Programs that compile faster are not kept."""


def folder() -> Path:
    """The folder with the programs for this machine.

    `JAX_COMPILATION_CACHE_DIR` names another. The name of the folder depends on the kind of machine,
    because a program compiled for one CPU may use instructions that another lacks."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if chosen:
        return Path(chosen)
    machine = f"{platform.machine()} {_cpu_flags()}"
    kind = hashlib.sha256(machine.encode()).hexdigest()[:12]
    return user_cache.folder() / f"compiled-{kind}"


def _cpu_flags() -> str:
    """The instruction sets of the CPU on Linux, elsewhere its name."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists():
        return platform.processor()
    # /proc/cpuinfo repeats the line for every core, and the first speaks for all.
    for line in cpu.read_text().splitlines():
        if line.startswith("flags"):
            return line
    return ""


def use() -> Path | None:
    """Turn the cache on, unless it is off or JAX already has one; the folder, or None.

    A folder that cannot be written causes one warning and no cache. JAX itself warns of an entry
    that it cannot read, and compiles the program again."""
    import jax  # here, so that `folder` needs no JAX: doctor must work where JAX is broken

    if os.environ.get(VARIABLE, "").lower() in ("off", "0", "false", "no"):
        return None
    chosen = jax.config.values["jax_compilation_cache_dir"]
    if chosen:
        return Path(chosen)
    try:
        path = folder()
        path.mkdir(parents=True, exist_ok=True)
        # Creating a file is the only sure test for permission to write.
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        # Processes that this one starts would warn again.
        os.environ[VARIABLE] = "off"
        say(
            f"Compilation cache disabled: {error}. Set XDG_CACHE_HOME to a writable folder, or "
            f"{VARIABLE}=off to silence this warning."
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # JAX's own minimum, one second, would leave out many programs of small models.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
    return path
