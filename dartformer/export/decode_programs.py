"""The decode programs of an export: a prompt and a step as StableHLO, for causal models."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax import export as jax_export

from dartformer.attention.base import Cache
from dartformer.models.decode import decoding
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Weights
from dartformer.space.genotype import Genotype
from dartformer.training.checkpoint import named_leaves

PROMPT, STEP = "prompt.stablehlo", "step.stablehlo"

Named = dict[str, Array]
"""Weights by the names of `weights.safetensors`."""


def write(
    shape: TransformerConfig,
    genotype: Genotype,
    weights: Weights,
    folder: Path,
    platforms: tuple[str, ...],
) -> None:
    """Write `PROMPT` and `STEP` for any batch size b and the model's length N.

    `PROMPT`: (weights, tokens `[b, N]` int32, valid `[b, N]` bool) -> (logits `[b, C]`, cache).
    `STEP`: (weights, tokens `[b]` int32, valid `[b]` bool, cache) -> (logits `[b, C]`, cache).
    The weights are an argument, those of `weights.safetensors` by name: they are not written again.
    """
    run = decoding(shape, genotype)
    tree = jax.tree.structure(weights)
    leaves = named_leaves(weights)
    names = [name for name, _ in leaves]
    dtype = jnp.dtype(shape.dtype)

    def joined(named: Named) -> Weights:
        return jax.tree.unflatten(tree, [named[name] for name in names])

    def prompt(named: Named, tokens: Array, valid: Array) -> tuple[Array, Cache]:
        cache = run.init_cache(tokens.shape[0], shape.length, dtype)
        return run.prefill(joined(named), tokens, valid, cache)

    def step(named: Named, tokens: Array, valid: Array, cache: Cache) -> tuple[Array, Cache]:
        return run.step(joined(named), tokens[:, None], valid[:, None], cache)

    (batch,) = jax_export.symbolic_shape("b")
    tokens, valid = shape.blank(batch)
    token = jax.ShapeDtypeStruct((batch,), tokens.dtype)
    exists = jax.ShapeDtypeStruct((batch,), valid.dtype)
    named = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves}
    cache: Any = jax.eval_shape(prompt, named, tokens, valid)[1]
    programs = {
        PROMPT: jax_export.export(jax.jit(prompt), platforms=platforms)(named, tokens, valid),
        STEP: jax_export.export(jax.jit(step), platforms=platforms)(named, token, exists, cache),
    }
    for name, exported in programs.items():
        (folder / name).write_bytes(bytes(exported.serialize()))
