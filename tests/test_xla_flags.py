"""XLA's faulty reductions: users are protected, and attentions do not meet the crash even without
the flag."""

import platform
import subprocess
import sys

import pytest

from dartformer.attention import ATTENTIONS
from dartformer.machine import xla_flags
from dartformer.machine.xla_flags import DOTS_ONLY, FLAG, SMALL_BLOCKS, Protection, Verdict

WITH_REDUCTIONS = f"{FLAG}=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
"""What jaxlib does by itself; `protect` takes it for the user's choice and leaves it."""

GRADIENTS = """
import sys
import jax, jax.numpy as jnp
from dartformer import attention
from dartformer.attention.base import Inputs, Shape
kind = attention.parse(sys.argv[1])
for batch, length, heads, width in [(1, 64, 4, 64), (1, 33, 2, 8), (1, 31, 1, 2), (2, 96, 1, 8), (1, 128, 8, 16)]:
    for causal in [True] * kind.traits.causal + [False] * kind.traits.bidirectional:
        keys = jax.random.split(jax.random.key(0), heads)
        shape = Shape(length=length, heads=heads, head_dim=width, model_dim=heads * width, batch=batch, itemsize=4)
        params = kind.init(keys[0], shape)
        q = jax.random.normal(keys[0], (batch, length, heads, width))
        x = jax.random.normal(keys[0], (batch, length, heads * width))

        def loss(params, q, k, v, x):
            inputs = Inputs(q, k, v, x, None, keys, None)
            return jnp.sum(kind(params, inputs, causal=causal, train=True, key=keys[0]) ** 2)

        jax.block_until_ready(jax.jit(jax.value_and_grad(loss, range(5)))(params, q, q, q, x))
"""


def test_a_process_that_imports_dartformer_computes_right_sums(monkeypatch):
    """The probe after the import: fails on a faulty jaxlib if `protect` does nothing."""
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(xla_flags, "PROBE", "import dartformer" + xla_flags.PROBE)
    assert xla_flags.probe() is Verdict.SOUND


def test_jaxlib_here_is_faulty_as_its_release_says():
    verdict = xla_flags.probe()
    if verdict is Verdict.SOUND:
        pytest.skip(f"jaxlib {xla_flags.jaxlib_version()} on this processor: not affected here")
    assert verdict in (Verdict.CRASHES, Verdict.WRONG, Verdict.HANGS)
    assert xla_flags.probe(DOTS_ONLY) is Verdict.SOUND


@pytest.mark.parametrize(
    ("version", "protection"),
    [
        (None, Protection.UNNEEDED),
        ("0.10.1", Protection.UNNEEDED),
        ("0.10.2", Protection.SET),
        ("0.11.0", Protection.SET),
        ("0.11.2.dev3", Protection.SET),
    ],
)
def test_faulty_releases_get_the_flag(version, protection, monkeypatch):
    monkeypatch.setattr(xla_flags, "jaxlib_version", lambda: version)
    monkeypatch.setattr(xla_flags, "_backend_is_running", lambda: False)
    variables = {"XLA_FLAGS": "--xla_dump_to=there"}
    assert xla_flags.protect(variables) is protection
    added = f" {DOTS_ONLY}" if protection is Protection.SET else ""
    assert variables["XLA_FLAGS"] == "--xla_dump_to=there" + added
    assert xla_flags.protect(variables) is protection


def test_the_users_flag_is_left_alone():
    variables = {"XLA_FLAGS": f"{FLAG}="}
    assert xla_flags.protect(variables) is Protection.CHOSEN
    assert variables == {"XLA_FLAGS": f"{FLAG}="}


def test_too_late_is_said(monkeypatch):
    monkeypatch.setattr(xla_flags, "jaxlib_version", lambda: "0.10.2")
    monkeypatch.setattr(xla_flags, "_backend_is_running", lambda: True)
    variables = {}
    with pytest.warns(RuntimeWarning, match=r"jaxlib 0\.10\.2 on a CPU can crash or be wrong"):
        assert xla_flags.protect(variables) is Protection.TOO_LATE
    assert not variables


