"""Memory that is freed stays mapped, unless the environment says otherwise."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dartformer.machine import allocator

GLIBC = platform.libc_ver()[0] == "glibc"

PROGRAM = """
import resource, runpy, sys
keep = runpy.run_path(sys.argv[1])["keep_freed_memory"]
print(keep({} if sys.argv[2] == "keep" else {"MALLOC_MMAP_MAX_": "1"}))
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not GLIBC, reason="the C library is not glibc")
@pytest.mark.parametrize("decision", ["keep", "leave"])
def test_large_arrays_are_mapped_once(decision):
    """Page faults of the third of three equal blocks: one for each page of it, or none."""
    file = Path(allocator.__file__)
    kept, faults = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(file), decision],
        check=True,
        text=True,
        capture_output=True,
    ).stdout.split()
    assert kept == str(decision == "keep")
    assert (int(faults) < 100) == (decision == "keep")


def test_the_environment_decides():
    assert not allocator.keep_freed_memory({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=2"})
    assert all(not allocator.keep_freed_memory({name: "1"}) for name in allocator.VARIABLES)
