"""Which tokens the first token (CLS) can have heard of: the evidence behind Long Range Arena's
ListOps scores.

    python experiments/dartformer/receptive.py [--size=cpu]

A ListOps score says first of all whether CLS sees token 1, the root operator. For every type: the
share of tokens whose embedding moves the answer, at 1 and 6 layers, whether token 1 is among them,
and the share of the gradient that it has, at initial weights, seed 0. JSON lines."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
import arena
import as_in_lra  # noqa: F401 - registers
import jax
import jax.numpy as jnp
import numpy as np

from dartformer import attention
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype

LENGTH = {"published": 2000, "cpu": 63}


def seen(spec: str, layers: int, length: int, heads: int = 8) -> dict[str, Any]:
    """What the answer of a CLS model depends on, of `length` tokens whose embeddings are random
    numbers."""
    config = TransformerConfig(
        vocabulary=8,
        classes=4,
        length=length,
        layers=layers,
        heads=heads,
        head_dim=8,
        model_dim=32,
        mlp_dim=32,
        features=8,
        positions="sinusoidal",
        pooling="cls",
        branch_norm=False,
    )
    net = transformer(config, Genotype.homogeneous(attention.parse(spec), layers, heads))
    tokens = jax.random.normal(jax.random.key(1), (1, length, 8))
    valid = jnp.ones((1, length), bool)
    toward = jax.random.normal(jax.random.key(2), (1, 4))

    def answer(tokens: jax.Array) -> jax.Array:
        return jnp.sum(net.apply(net.init(jax.random.key(0)), tokens, valid) * toward)

    moved = np.asarray(jnp.linalg.norm(jax.jit(jax.grad(answer))(tokens)[0], axis=-1))
    return {
        "layers": layers,
        "length": length,
        "share_seen": float((moved > 0).mean()),
        "sees_token_1": bool(moved[0] > 0),
        "token_1_share_of_gradient": float(moved[0] / moved.sum()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("cpu", "published"), default="published")
    size = parser.parse_args().size
    types = {**arena.TYPES[size], "Reformer as in LRA": "reformer_as_in_lra(chunk=10, buckets=10)"}
    for name, spec in types.items():
        for layers in (1, 6):
            print(
                json.dumps({"type": name, "attention": spec, **seen(spec, layers, LENGTH[size])}),
                flush=True,
            )
