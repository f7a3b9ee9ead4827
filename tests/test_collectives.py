"""Attention under a batch that devices share: nothing but sums of gradients is exchanged.

Each test runs in a process of its own, because the number of devices is fixed when JAX starts.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

DEVICES = 4
LENGTH = 320  # above a tile of full attention, which is computed in tiles then
EXCHANGES = ("all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def counts(text):
    """How often each exchange stands in a compiled program."""
    found = {}
    for name in (*EXCHANGES, "all-reduce"):
        found[name] = text.count(f" {name}(") + text.count(f" {name}-start(")
    return found


def gradient_of(attention, config, own, inputs):
    """The gradient of one attention by its parameters and inputs, compiled under a cut batch."""
    from dartformer.models.mixers import attend
    from dartformer.training.devices import MeshLayout, MeshShape

    layout = MeshLayout(MeshShape(DEVICES, 1, 1))

    def loss(own, inputs):
        y = attend(attention, own, inputs, config, train=False, key=None)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    def place(name, array):
        if name in ("slopes", "head_keys"):
            return jax.device_put(array, layout.replicated)
        return jax.device_put(array, layout.batch)

    placed = {name: place(name, array) for name, array in inputs.items()}
    own = jax.device_put(own, layout.replicated)

    def run(own, floating, others):
        from dartformer.attention.base import Inputs

        return jax.grad(lambda o, f: loss(o, Inputs(**f, **others)), (0, 1))(own, floating)

    floating = {name: placed[name] for name in ("q", "k", "v", "x")}
    others = {name: array for name, array in placed.items() if name not in floating}
    with jax.set_mesh(layout.mesh):
        return jax.jit(run).lower(own, floating, others).compile()


PARTS = 4
"""Into which the types are divided, one after another, for a test each."""


def some_types(part):
    """Compile the gradient of a part of the types, and assert that no batch moves between devices."""
    from dartformer.attention import ATTENTIONS, parse
    from dartformer.attention.base import Shape
    from dartformer.models.sizes import TransformerConfig

    heads, width = 2, 8
    config = TransformerConfig(
        vocabulary=4, classes=2, length=LENGTH, layers=1, heads=heads, head_dim=width, model_dim=16
    )
    shape = Shape(length=LENGTH, heads=heads, head_dim=width, model_dim=16, batch=DEVICES)
    rng = np.random.default_rng(0)
    q = rng.standard_normal((DEVICES, LENGTH, heads, width)).astype(np.float32)
    x = rng.standard_normal((DEVICES, LENGTH, 16)).astype(np.float32)
    valid = rng.random((DEVICES, LENGTH)) < 0.9
    inputs = {"q": q, "k": q, "v": q, "x": x, "valid": valid}
    names = [name for name in ATTENTIONS if name != "parallel"] + [
        "parallel(members=(full, fourier))"
    ]
    for name in names[part::PARTS]:
        attention = parse(name)
        own = attention.init(jax.random.key(0), shape)
        arrays = dict(inputs)
        if attention.traits.stochastic:
            arrays["head_keys"] = jax.random.split(jax.random.key(1), heads)
        floating = jax.tree.leaves(own)
        found = counts(gradient_of(attention, config, own, arrays).as_text())
        moved = {op: found[op] for op in EXCHANGES if found[op]}
        assert not moved, f"{name} moves its batch between devices: {moved}"
        assert found["all-reduce"] <= len(floating), (name, found)
        assert not floating or found["all-reduce"], f"{name}: no gradient is summed over devices"


def one_step():
    """A search step on four devices is that on one, and moves nothing but sums of gradients."""
    from dartformer.attention import parse
    from dartformer.models.sizes import TransformerConfig
    from dartformer.models.supernet import supernet
    from dartformer.space.search_space import SearchSpace
    from dartformer.training.devices import MeshLayout, MeshShape
    from dartformer.training.step import CompiledStep, TrainState, training_loss

    config = TransformerConfig(
        vocabulary=5, classes=3, length=LENGTH, layers=1, heads=2, head_dim=8, model_dim=16
    )
    names = ("full", "fourier", "gated_delta")  # of those that XLA gathers by itself
    candidates = tuple(map(parse, names))
    space = SearchSpace(candidates, layers=1, heads=2)
    net = supernet(config, space)
    loss = training_loss(net)
    mixture = jnp.full(space.mixture_shape, 1 / len(candidates))

    def step(state, batch):
        gradient, metrics = jax.grad(loss, has_aux=True)(state.weights, mixture, batch, state.key)
        return TrainState(state.step + 1, state.key, gradient, ()), metrics

    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(0, 5, (8, LENGTH)).astype(np.int32),
        "valid": rng.random((8, LENGTH)) < 0.9,
        "label": rng.integers(0, 3, 8).astype(np.int32),
    }
    results = []
    for layout in (None, MeshLayout(MeshShape(DEVICES, 1, 1))):
        state = TrainState(jnp.int32(0), jax.random.key(0), net.init(jax.random.key(0)), ())
        program = CompiledStep(step, layout)
        results.append(program(state, batch)[0].weights)
        if layout is not None:
            (compiled,) = program.programs.values()
            found = counts(compiled.as_text())
            assert not any(found[op] for op in EXCHANGES), found
    norm = float(optax.tree.norm(results[0]))
    for one, many in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(many), atol=2e-6 * norm)


def in_process(tmp_path, function, *arguments):
    """Run a function of this file with four devices; raise with what it printed if it fails."""
    path = [str(Path(__file__).parent), *filter(None, sys.path)]
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(path),
    }
    code = (
        "import jax; jax.config.update('jax_disable_most_optimizations', True); "
        f"import test_collectives as tests; tests.{function.__name__}(*{arguments}); print('done')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert process.stdout.strip().endswith("done"), process.stderr[-3000:]


@pytest.mark.parametrize("part", range(PARTS))
def test_no_attention_moves_its_batch(part, tmp_path):
    in_process(tmp_path, some_types, part)


def test_a_step_on_four_devices_is_that_of_one(tmp_path):
    in_process(tmp_path, one_step)
