"""What a model costs: parameters and FLOPs by formula, latency by measurement."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dartformer.attention.base import Cost
from dartformer.genotype import Genotype
from dartformer.transformer import Network, TransformerConfig, Weights, transformer


def parameters(weights: Weights) -> int:
    """Number of parameters in a pytree of arrays (or of shapes)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(weights))


def model_parameters(network: Network) -> int:
    """Number of parameters of a network, without making them."""
    return parameters(jax.eval_shape(network.init, jax.random.key(0)))


def attention_cost(config: TransformerConfig, genotype: Genotype, layer: int, *, batch: int = 1,
                   length: int | None = None) -> Cost:
    """Analytic cost of one layer's attentions (projections excluded): the sum over the groups of heads."""
    total = Cost(0, 0, 0, 0)
    for attention, heads in genotype.groups(layer):
        shape = config.attention_shape(len(heads), kv_heads=len({h // config.sharing for h in heads}), batch=batch,
                                       length=length)
        total = total + attention.cost(shape)
    return total


def flops(config: TransformerConfig, genotype: Genotype, *, batch: int = 1, length: int | None = None) -> float:
    """FLOPs of a forward pass (a multiply-add counts two): attentions, projections, feed-forward, classifier.

    Embeddings of ids and stem, which are look-ups, and normalisations, activations and dropout, which are linear in the
    activations, are left out.
    """
    n = config.tokens if length is None else length
    e, inner, m = config.model_dim, config.heads * config.head_dim, config.mlp_dim
    per_token = 4 * e * inner * (1 + 1 / config.sharing) + 4 * e * m
    documents, pooled = batch * config.inputs, config.pooled
    rows = batch * (n if config.pooling == "none" else 1)
    if config.classifier == "linear":
        head = 2 * pooled * config.classes
    elif config.inputs == 1:
        head = 2 * (pooled * m + m * config.classes)
    else:
        head = 2 * (pooled * m + m * (m // 2) + m // 2 * config.classes)
    mixing = sum(attention_cost(config, genotype, l, batch=documents, length=n).flops for l in range(config.layers))
    embed = 2 * config.features * e
    return mixing + documents * n * (config.layers * per_token + embed) + rows * head


def latency(call: Callable[..., Any], *args: Any, repeats: int = 20) -> dict[str, float]:
    """Seconds of `call(*args)` on this device, compiled and warmed up: median, 90th percentile and minimum."""
    for _ in range(2):
        jax.block_until_ready(call(*args))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call(*args))
        times.append(time.perf_counter() - started)
    return {"median": float(np.median(times)), "p90": float(np.quantile(times, 0.9)), "min": min(times)}


def forward_latency(config: TransformerConfig, genotype: Genotype, *, batch: int, length: int | None = None,
                    repeats: int = 20) -> dict[str, float]:
    """Measured seconds of one forward pass of a genotype with fresh weights."""
    n = config.length if length is None else length
    net = transformer(config, genotype)
    weights = net.init(jax.random.key(0))
    tokens, valid = (jnp.ones(a.shape, a.dtype) for a in config.blank(batch, n))
    return latency(jax.jit(net.apply), weights, tokens, valid, repeats=repeats)
