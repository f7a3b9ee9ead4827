"""In-context recall of MAD: a stream of pairs whose keys come again, with noise or long keys.

Poli et al. 2024, "Mechanistic Design and Scaling of Hybrid Architectures" (arXiv:2403.17844),
section 3.1 and appendix B, with the settings of the authors' code."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np

from dartformer.data.splits import Batch
from dartformer.errors import InputError
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.generated import batch_of, below, draws, draws_at, numbered
from dartformer.tasks.requirements import require_at_least
from dartformer.tasks.symbols import SymbolTask, distinct, require_different

PAPER = "Poli et al. 2024 (MAD), 2403.17844"

BLANK = "_"
"""Fills the start of an example, where no whole pair fits."""


@dataclass(frozen=True, kw_only=True)
class ContextRecall(SymbolTask):
    """A stream of keys with their values; a key that comes again predicts the value it had before.

    Every example has a map of its own from keys to values. A key is 1 to `key_tokens` different
    letters, a value 1 to `value_tokens` letters of another alphabet; each length is equally likely.
    A pair is replaced by as many noise tokens with probability `noise`. Where a key came before in
    the example, its last token and all tokens of its value but the last predict the next token of
    the value. The last token ends a key that came before.

    This differs from the authors' code, where the loss of training is over all tokens, noise among
    them; where the keys of valid and test all have the greatest length; where keys have 7 letters
    if they are long; and where a key's value is drawn at its first place, and not from a random
    map.

    Attributes:
      keys: letters of the keys; there are as many for the values.
      key_tokens: most letters of a key.
      value_tokens: most letters of a value.
      noise: share of the pairs that are noise.
      noise_tokens: different noise tokens.
    """

    length: int = 128
    keys: int = 8
    key_tokens: int = 1
    value_tokens: int = 1
    noise: float = 0.0
    noise_tokens: int = 16

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Recall the value that followed a key before in a stream of pairs (generated)",
        paper=PAPER,
        causal=True,
        per_token=True,
        generated=True,
    )

    def __post_init__(self) -> None:
        self.require_counts()
        require_at_least(self, keys=2, key_tokens=1, value_tokens=1, noise_tokens=1)
        longest = max(self.key_tokens, self.value_tokens)
        if longest > self.keys:
            raise InputError(
                f"task.key_tokens and task.value_tokens must be at most task.keys = {self.keys}, "
                f"because the letters of a key differ; got {longest}."
            )
        # A key is one 64-bit number, and so is the place of its value among the draws.
        if (self.keys + 1) ** self.key_tokens > 2**56:
            raise InputError(
                f"{self.keys} letters allow no keys of {self.key_tokens} tokens, because their "
                f"number exceeds 2^56. Use fewer task.keys or task.key_tokens."
            )
        if not 0 <= self.noise < 1:
            raise InputError(f"task.noise must be at least 0 and below 1, got {self.noise}.")
        least = self.key_tokens + self._pair_tokens
        if self.length < least:
            raise InputError(f"task.length must be at least {least}, got {self.length}.")
        require_different(self, -self._sure_pairs * math.log2(self._same_pair))

    @property
    def symbols(self) -> tuple[str, ...]:
        """Padding, the letters of keys and values, noise, and what fills the start."""
        keys, values = numbered("k", self.keys), numbered("v", self.keys)
        noise = []
        if self.noise:
            noise = numbered("n", self.noise_tokens)
        return ("", *keys, *values, *noise, BLANK)

    @property
    def labels(self) -> tuple[str, ...]:
        """v0, v1, ..."""
        return self.symbols[1 + self.keys : 1 + 2 * self.keys]

    @property
    def _pair_tokens(self) -> int:
        """Tokens of the longest pair."""
        return self.key_tokens + self.value_tokens

    @property
    def _sure_pairs(self) -> int:
        """Pairs that fit before the last key, however long they are."""
        return (self.length - self.key_tokens) // self._pair_tokens

    @property
    def _same_pair(self) -> float:
        """How likely it is that the same place has the same key, or the same noise, in two examples."""
        same_key = 0.0
        for size in range(1, self.key_tokens + 1):
            same_key += 1 / math.perm(self.keys, size)
        same_key /= self.key_tokens**2  # both keys have one of so many sizes
        same_noise = self.noise_tokens**-2.0
        return (1 - self.noise) ** 2 * same_key + self.noise**2 * same_noise

    def examples(self, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B].

        Each is a function of the options and its number alone."""
        slots = self._slots(indices)
        starts = self._starts(slots)
        is_kept = starts >= 0
        is_pair = is_kept & ~slots.is_noise
        blank = len(self.symbols) - 1
        tokens = np.full((len(indices), self.length), blank)
        label = np.full_like(tokens, -1)

        key_places, in_key = _places(starts, slots.key_sizes, self.key_tokens)
        value_starts = starts + slots.key_sizes
        value_places, in_value = _places(value_starts, slots.value_sizes, self.value_tokens)
        # The value of the last key is beyond the end.
        in_value &= value_places < self.length
        _put(tokens, key_places, 1 + slots.keys, in_key & is_pair[..., None])
        _put(tokens, value_places, 1 + self.keys + slots.values, in_value & is_pair[..., None])
        if self.noise:
            sizes = slots.key_sizes + slots.value_sizes
            places, in_slot = _places(starts, sizes, self._pair_tokens)
            is_noise = is_kept & slots.is_noise
            noise = 1 + 2 * self.keys + slots.noise
            _put(tokens, places, noise, in_slot & is_noise[..., None])

        # A token of a value is predicted one place earlier, the first by the key's last token.
        places, in_value = _places(value_starts - 1, slots.value_sizes, self.value_tokens)
        is_again = _comes_again(slots.codes, is_pair) & is_pair
        in_value &= (places < self.length) & is_again[..., None]
        _put(label, places, slots.values, in_value)
        return batch_of(tokens, label)

    def _slots(self, indices: np.ndarray) -> "_Slots":
        """The pairs of examples [B], as many as could fit, with the last key as the last of them."""
        count = 1 + (self.length - 1) // 2  # no pair is shorter than two tokens
        drawn = 2 + self.key_tokens + self._pair_tokens
        bits = draws(self.seed, indices, 1 + count * drawn)
        last_bits, slot_bits = bits[:, 0], bits[:, 1:].reshape(-1, count, drawn)
        # [B, S], [B, S], [B, S, key_tokens] and [B, S, key_tokens + value_tokens]
        noise_bits, size_bits = slot_bits[..., 0], slot_bits[..., 1]
        key_bits = slot_bits[..., 2 : 2 + self.key_tokens]
        token_bits = slot_bits[..., 2 + self.key_tokens :]

        is_noise = (noise_bits >> np.uint64(11)) * 2.0**-53 < self.noise
        key_sizes = 1 + below(self.key_tokens, size_bits)
        keys = distinct(self.keys, key_bits)

        # The last key is that of a pair that fits in every case.
        rows = np.arange(len(indices))
        before = count - 2 - below(self._sure_pairs, last_bits)
        is_noise[rows, before] = is_noise[:, -1] = False
        keys[:, -1], key_sizes[:, -1] = keys[rows, before], key_sizes[rows, before]

        # A key's value is drawn by the key's number, so that it is the same wherever it stands.
        codes = _codes(keys, key_sizes, self.keys)
        first = bits.shape[1] + codes * (1 + self.value_tokens)
        numbers = first[..., None] + np.arange(1 + self.value_tokens)
        value_bits = draws_at(self.seed, indices, numbers.reshape(len(indices), -1))
        value_bits = value_bits.reshape(numbers.shape)
        value_sizes = 1 + below(self.value_tokens, value_bits[..., 0])
        values = distinct(self.keys, value_bits[..., 1:])
        noise = below(self.noise_tokens, token_bits)
        return _Slots(is_noise, key_sizes, keys, codes, value_sizes, values, noise)

    def _starts(self, slots: "_Slots") -> np.ndarray:
        """`[B, S]` where pairs start, laid from the end; below 0 for those that do not fit."""
        sizes = slots.key_sizes + slots.value_sizes
        sizes[:, -1] = slots.key_sizes[:, -1]
        to_end = np.cumsum(sizes[:, ::-1], axis=1)[:, ::-1]
        return self.length - to_end


