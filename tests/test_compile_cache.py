"""The compile cache is on by default where users keep caches, can be turned off, and never breaks a
run."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dartformer.cli.main import main
from dartformer.machine import compile_cache


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A home for a cache of this test alone; afterwards the tests' own is back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    compilation_cache.reset_cache()
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_kept_and_damage_is_compiled_over(own, recwarn):
    where = compile_cache.use()
    assert where == compile_cache.folder()
    assert where.is_relative_to(own)
    assert compile_cache.use() == where
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

    def answer():
        return float(jax.jit(lambda x: jnp.sin(x) * 3)(2.0))

    want = answer()
    kept = [file for file in where.iterdir() if file.name.endswith("-cache")]
    assert kept
    for file in kept:
        file.write_bytes(b"damaged")
    jax.clear_caches()
    assert answer() == want


def test_it_can_be_turned_off(own, monkeypatch):
    monkeypatch.setenv(compile_cache.VARIABLE, "off")
    assert compile_cache.use() is None
    assert not own.exists()


def test_a_folder_that_cannot_be_written_causes_one_warning_and_no_cache(own, capsys, monkeypatch):
    own.write_text("a file where the folder should be")
    monkeypatch.setenv(compile_cache.VARIABLE, "")
    assert compile_cache.use() is None
    assert "Compilation cache disabled" in "".join(capsys.readouterr())
    assert compile_cache.use() is None
    assert not "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "command",
    [("run", "--workdir=run"), ("profile",), ("derive", "--workdir=run", "--budget=flops=9")],
)
def test_the_flag_turns_it_off_in_every_verb_that_has_it(own, command, tmp_path, monkeypatch):
    monkeypatch.setenv(compile_cache.VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--config=missing.py", "--no-compile-cache"]) == 2
    assert compile_cache.use() is None
    assert not own.exists()
