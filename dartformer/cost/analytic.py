"""Cost by formula: parameters, FLOPs, and bytes for training and decoding."""

import dataclasses
import functools
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from dartformer.attention.base import Attention, Cost, Inputs, Params, Shape
from dartformer.attention.identity import Identity
from dartformer.models.decode import kept_by_groups
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Network, Weights
from dartformer.space.genotype import Genotype

MOST_PAIRS = 2048
"""The longest input whose pairs of tokens are counted one by one."""


def parameters(weights: Weights) -> int:
    """Number of parameters in a pytree of arrays (or of shapes)."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(weights))


def model_parameters(network: Network) -> int:
    """Number of parameters of a network, without creating them."""
    return parameters(jax.eval_shape(network.init, jax.random.key(0)))


def attention_cost(
    config: TransformerConfig,
    genotype: Genotype,
    layer: int,
    *,
    batch: int = 1,
    length: int | None = None,
) -> Cost:
    """Analytic cost of one layer's attentions, projections excluded.

    It is the sum over the groups of heads, but that what they keep is kept once (see
    `dartformer.models.decode.kept_by_groups`)."""
    total = Cost(0, 0, 0, 0)
    kept_of_groups = kept_by_groups(config, genotype, layer)
    for (attention, heads), kept in zip(genotype.groups(layer), kept_of_groups, strict=True):

        def cost(kv_heads: int, attention: Attention = attention, count: int = len(heads)) -> Cost:
            shape = config.attention_shape(count, kv_heads=kv_heads, batch=batch, length=length)
            return attention.cost(shape)

        price = cost(kept.read)
        if kept.lent:
            state = 0.0
            if kept.own:
                state = cost(len(kept.own)).state_bytes
            price = dataclasses.replace(price, state_bytes=state)
        total = total + price
    return total


def flops(
    config: TransformerConfig, genotype: Genotype, *, batch: int = 1, length: int | None = None
) -> float:
    """FLOPs that a forward pass executes (a multiply-add is two).

    Attentions, projections, feed-forward, classifier.

    Embeddings of ids and stem, which are look-ups, and normalisations, biases, activations and
    dropout, which are linear in the activations, are not counted."""
    n = config.tokens
    if length is not None:
        n = length
    documents = batch * config.inputs
    mixing = 0.0
    for l in range(config.layers):
        mixing += attention_cost(config, genotype, l, batch=documents, length=n).flops
    inner = config.heads * config.head_dim
    # Queries and output, and keys and values, which heads share.
    per_token = 4 * config.model_dim * inner * (1 + 1 / config.sharing)
    if config.output_gate != "none":
        per_token += 2 * config.model_dim * inner
    per_token += 2 * config.short_conv * inner * (1 + 2 / config.sharing)
    # The layers of the MLP.
    matrices = 2
    if config.gated_mlp:
        matrices = 3
    per_token += 2 * matrices * config.model_dim * config.mlp_dim
    embedding = 2 * config.features * config.model_dim
    rows = batch
    if config.labels_tokens:  # every token is classified
        rows = batch * n
    tokens = documents * n * (config.layers * per_token + embedding)
    return mixing + tokens + rows * _classifier_flops(config)


def _classifier_flops(config: TransformerConfig) -> int:
    """FLOPs of the classifier on one row."""
    pooled, m, classes = config.pooled, config.mlp_dim, config.classes
    if config.classifier == "none":
        return 0
    if config.classifier == "linear":
        return 2 * pooled * classes
    if config.inputs == 1:
        return 2 * (pooled * m + m * classes)
    return 2 * (pooled * m + m * (m // 2) + m // 2 * classes)


def useful_flops(attention: Attention, shape: Shape, *, causal: bool) -> float | None:
    """The part of the FLOPs that `attention` executes that the result needs.

    The definition of a type that is a matrix of weights needs 4 D + 5 for each pair of tokens whose
    weight is not zero (two multiply-adds by D numbers, and the softmax). Dense blocks and causal
    masks execute more. For a type that grows slower than N^2 although every token sees every
    (earlier) one, all is useful: it never forms the matrix.

    Returns:
      The smaller of both; all that is executed where there is no matrix; None above `MOST_PAIRS`
      tokens.
    """
    executed = attention.cost(shape).flops
    n = shape.length
    if not attention.traits.matrix:
        return executed
    if n > MOST_PAIRS:
        return None
    assert isinstance(attention, Hashable)  # a frozen dataclass
    pairs = _pairs(attention, n, shape.head_dim, shape.model_dim, causal)
    visible: float = n * n
    if causal:
        visible = n * (n + 1) / 2
    # Nearly all tokens are seen, and yet the matrix was never formed.
    if attention.traits.growth < 2 and pairs > 0.9 * visible:
        return executed
    return min(executed, shape.batch * shape.heads * pairs * (4 * shape.head_dim + 5))


@functools.lru_cache(maxsize=512)
def _pairs(attention: Attention, length: int, head_dim: int, model_dim: int, causal: bool) -> int:
    """Pairs of tokens with a weight that is not zero, of one head on one random input."""
    q_key, k_key, v_key, x_key, head_key, init_key = jax.random.split(jax.random.key(0), 6)
    shape = (1, length, 1, head_dim)  # [B, N, H, D]
    inputs = Inputs(
        jax.random.normal(q_key, shape),
        jax.random.normal(k_key, shape),
        jax.random.normal(v_key, shape),
        jax.random.normal(x_key, (1, length, model_dim)),
        head_keys=jax.random.split(head_key, 1),
    )
    # One head is enough: the heads of a type see equally many tokens, up to chance.
    params = attention.init(init_key, Shape(length, 1, head_dim, model_dim))
    weights = attention.weights(params, inputs, causal=causal)
    assert weights is not None
    return int(np.count_nonzero(np.asarray(weights)))


def training_bytes(
    attention: Attention, shape: Shape, *, causal: bool, dtype: DTypeLike = jnp.float32
) -> int:
    """Bytes that a forward pass of `attention` keeps for its backward pass.

    Inputs and parameters are not included: it is what another layer adds to the memory of training.
    Found by tracing; nothing is computed or compiled."""
    sizes = (shape.batch, shape.length, shape.heads, shape.head_dim)
    arrays = dict.fromkeys("qkv", jax.ShapeDtypeStruct(sizes, dtype))
    if "x" in attention.traits.reads:
        arrays["x"] = jax.ShapeDtypeStruct((shape.batch, shape.length, shape.model_dim), dtype)
    params = jax.eval_shape(lambda key: attention.init(key, shape), jax.random.key(0))

    def residuals(params: Params, arrays: dict[str, jax.Array]) -> list[jax.Array]:
        valid = jnp.ones(sizes[:2], bool)
        keys = jax.random.split(jax.random.key(0), shape.heads)

        def forward(params: Params, arrays: dict[str, jax.Array]) -> jax.Array:
            inputs = Inputs(arrays["q"], arrays["k"], arrays["v"], arrays.get("x"), valid, keys)
            return attention(params, inputs, causal=causal, train=True, key=jax.random.key(1))

        # The leaves of a vjp are what it keeps for the backward pass.
        return jax.tree.leaves(jax.vjp(forward, params, arrays)[1])

    jaxpr = jax.make_jaxpr(residuals)(params, arrays).jaxpr
    inputs = set(map(id, (*jaxpr.invars, *jaxpr.constvars)))
    # The same array may be kept twice, and counts once; literals have a value and no memory.
    kept = {}
    for variable in jaxpr.outvars:
        if not hasattr(variable, "val") and id(variable) not in inputs:
            kept[id(variable)] = variable.aval
    return sum(int(np.prod(array.shape)) * array.dtype.itemsize for array in kept.values())


def decodes(attention: Attention) -> bool:
    """Whether `attention` can decode token after token from `Cost.state_bytes`."""
    return attention.traits.decodes


def decoding_flops(
    config: TransformerConfig, genotype: Genotype, *, batch: int, length: int
) -> float:
    """FLOPs of one more token after `length`, for each sequence of the batch.

    Projections, feed-forward, classifier, and a multiply-add for each number that is kept."""
    kept = 0.0
    for l in range(config.layers):
        kept += attention_cost(config, genotype, l, batch=batch, length=length).state_bytes
    numbers = kept / config.attention_shape().itemsize
    return flops(config, nothing(config), batch=batch, length=1) + 2 * numbers


def nothing(config: TransformerConfig) -> Genotype:
    """The genotype whose attentions cost nothing, for the cost of the rest of a model."""
    return Genotype.homogeneous(Identity(), config.layers, config.heads)