class _Slots(NamedTuple):
    """Pairs of examples, each of which may be noise instead.

    Attributes:
      is_noise: `[B, S]` whether noise takes the pair's place.
      key_sizes: `[B, S]` letters of the key.
      keys: `[B, S, key_tokens]` letters of a key of the greatest size.
      codes: `[B, S]` a number for each key.
      value_sizes: `[B, S]` letters of the value.
      values: `[B, S, value_tokens]` letters of a value of the greatest size.
      noise: `[B, S, key_tokens + value_tokens]` noise tokens.
    """

    is_noise: np.ndarray
    key_sizes: np.ndarray
    keys: np.ndarray
    codes: np.ndarray
    value_sizes: np.ndarray
    values: np.ndarray
    noise: np.ndarray


def _codes(keys: np.ndarray, sizes: np.ndarray, letters: int) -> np.ndarray:
    """`[B, S]` a number for each key, which keys of another size or with other letters lack."""
    codes = np.zeros(sizes.shape, np.int64)
    for j in range(keys.shape[-1]):
        digit = np.where(j < sizes, 1 + keys[..., j], 0)
        codes = codes * (letters + 1) + digit
    return codes


def _comes_again(codes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`[B, S]` whether the code of a slot that counts is that of an earlier one."""
    slot = np.arange(codes.shape[1])
    # Slots that do not count get codes that differ from all.
    codes = np.where(counts, codes, -1 - slot)
    order = np.argsort(codes, axis=1, kind="stable")
    ordered = np.take_along_axis(codes, order, 1)
    # Equal codes keep their order in time: all but the first of them come again.
    equal = np.zeros_like(counts)
    equal[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    again = np.empty_like(equal)
    np.put_along_axis(again, order, equal, 1)
    return again


def _places(starts: np.ndarray, sizes: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """`[B, S, most]` places from each start on, and which of them are within its size."""
    offset = np.arange(most)
    return starts[..., None] + offset, offset < sizes[..., None]


def _put(array: np.ndarray, places: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
    """Write values `[B, S, M]` to the places of a row where the mask is true."""
    row = np.nonzero(mask)[0]
    array[row, places[mask]] = values[mask]


@dataclass(frozen=True, kw_only=True)
class NoisyRecall(ContextRecall):
    """`context_recall` where noise from an alphabet of its own takes the place of some pairs."""

    noise: float = 0.2

    traits: ClassVar[TaskTraits] = replace(
        ContextRecall.traits, summary="Recall values in context, among noise (generated)"
    )


@dataclass(frozen=True, kw_only=True)
class FuzzyRecall(ContextRecall):
    """`context_recall` where keys and values are 1 to 3 tokens long."""

    key_tokens: int = 3
    value_tokens: int = 3

    traits: ClassVar[TaskTraits] = replace(
        ContextRecall.traits, summary="Recall values of several tokens by such keys (generated)"
    )