@pytest.mark.parametrize("verdict", [Verdict.CRASHES, Verdict.SOUND])
def test_a_newer_jaxlib_is_probed_once(verdict, tmp_path, monkeypatch):
    probes = []

    def probe(flag=""):
        probes.append(flag)
        return Verdict.SOUND if flag else verdict

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(xla_flags, "jaxlib_version", lambda: "1.0.0")
    monkeypatch.setattr(xla_flags, "_backend_is_running", lambda: False)
    monkeypatch.setattr(xla_flags, "probe", probe)
    assert xla_flags.protect({}) is Protection.UNNEEDED
    assert not probes
    protection = Protection.UNNEEDED if verdict is Verdict.SOUND else Protection.SET
    assert xla_flags.protect({}, may_probe=True) is protection
    count = len(probes)
    assert count == (1 if verdict is Verdict.SOUND else 2)
    assert xla_flags.protect({}) is protection
    assert len(probes) == count


FAULTS = """
import resource
from dartformer.machine.allocator import keep_freed_memory
keep_freed_memory({})
import jax, jax.numpy as jnp

# Five arrays of 16 MiB at once: each is read again when the maximum of all is known.
def program(x):
    parts = [x @ (x + i).T for i in range(5)]
    top = jnp.max(jnp.stack([part.max() for part in parts]))
    return sum(jnp.sum(part - top, axis=0) for part in parts)

compiled = jax.jit(program).lower(jax.ShapeDtypeStruct((2048, 8), jnp.float32)).compile()
assert compiled.memory_analysis().temp_size_in_bytes > 2**26
x = jnp.ones((2048, 8))
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    compiled(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# Each thread keeps its own blocks: a call that meets a new thread maps them once more, and any call may.
print(min(faults))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_large_temporaries_are_mapped_once(monkeypatch):
    """Page faults of the best of some calls: one for each page of its temporaries without the flag."""
    monkeypatch.setattr(xla_flags, "_has_accelerator_plugin", lambda: False)
    monkeypatch.setattr(xla_flags, "_backend_is_running", lambda: False)
    variables = {}
    assert xla_flags.split_temporaries(variables)
    faults = []
    for flags in (variables["XLA_FLAGS"], f"{xla_flags.BLOCK_FLAG}=-1"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        process = subprocess.run(
            [sys.executable, "-c", FAULTS], check=True, text=True, capture_output=True
        )
        faults.append(int(process.stdout))
    assert faults[0] < 1000 < 10_000 < faults[1]


def test_temporaries_are_split_on_cpus_alone(monkeypatch):
    monkeypatch.setattr(xla_flags, "_backend_is_running", lambda: False)
    monkeypatch.setattr(xla_flags, "_has_accelerator_plugin", lambda: True)
    variables = {}
    assert not xla_flags.split_temporaries(variables)
    assert not variables
    monkeypatch.setattr(xla_flags, "_has_accelerator_plugin", lambda: False)
    assert xla_flags.split_temporaries(variables)
    assert variables == {"XLA_FLAGS": SMALL_BLOCKS}
    monkeypatch.setattr(xla_flags, "jaxlib_version", lambda: "0.12.0")
    variables = {}
    assert not xla_flags.split_temporaries(variables)
    assert not variables


def test_the_users_blocks_are_left_alone(monkeypatch):
    monkeypatch.setattr(xla_flags, "_backend_is_running", lambda: False)
    variables = {"XLA_FLAGS": f"{xla_flags.BLOCK_FLAG}=-1"}
    assert not xla_flags.split_temporaries(variables)
    assert variables == {"XLA_FLAGS": f"{xla_flags.BLOCK_FLAG}=-1"}


def gradients(name, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", WITH_REDUCTIONS)
    return subprocess.run([sys.executable, "-c", GRADIENTS, name], capture_output=True, text=True)


def test_gated_linear_avoids_the_crash_without_the_flag(monkeypatch):
    process = gradients("gated_linear", monkeypatch)
    assert process.returncode == 0, process.stderr[-500:]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ATTENTIONS))
def test_every_attention_avoids_the_crash_without_the_flag(name, monkeypatch):
    process = gradients(name, monkeypatch)
    assert process.returncode == 0, process.stderr[-500:]
