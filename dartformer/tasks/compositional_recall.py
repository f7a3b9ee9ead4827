"""Compositional recall: keys of two parts, neither of which tells the value.

Zoology's `compositional_mqar.py` (github.com/HazyResearch/zoology), after Arora et al. 2023
(arXiv:2312.04927)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dartformer.data.splits import Batch, Split, in_order
from dartformer.errors import InputError
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.generated import batch_of, below, draws, numbered
from dartformer.tasks.recall import power_law_places
from dartformer.tasks.requirements import require_at_least
from dartformer.tasks.symbols import SymbolTask, require_different


@dataclass(frozen=True, kw_only=True)
class CompositionalRecall(SymbolTask):
    """Triples of two keys and a value, for every pair of `grid` first and `grid` second keys.

    The triples come in random order, and their values differ. Then each pair comes once more,
    somewhere in the other tokens, and its value follows; the label of its second key is the value.
    A pair comes again near the start with a probability like position^(power - 1). The remaining
    tokens of the `length` are values and keys that the example does not use. In the authors' code
    they are any tokens, and one of them follows the second key in place of the value.

    Attributes:
      grid: first keys of an example, and second keys; it has grid^2 triples.
      keys: different first keys; there are as many second keys and as many values.
      power: how near the start pairs come again; the smaller, the nearer.
    """

    length: int = 64
    grid: int = 2
    keys: int = 32
    power: float = 0.01

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Recall the value that followed a pair of keys (causal, generated)",
        paper="Zoology, github.com/HazyResearch/zoology; Arora et al. 2023, 2312.04927",
        causal=True,
        per_token=True,
        generated=True,
    )

    def __post_init__(self) -> None:
        self.require_counts()
        require_at_least(self, grid=2, keys=2)
        triples = self.grid**2
        if self.keys < triples:
            raise InputError(
                f"task.keys must be at least grid^2 = {triples}, because the values differ; "
                f"got {self.keys}."
            )
        if self.length < 6 * triples:
            raise InputError(
                f"task.length must be at least 6 * grid^2 = {6 * triples}, got {self.length}."
            )
        if not self.power > 0:
            raise InputError(f"task.power must be above 0, got {self.power}.")
        choices = math.comb(self.keys, self.grid) ** 2  # of first and second keys
        orders = math.factorial(triples)
        require_different(self, math.log2(choices * orders * math.perm(self.keys, triples)))

    @property
    def symbols(self) -> tuple[str, ...]:
        """Padding, first keys, second keys, values."""
        first, second = numbered("k", self.keys), numbered("l", self.keys)
        return ("", *first, *second, *numbered("v", self.keys))

    @property
    def labels(self) -> tuple[str, ...]:
        """v0, v1, ..."""
        return self.symbols[1 + 2 * self.keys :]

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B].

        Each is a function of the options and its number alone."""
        keys, grid, triples = self.keys, self.grid, self.grid**2
        start = 3 * triples
        slots = (self.length - start) // 3
        sizes = [keys, keys, keys, triples, slots, self.length]
        bits = draws(self.seed, indices, sum(sizes))
        parts = np.split(bits, np.cumsum(sizes[:-1]), axis=1)
        place_bits, filler_bits = parts[4:]
        # Random numbers in order give random permutations.
        first, second, values, cell = (np.argsort(part, 1, "stable") for part in parts[:4])
        values = values[:, :triples]
        # [B, grid^2]: every cell of the grid, which is numbered row by row.
        row = np.take_along_axis(first, cell // grid, 1)
        column = np.take_along_axis(second, cell % grid, 1)

        tokens = self._filler(first[:, grid:], second[:, grid:], filler_bits)
        label = np.full_like(tokens, -1)
        place = start + 3 * power_law_places(place_bits, triples, self.power)
        for places in (3 * np.arange(triples)[None], place):
            places = np.broadcast_to(places, place.shape)
            np.put_along_axis(tokens, places, 1 + row, 1)
            np.put_along_axis(tokens, places + 1, 1 + keys + column, 1)
            np.put_along_axis(tokens, places + 2, 1 + 2 * keys + values, 1)
        # Only a pair that comes again has a label: its value is known from the first place.
        np.put_along_axis(label, place + 1, values, 1)
        return batch_of(tokens, label)

    def _filler(self, first: np.ndarray, second: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """`[B, N]` tokens: values, and the keys `[B, keys - grid]` that the example does not use."""
        keys, unused = self.keys, self.keys - self.grid
        number = below(keys + 2 * unused, bits)
        tokens = 1 + 2 * keys + number
        for i, names in enumerate((1 + first, 1 + keys + second)):
            position = number - keys - i * unused
            is_name = (position >= 0) & (position < unused)
            name = np.take_along_axis(names, np.clip(position, 0, unused - 1), 1)
            tokens = np.where(is_name, name, tokens)
        return tokens

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`own_token`, and `second_key`: the first value that followed the second key alone."""
        rules = super().baselines(train, split)
        # Of the grid's pairs with the same second key the rule is right about one.
        right = count = 0
        for batch in in_order(split):
            tokens, label = batch["tokens"], batch["label"]
            row, place = np.nonzero(label >= 0)
            triples = tokens[row, : 3 * self.grid**2]  # the start of each label's example
            is_same = triples[:, 1::3] == tokens[row, place][:, None]
            answer = triples[np.arange(len(row)), 3 * is_same.argmax(1) + 2]
            right += int((answer == 1 + 2 * self.keys + label[row, place]).sum())
            count += len(row)
        rules["second_key"] = right / count
        return rules
