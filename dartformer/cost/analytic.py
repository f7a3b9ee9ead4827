"""Cost by formula: parameters, FLOPs executed and useful, bytes kept for training and for
decoding."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dartformer.attention.base import Attention, Cost, Inputs, Shape
from dartformer.attention.identity import Identity
from dartformer.models.transformer import Network, TransformerConfig, Weights
from dartformer.space.genotype import Genotype

MOST_PAIRS = 2048
"""Longest input of which pairs of tokens are counted one by one."""


def parameters(weights: Weights) -> int:
    """Number of parameters in a pytree of arrays (or of shapes)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(weights))


def model_parameters(network: Network) -> int:
    """Number of parameters of a network, without making them."""
    return parameters(jax.eval_shape(network.init, jax.random.key(0)))


def attention_cost(
    config: TransformerConfig,
    genotype: Genotype,
    layer: int,
    *,
    batch: int = 1,
    length: int | None = None,
) -> Cost:
    """Analytic cost of one layer's attentions (projections excluded): the sum over the groups of
    heads."""
    total = Cost(0, 0, 0, 0)
    for attention, heads in genotype.groups(layer):
        shape = config.attention_shape(
            len(heads),
            kv_heads=len({h // config.sharing for h in heads}),
            batch=batch,
            length=length,
        )
        total = total + attention.cost(shape)
    return total


def flops(
    config: TransformerConfig, genotype: Genotype, *, batch: int = 1, length: int | None = None
) -> float:
    """FLOPs that a forward pass executes (a multiply-add is two): attentions, projections,
    feed-forward, classifier.

    Embeddings of ids and stem, which are look-ups, and normalisations, activations and dropout,
    which are linear in the activations, are left out."""
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
    mixing = sum(
        attention_cost(config, genotype, l, batch=documents, length=n).flops
        for l in range(config.layers)
    )
    embed = 2 * config.features * e
    return mixing + documents * n * (config.layers * per_token + embed) + rows * head


def useful_flops(attention: Any, shape: Shape, *, causal: bool) -> float | None:
    """Of the FLOPs that `attention` executes, those that the result needs.

    The definition of a type that is a matrix of weights needs 4 D + 5 for each pair of tokens whose
    weight is not zero (two multiply-adds by D numbers, and the softmax). Blocks that are computed
    whole, and causal masks, execute more. Of a type that grows slower than N^2 although every token
    sees every (earlier) one, all is useful: it never forms the matrix.

    Returns:
      The smaller of both; all that is executed where there is no matrix; None above `MOST_PAIRS`
      tokens.
    """
    executed, n = attention.cost(shape).flops, shape.length
    if not attention.traits.matrix:
        return executed
    if n > MOST_PAIRS:
        return None
    pairs = _pairs(attention, n, shape.head_dim, shape.model_dim, causal)
    if attention.traits.growth < 2 and pairs > 0.9 * (n * (n + 1) / 2 if causal else n * n):
        return executed
    return min(executed, shape.batch * shape.heads * pairs * (4 * shape.head_dim + 5))


@functools.lru_cache(maxsize=512)
def _pairs(attention: Any, length: int, head_dim: int, model_dim: int, causal: bool) -> int:
    """Pairs of tokens with a weight that is not zero, of one head on one random input."""
    keys = iter(jax.random.split(jax.random.key(0), 6))
    q, k, v = (jax.random.normal(next(keys), (1, length, 1, head_dim)) for _ in range(3))
    inputs = Inputs(
        q,
        k,
        v,
        jax.random.normal(next(keys), (1, length, model_dim)),
        head_keys=jax.random.split(next(keys), 1),
    )
    params = attention.init(next(keys), Shape(length, 1, head_dim, model_dim))
    found = attention.weights(params, inputs, causal=causal)
    assert found is not None
    return int(np.count_nonzero(np.asarray(found)))


def training_bytes(
    attention: Attention, shape: Shape, *, causal: bool, dtype: Any = jnp.float32
) -> int:
    """Bytes of the arrays that a forward pass of `attention` keeps for its backward pass, inputs
    and parameters not among them: what a layer more adds to the memory of training. Found by
    tracing; nothing is computed or compiled."""
    sizes = (shape.batch, shape.length, shape.heads, shape.head_dim)
    read = {n: jax.ShapeDtypeStruct(sizes, dtype) for n in "qkv"}
    if "x" in attention.traits.reads:
        read["x"] = jax.ShapeDtypeStruct((shape.batch, shape.length, shape.model_dim), dtype)
    params = jax.eval_shape(lambda key: attention.init(key, shape), jax.random.key(0))

    def kept(params: Any, read: dict[str, jax.Array]) -> Any:
        valid = jnp.ones(sizes[:2], bool)
        keys = jax.random.split(jax.random.key(0), shape.heads)

        def forward(params: Any, read: dict[str, jax.Array]) -> jax.Array:
            inputs = Inputs(read["q"], read["k"], read["v"], read.get("x"), valid, keys)
            return attention(params, inputs, causal=causal, train=True, key=jax.random.key(1))

        return jax.tree.leaves(jax.vjp(forward, params, read)[1])

    made = jax.make_jaxpr(kept)(params, read).jaxpr
    given = {id(v) for v in (*made.invars, *made.constvars)}
    unique = {id(v): v.aval for v in made.outvars if not hasattr(v, "val") and id(v) not in given}
    return sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in unique.values())


def decodes(attention: Attention) -> bool:
    """Whether token after token can be decoded with what `Cost.state_bytes` counts: it can be
    causal, so that no later token changes an earlier output."""
    return attention.traits.causal


def decoding_flops(
    config: TransformerConfig, genotype: Genotype, *, batch: int, length: int
) -> float:
    """FLOPs of one more token after `length`, for each sequence of the batch: projections,
    feed-forward, classifier, and a multiply-add for each number that is kept."""
    kept = (
        sum(
            attention_cost(config, genotype, l, batch=batch, length=length).state_bytes
            for l in range(config.layers)
        )
        / config.attention_shape().itemsize
    )
    return flops(config, nothing(config), batch=batch, length=1) + 2 * kept


def nothing(config: TransformerConfig) -> Genotype:
    """The genotype whose attentions cost nothing, for what the rest of a model costs."""
    return Genotype.homogeneous(Identity(), config.layers, config.heads)
