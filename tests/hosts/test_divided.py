"""Weights that devices divide: what each holds, and what is collected for a step.

Each test runs in a process of its own, because the number of devices is fixed when JAX starts.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

DEVICES, BATCH, LENGTH = 8, 16, 64


def compiled(fsdp, layers, width, smallest):
    """The program of a training step on a mesh of which `fsdp` devices divide the state."""
    from dartformer.attention import parse
    from dartformer.models.sizes import TransformerConfig
    from dartformer.models.transformer import transformer
    from dartformer.space.genotype import Genotype
    from dartformer.training.devices import MeshLayout, MeshShape
    from dartformer.training.optimizer import Optimizer, build
    from dartformer.training.step import CompiledStep, begin, plain_step

    heads = width // 64
    config = TransformerConfig(
        vocabulary=256, classes=2, length=LENGTH, layers=layers, heads=heads, head_dim=64,
        model_dim=width, mlp_dim=4 * width, dropout=0.0,
    )  # fmt: skip
    net = transformer(config, Genotype.homogeneous(parse("full"), layers, heads))
    chain = build(Optimizer(), 100)
    layout = MeshLayout(MeshShape(DEVICES // fsdp, fsdp, 1), smallest)
    state = jax.eval_shape(lambda: begin(net, chain, 0))
    batch = {
        "tokens": jax.ShapeDtypeStruct((BATCH, LENGTH), np.int32),
        "valid": jax.ShapeDtypeStruct((BATCH, LENGTH), bool),
        "label": jax.ShapeDtypeStruct((BATCH,), np.int32),
    }
    return CompiledStep(plain_step(net, chain), layout)._compiled(state, batch)


def measured(layers, width, smallest):
    """Arguments fall with the devices, and no activation is collected."""
    copied = compiled(1, layers, width, smallest)
    divided = compiled(DEVICES, layers, width, smallest)
    share = (
        divided.memory_analysis().argument_size_in_bytes
        / copied.memory_analysis().argument_size_in_bytes
    )
    assert share < 1 / DEVICES + 0.005, share
    gathers = re.findall(r"= f32\[([\d,]*)\][^=]* all-gather\(", divided.as_text())
    assert gathers, "weights are collected for a step"
    of_batch = [shape for shape in gathers if shape.startswith(f"{BATCH},{LENGTH},")]
    assert not of_batch, of_batch
    print(f"share {share:.4f}, {len(gathers)} all-gathers")


def in_process(arguments, tmp_path):
    """Run `measured` with eight devices; raise with what it printed if it fails."""
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
    }
    code = f"import test_divided; test_divided.measured{arguments}; print('done')"
    process = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert process.stdout.strip().endswith("done"), process.stderr[-3000:]


def test_each_device_holds_its_share(tmp_path):
    in_process((2, 128, 64), tmp_path)


@pytest.mark.slow
def test_each_device_holds_its_share_of_a_large_model(tmp_path):
    in_process((12, 768, 2**14), tmp_path)
