"""Prices of all genotypes of a space at once: from formulas, or from a table of measured
latencies."""

from collections.abc import Callable, Iterable

import numpy as np

from dartformer.attention import to_text
from dartformer.attention.base import Attention, Shape
from dartformer.cost import measure
from dartformer.cost.analytic import decodes, flops, model_parameters, nothing
from dartformer.cost.budget import Budget, Price
from dartformer.cost.table import Table
from dartformer.errors import InputError
from dartformer.models.transformer import TransformerConfig, transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

TRAINING = 3
"""FLOPs of a forward and a backward pass for each of the forward pass: the backward one has two
products for each."""


def prices(
    config: TransformerConfig,
    space: SearchSpace,
    budget: Budget,
    table: Table | None = None,
    quantities: Iterable[str] | None = None,
) -> dict[str, Price]:
    """The price of each quantity.

    Args:
      config, space: sizes and candidates.
      budget: for its batch, length and phase, and, where `quantities` is None, for what it limits.
      table: for latencies; None for the budget's. Entries that it lacks are measured.

    Raises:
      InputError: the length cannot be, or a candidate has no such cost.
    """
    length = budget.length or config.length
    if length > config.length:
        raise InputError(
            f"the budget is for {length} tokens, and the model takes at most {config.length}."
        )
    for one in space.candidates:
        if one.traits.fixed_length and length != config.length:
            raise InputError(
                f"the budget is for {length} tokens, and {to_text(one)} has parameters for {config.length} "
                f"alone."
            )
    keys = [key for key, _ in budget.limits] if quantities is None else list(quantities)
    return {
        key: _price(key, config, space, budget, length + config.tokens - config.length, table)
        for key in keys
    }


def _price(
    key: str,
    config: TransformerConfig,
    space: SearchSpace,
    budget: Budget,
    n: int,
    table: Table | None,
) -> Price:
    documents, phase = budget.batch * config.inputs, budget.phase

    def groups(cost_of: Callable[[Attention, int], float]) -> np.ndarray:
        made = np.zeros((len(space.candidates), config.heads + 1))
        sizes = range(1, config.heads + 1) if space.granularity == "head" else [config.heads]
        for k, one in enumerate(space.candidates):
            for heads in sizes:
                made[k, heads] = cost_of(one, heads)
        return made

    def shape(heads: int, tokens: int = n) -> Shape:
        return config.attention_shape(
            heads, kv_heads=-(-heads // config.sharing), batch=documents, length=tokens
        )

    plain = nothing(config)
    if key == "parameters":
        return Price(
            key,
            model_parameters(transformer(config, plain)),
            groups(lambda one, heads: one.cost(shape(heads, config.tokens)).parameters),
        )
    if key in ("kv_bytes",) or phase == "decode":
        stuck = [to_text(one) for one in space.candidates if not decodes(one)]
        if stuck:
            raise InputError(
                f"a budget for decoding cannot be taken with {', '.join(stuck)}: a later token changes "
                f"earlier outputs, so that nothing can be decoded token by token."
            )
    if key == "kv_bytes":
        return Price(key, 0.0, groups(lambda one, heads: one.cost(shape(heads)).state_bytes))
    if key == "flops" and phase == "decode":
        itemsize = shape(1).itemsize
        return Price(
            key,
            flops(config, plain, batch=budget.batch, length=1),
            groups(lambda one, heads: 2 * one.cost(shape(heads)).state_bytes / itemsize),
        )
    if key == "flops":
        times = TRAINING if phase == "train" else 1
        return Price(
            key,
            times * flops(config, plain, batch=budget.batch, length=n),
            groups(lambda one, heads: times * one.cost(shape(heads)).flops),
        )
    if key == "memory_bytes":

        def whole(genotype: Genotype) -> int:
            return measure.temp_bytes(
                config,
                genotype,
                batch=budget.batch,
                phase=phase,
                length=n - (config.tokens - config.length),
            )

        rest, layers = whole(plain), config.layers if phase == "train" else 1
        # Of homogeneous models, and by heads in between. What is kept for a backward pass adds up
        # over layers.
        more = {
            one: max(whole(g) - rest, 0) / layers
            for one, g in zip(space.candidates, space.homogeneous(), strict=True)
        }
        return Price(
            key,
            rest,
            groups(lambda one, heads: more[one] * heads / config.heads),
            largest=phase != "train",
        )
    table = table or Table(budget.table or None, budget.trust_table)
    known = table

    def milliseconds(one: Attention, heads: int) -> float:
        return 1e3 * known.attention(config, one, heads, batch=budget.batch, length=n, phase=phase)

    return Price(
        key,
        1e3 * table.rest(config, batch=budget.batch, length=n, phase=phase),
        groups(milliseconds),
    )
