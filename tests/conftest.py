"""What tests share: a compile cache of their own, and a search small enough to run in seconds."""

import contextlib
import io
import json
import os
from pathlib import Path

import hypothesis
import jax
import pytest

import dartformer

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".pytest_cache" / "compiled"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# No test asserts a time: on a busy machine an example may take any.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""`compiler_options` that halve the time to compile, for programs of which little is run."""

TINY = {
    "task.max_depth": 3,
    "task.max_args": 4,
    "task.min_length": 3,
    "task.max_length": 9,
    "task.train": 300,
    "task.valid": 60,
    "task.test": 80,
    "data.batch_size": 16,
    "data.eval_batch_size": 50,
    "model.layers": 2,
    "model.heads": 2,
    "model.head_dim": 4,
    "model.model_dim": 8,
    "model.mlp_dim": 16,
    "space.candidates": ("full", "local(window=1)", "uniform"),
    "space.granularity": "head",
    "search.steps": 12,
    "search.observe": False,
    "race.rungs": (),
    "retrain.steps": 10,
    "retrain.seeds": (0, 1),
    "log.every": 4,
    "log.eval_every": 5,
    "log.checkpoint_every": 3,
}


SLOW_TESTS = frozenset((Path(__file__).parent / "slow_tests.txt").read_text("utf-8").splitlines())
"""Tests that `make test` leaves to `make test-slow`: those of ten seconds or more on two cores, and the
slower ones of a product whose others stay."""


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid in SLOW_TESTS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the tests' data sets are prepared, once for each worker."""
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def tiny(data_dir):
    """A config whose whole run takes seconds."""
    from dartformer import config as configs

    config = dartformer.defaults("listops")
    configs.override(config, {**TINY, "data.dir": data_dir})
    return config


@pytest.fixture
def compile_quickly():
    """For what runs a few times on tiny arrays: compiling is what takes long, so optimise less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory, data_dir):
    """A workdir in which `dartformer run` is done (two seeds, the random baseline), and what it
    printed. Read only."""
    from test_resume import write_config

    from dartformer.cli.main import main

    folder = tmp_path_factory.mktemp("whole_run")
    config = write_config(folder, **{"data.dir": data_dir, "baselines.homogeneous": False})
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["run", f"--config={config}", f"--workdir={folder / 'run'}", "--json"]) == 0
    return folder / "run", json.loads(out.getvalue())
