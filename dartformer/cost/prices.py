"""Prices of all genotypes of a space at once.

From formulas, or from a table of measured latencies."""

import contextlib
from collections.abc import Callable, Iterable

import numpy as np

from dartformer.accelerators.devices import label
from dartformer.attention import to_text
from dartformer.attention.base import Attention, Shape
from dartformer.cost import measure
from dartformer.cost.analytic import decodes, flops, model_parameters, nothing
from dartformer.cost.budget import Budget, Price
from dartformer.cost.table import Table
from dartformer.errors import InputError
from dartformer.models.decode import require_generation
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

TRAINING = 3
"""FLOPs of a forward and a backward pass for each of the forward pass: for each of its products the
backward pass has two."""


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
      InputError: the model does not take the length, or a candidate has no such cost.
    """
    _require_length(config, space, budget)
    pricing = _Pricing(config, space, budget, table)
    if quantities is None:
        quantities = budget.quantities
    return {key: pricing.price(key) for key in quantities}


def device_of_latencies(budget: Budget) -> str:
    """The device in words, and whether they are predicted."""
    if budget.on:
        return label(budget.on)
    return measure.device()


def check_budget(budget: Budget, config: TransformerConfig, space: SearchSpace) -> None:
    """Raise `InputError` where a candidate has no price under a budget, before anything is priced."""
    _require_length(config, space, budget)
    if budget.phase == "decode" or "kv_bytes" in budget.quantities:
        _require_decoding(space)
    if budget.phase == "decode" and "latency_ms" in budget.quantities:
        # It is measured, on a model that continues texts.
        require_generation(config, nothing(config))


def _require_length(config: TransformerConfig, space: SearchSpace, budget: Budget) -> None:
    length, longest = budget.length or config.length, config.length
    if length > longest:
        raise InputError(
            f"the budget is for {length} tokens, and the model takes at most {longest}."
        )
    for candidate in space.candidates:
        if candidate.traits.fixed_length and length != longest:
            raise InputError(
                f"the budget is for {length} tokens, and {to_text(candidate)} has parameters for "
                f"exactly {longest}."
            )


def _require_decoding(space: SearchSpace) -> None:
    """Raise `InputError` for a candidate that cannot be decoded token by token."""
    stuck = []
    for candidate in space.candidates:
        if not decodes(candidate):
            stuck.append(to_text(candidate))
    if stuck:
        raise InputError(
            f"a budget for decoding does not work with {', '.join(stuck)}, which cannot be run token "
            f"by token. Use candidates that can (`dartformer list attentions`, column steps)."
        )


class _Pricing:
    """Prices at the batch, length and phase of a budget."""

    def __init__(
        self, config: TransformerConfig, space: SearchSpace, budget: Budget, table: Table | None
    ):
        self.config = config
        self.space = space
        self.budget = budget
        self.table = table
        self.plain = nothing(config)
        self.length = budget.length or config.length
        # Positions of the model, with those that it adds, such as CLS.
        self.positions = self.length + config.tokens - config.length

    def price(self, key: str) -> Price:
        """The price of one quantity."""
        decoding = self.budget.phase == "decode"
        if key == "parameters":
            return self._parameters()
        if key == "kv_bytes" or decoding:
            _require_decoding(self.space)
        if key == "kv_bytes":
            return Price(key, 0.0, self._groups(lambda a, n: a.cost(self._shape(n)).state_bytes))
        if key == "flops" and decoding:
            return self._decoding_flops()
        if key == "flops":
            return self._flops()
        if key == "memory_bytes":
            return self._memory()
        return self._latency()

    def _groups(self, cost: Callable[[Attention, int], float]) -> np.ndarray:
        """`[K, H + 1]`: the cost of n heads of each candidate, of those n that the space has."""
        heads = self.config.heads
        groups = np.zeros((len(self.space.candidates), heads + 1))
        _, columns, _ = self.space.alphas_shape
        together = heads // columns
        sizes = range(together, heads + 1, together)
        for k, candidate in enumerate(self.space.candidates):
            for n in sizes:
                groups[k, n] = cost(candidate, n)
        return groups

    def _shape(self, heads: int, length: int | None = None) -> Shape:
        """The shape of a group of heads, at the budget's length if no other is given."""
        kv_heads = -(-heads // self.config.sharing)
        if self.space.granularity == "head":
            # At most: heads of one attention may each read another key and value head, and a
            # budget must hold wherever they lie.
            kv_heads = min(heads, self.config.kv_heads or heads)
        return self.config.attention_shape(
            heads,
            kv_heads=kv_heads,
            batch=self.budget.batch * self.config.inputs,
            length=length or self.positions,
        )

    def _parameters(self) -> Price:
        """Their number depends on the model's length, never on the budget's."""
        base = model_parameters(transformer(self.config, self.plain))
        tokens = self.config.tokens
        groups = self._groups(lambda a, n: a.cost(self._shape(n, tokens)).parameters)
        return Price("parameters", base, groups)

    def _flops(self) -> Price:
        times = 1
        if self.budget.phase == "train":
            times = TRAINING
        base = flops(self.config, self.plain, batch=self.budget.batch, length=self.positions)
        groups = self._groups(lambda a, n: times * a.cost(self._shape(n)).flops)
        return Price("flops", times * base, groups)

    def _decoding_flops(self) -> Price:
        """A multiply-add for each number that is kept."""
        itemsize = self._shape(1).itemsize
        base = flops(self.config, self.plain, batch=self.budget.batch, length=1)
        groups = self._groups(lambda a, n: 2 * a.cost(self._shape(n)).state_bytes / itemsize)
        return Price("flops", base, groups)

    def _memory(self) -> Price:
        """From homogeneous models, and linear in the number of heads."""
        training = self.budget.phase == "train"
        base = self._temp_bytes(self.plain)
        # What is kept for a backward pass adds up over layers; a forward pass frees it.
        layers = 1
        if training:
            layers = self.config.layers
        added = {}
        models = zip(self.space.candidates, self.space.homogeneous(), strict=True)
        for candidate, genotype in models:
            added[candidate] = max(self._temp_bytes(genotype) - base, 0) / layers
        groups = self._groups(lambda a, n: added[a] * n / self.config.heads)
        return Price("memory_bytes", base, groups, largest=not training)

    def _temp_bytes(self, genotype: Genotype) -> int:
        return measure.temp_bytes(
            self.config,
            genotype,
            batch=self.budget.batch,
            phase=self.budget.phase,
            length=self.length,
        )

    def _latency(self) -> Price:
        budget = self.budget
        table = self.table or Table(budget.table or None, budget.trust_table, budget.on)
        with contextlib.closing(table):
            return self._latency_in(table)

    def _latency_in(self, table: Table) -> Price:
        """Milliseconds, from a table."""
        batch, length, phase = self.budget.batch, self.positions, self.budget.phase
        if phase == "decode":
            require_generation(self.config, self.plain)
        # A token reads the keys of its heads, which `_shape` counts where they are most.
        spread = phase == "decode" and self.space.granularity == "head"

        def milliseconds(attention: Attention, heads: int) -> float:
            seconds = table.attention(
                self.config,
                attention,
                heads,
                batch=batch,
                length=length,
                phase=phase,
                spread=spread,
            )
            return 1e3 * seconds

        base = 1e3 * table.rest(self.config, batch=batch, length=length, phase=phase)
        return Price("latency_ms", base, self._groups(milliseconds))
