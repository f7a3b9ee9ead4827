"""Budgets: what a genotype may cost. Prices: what the genotypes of a space cost.

Both are for a stated batch, length and phase."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.accelerators.devices import device_of, label
from dartformer.errors import InputError, brief, unknown
from dartformer.machine.record import Record
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

QUANTITIES = {
    "latency_ms": "measured milliseconds of a pass, or of one more token, on this device",
    "parameters": "numbers that are trained",
    "flops": "floating-point operations that are executed",
    "memory_bytes": "intermediate arrays that are in memory at once",
    "kv_bytes": "keys, values and states kept while decoding",
}
"""What a budget can limit, for a complete model at the stated batch, length and phase."""

PHASES = ("forward", "train", "decode")
"""A forward pass; a forward and a backward pass; one more token after `length` tokens."""

SETTINGS = ("batch", "length", "phase", "floor", "rate", "table", "trust_table", "on")
"""Keys of a budget that are no limits."""

UNITS = {
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
}
"""Units of bytes that a limit may have on the command line."""

TEXTS = ("phase", "table", "on")
WHOLE_NUMBERS = ("batch", "length")

LARGEST_BATCH = 2**31 - 1


def check_phase(phase: str, allowed: tuple[str, ...] = PHASES) -> None:
    """Raise `InputError` for an unknown phase."""
    if phase not in allowed:
        raise unknown("phase", phase, allowed)


@dataclass(frozen=True)
class Budget:
    """Limits on the cost of a genotype.

    Attributes:
      limits: quantity and limit, of `QUANTITIES`.
      batch, length, phase: at which costs are meant; length 0 is that of the task.
      floor: share of a limit below which a search under this budget is not pressed to be cheaper.
      rate: of dual ascent: how much a multiplier grows in a step, for each share by which the limit
        is exceeded.
      table: file of measured latencies; "" for the one in the user's cache folder.
      trust_table: use it although another device or other versions measured it.
      on: a device that is not here, whose compiler predicts latencies; "" to measure them here.
    """

    limits: tuple[tuple[str, float], ...]
    batch: int = 1
    length: int = 0
    phase: str = "forward"
    floor: float = 0.9
    rate: float = 0.1
    table: str = ""
    trust_table: bool = False
    on: str = ""

    @classmethod
    def of(cls, options: Mapping[str, Any], where: str = "search.budget") -> "Budget":
        """A budget from `{"latency_ms": 12, "batch": 8}`.

        Raises `InputError` for an unknown key or an impossible value."""
        for key, value in options.items():
            check_key(key, where)
            _check_value(key, value, where)
        limits = []
        for key in QUANTITIES:  # in this order, whatever that of the options
            if key in options:
                limits.append((key, float(options[key])))
        if not limits:
            raise InputError(f"{where} limits nothing: give one of {', '.join(QUANTITIES)}.")
        defaults = cls(tuple(limits))
        budget = cls(
            tuple(limits),
            batch=int(options.get("batch", defaults.batch)),
            length=int(options.get("length", defaults.length)),
            phase=options.get("phase", defaults.phase),
            floor=float(options.get("floor", defaults.floor)),
            rate=float(options.get("rate", defaults.rate)),
            table=str(options.get("table", defaults.table)),
            trust_table=options.get("trust_table", defaults.trust_table),
            on=str(options.get("on", defaults.on)),
        )
        budget._check(where)
        return budget

    def _check(self, where: str) -> None:
        """Raise `InputError` for values that do not work together."""
        if self.phase not in PHASES:
            raise unknown(f"phase of {where}", self.phase, PHASES)
        if self.batch > LARGEST_BATCH:
            raise InputError(f"{where}: batch must be at most {LARGEST_BATCH}, got {self.batch}.")
        if self.floor > 1:
            raise InputError(
                f"{where}: floor is a share of the limit, at most 1; got {self.floor!r}."
            )
        if self.phase == "decode" and "memory_bytes" in self.quantities:
            raise InputError(
                f"{where}: memory_bytes does not work with phase = 'decode'. Limit kv_bytes."
            )

        if self.on:
            self._check_predicted(where)

    def _check_predicted(self, where: str) -> None:
        """Raise `InputError` where nothing can be predicted for another device."""
        device_of(self.on)
        if "latency_ms" not in self.quantities or "memory_bytes" in self.quantities:
            raise InputError(
                f"{where}: on={self.on} predicts latency_ms, and does not work without it, or with "
                f"memory_bytes, which is measured here."
            )
        if self.phase == "decode":
            raise InputError(
                f"{where}: on={self.on} does not work with phase=decode. Use forward or train."
            )

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities that are limited."""
        return tuple(dict(self.limits))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, that `of` reads."""
        return {
            **dict(self.limits),
            "batch": self.batch,
            "length": self.length,
            "phase": self.phase,
            **self._predicted(),
        }

    def _predicted(self) -> dict[str, str]:
        """The device that is not here, left out where there is none, as in older files."""
        if not self.on:
            return {}
        return {"on": self.on}

    def __str__(self) -> str:
        limits = []
        for key, value in self.limits:
            limits.append(f"{key} = {number(value)}")
        setting = [f"batch {self.batch}"]
        if self.length:
            setting.append(f"length {self.length}")
        setting.append(self.phase)
        if self.on:
            setting.append(label(self.on))
        return f"{', '.join(limits)} ({', '.join(setting)})"


def check_key(key: str, where: str) -> None:
    """Raise `InputError` for an unknown key of a budget."""
    if key not in QUANTITIES and key not in SETTINGS:
        raise unknown(f"key of {where}", key, (*QUANTITIES, *SETTINGS))


def _check_value(key: str, value: Any, where: str) -> None:
    """Raise `InputError` for a value of the wrong type or range."""
    if key == "trust_table":
        if not isinstance(value, bool):
            raise InputError(f"{where}: trust_table must be true or false, got {value!r}.")
        return
    if key in TEXTS or (key == "length" and value == 0):
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < np.inf:
        raise InputError(f"{where}: {key} must be a number above 0, got {brief(value)}.")
    if key in WHOLE_NUMBERS and int(value) != value:
        raise InputError(f"{where}: {key} must be a whole number, got {value!r}.")


def parse(texts: Iterable[str], where: str = "--budget") -> dict[str, Any]:
    """A budget from texts such as "latency_ms=12,batch=8", as a mapping for `Budget.of`.

    Raises `InputError`."""
    options: dict[str, Any] = {}
    for text in texts:
        for part in text.split(","):
            if part.strip():
                key, value = _parse_part(part, where)
                options[key] = value
    return options


def _parse_part(part: str, where: str) -> tuple[str, Any]:
    """Key and value of KEY=VALUE."""
    key, equals, text = map(str.strip, part.partition("="))
    if not equals:
        raise InputError(f"{where} takes KEY=VALUE, as in latency_ms=12, got {brief(part)}.")
    check_key(key, where)
    if key == "trust_table":
        return key, text.lower() in ("true", "1", "yes")
    if key in TEXTS:
        return key, text
    factor = 1.0
    if key.endswith("_bytes"):
        text, factor = _without_unit(text)
    value = factor * read_number(text, f"{where}: {key}")
    if key in WHOLE_NUMBERS and value == int(value):
        return key, int(value)
    return key, value


def _without_unit(text: str) -> tuple[str, float]:
    """A text without its unit of bytes, and how many bytes that is."""
    for unit, factor in UNITS.items():
        if text.lower().endswith(unit):
            return text[: -len(unit)], factor
    return text, 1.0


def read_number(text: str, name: str) -> float:
    """A finite number from a text; raises `InputError`."""
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{name} must be a number above 0, got {brief(text)}.")
    return value


def number(value: float) -> str:
    """A cost in at most four digits, whole numbers with commas."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Price(Record):
    """What genotypes of a space cost in one quantity.

    It is `rest` plus what the groups of heads of each layer add.

    Attributes:
      quantity: of `QUANTITIES`.
      rest: of a model without its attentions.
      groups: `[K, H + 1]`: n heads of candidate k in one layer; 0 for n = 0. Not linear in n: a
        single head of a type still starts its complete kernel.
      largest: layers share it, so that the most expensive counts (memory of a forward pass);
        otherwise it is the sum over layers.
    """

    quantity: str
    rest: float
    groups: np.ndarray
    largest: bool = False

    def of(self, genotype: Genotype, space: SearchSpace) -> float:
        """The cost of a genotype."""
        counts = self.counts(space.choice(genotype))
        candidates = np.arange(len(self.groups))
        layers = self.groups[candidates, counts].sum(-1)  # [L]
        attentions = layers.sum()
        if self.largest:
            attentions = layers.max()
        return float(self.rest + attentions)

    def counts(self, choice: np.ndarray) -> np.ndarray:
        """`[L, K]` heads of each candidate, of choices `[L, H]`."""
        return (choice[..., None] == np.arange(len(self.groups))).sum(1)

    def expected(self, mixture: Array, columns: int) -> Array:
        """Expected cost of the genotypes that are drawn from a mixture `[L, H, K]`, differentiable.

        Heads are drawn independently, so that the number of heads of a type is Poisson-binomial,
        and its distribution follows head by head: P(n) <- P(n) (1 - p_h) + P(n - 1) p_h.

        Args:
          mixture: `[L, H, K]`.
          columns: C, how many choices a layer has: H / C neighbouring heads are drawn as one.
        """
        # Heads drawn as one have one row, and only multiples of their number occur.
        together = mixture.shape[1] // columns
        mixture = mixture[:, ::together]
        groups = jnp.asarray(self.groups[:, ::together], mixture.dtype)
        layers = jnp.sum(self._head_counts(mixture) * groups, (1, 2))
        if self.largest:
            return self.rest + jnp.max(layers)
        return self.rest + jnp.sum(layers)

    def _head_counts(self, mixture: Array) -> Array:
        """`[L, K, H + 1]` probability of each number of heads of each candidate."""
        layers, heads, candidates = mixture.shape
        empty = jnp.zeros((layers, candidates, heads + 1), mixture.dtype)
        odds = empty.at[..., 0].set(1)
        for h in range(heads):
            p = mixture[:, h, :, None]
            # P(n - 1): shifted by one head, and 0 for n = 0.
            one_less = jnp.pad(odds[..., :-1], ((0, 0), (0, 0), (1, 0)))
            odds = odds * (1 - p) + one_less * p
        return odds

    def cheapest(self, space: SearchSpace) -> tuple[float, Genotype]:
        """The cheapest genotype of the space, with its cost."""
        return self._least(space, self.groups)

    def most_expensive(self, space: SearchSpace) -> tuple[float, Genotype]:
        """The most expensive genotype of the space, with its cost."""
        return self._least(space, -self.groups)

    def _least(self, space: SearchSpace, groups: np.ndarray) -> tuple[float, Genotype]:
        """The genotype for which the sum of `groups` is least, with its cost."""
        rows, columns, _ = space.alphas_shape
        counts = _best_counts(groups[:, :: space.heads // columns])
        layer = np.repeat(np.arange(len(groups)), counts)
        # Layers do not depend on one another.
        genotype = space.genotype(np.broadcast_to(layer, (rows, columns)))
        # By `of`, and not the sum above, whose sign may be reversed.
        return self.of(genotype, space), genotype


def _best_counts(groups: np.ndarray) -> tuple[int, ...]:
    """How many heads of each candidate make the least sum of `groups` `[K, H + 1]`.

    Dynamic programming: best[n] is the least sum, and the counts, for n heads of the candidates so
    far."""
    heads = groups.shape[1] - 1
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    best += [(np.inf, ())] * heads
    for row in groups:
        extended = []
        for n in range(heads + 1):
            options = []
            for m in range(n + 1):
                cost, counts = best[n - m]
                options.append((cost + float(row[m]), (*counts, m)))
            # By the cost alone: of equal ones, the first.
            extended.append(min(options, key=lambda option: option[0]))
        best = extended
    return best[heads][1]


class BudgetTooSmall(InputError):
    """No genotype of the space is within the budget."""


def require_possible(budget: Budget, prices: Mapping[str, Price], space: SearchSpace) -> None:
    """Raise `BudgetTooSmall` for a limit below the cheapest genotype of the space."""
    for key, limit in budget.limits:
        least, genotype = prices[key].cheapest(space)
        if limit < least:
            raise BudgetTooSmall(
                f"the budget {key} = {number(limit)} is below the cheapest genotype of the space, "
                f"which costs {number(least)} ({genotype}; {number(prices[key].rest)} of it "
                f"without any attention)."
            )


def ratios(budget: Budget, prices: Mapping[str, Price], columns: int) -> Callable[[Array], Array]:
    """mixture `[L, H, K]` -> expected cost over limit `[M]`, a number for each limit."""

    def expected_ratios(mixture: Array) -> Array:
        costs = []
        for key, limit in budget.limits:
            costs.append(prices[key].expected(mixture, columns) / limit)
        return jnp.stack(costs)

    return expected_ratios
