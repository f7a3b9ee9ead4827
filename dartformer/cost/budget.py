"""Budgets: what a genotype may cost, at a stated batch, length and phase. Prices: what genotypes of
a space cost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.errors import InputError, unknown
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace

QUANTITIES = {
    "latency_ms": "measured milliseconds of a pass on this device",
    "parameters": "numbers that are trained",
    "flops": "floating-point operations that are executed",
    "memory_bytes": "intermediate arrays that are in memory at once",
    "kv_bytes": "keys, values and states kept while decoding",
}
"""What can be limited, of a whole model at the stated batch, length and phase."""

PHASES = ("forward", "train", "decode")
"""A forward pass; a forward and a backward pass; one more token after `length` tokens."""

PLACE = {
    "batch": 1,
    "length": 0,
    "phase": "forward",
    "floor": 0.9,
    "rate": 0.1,
    "table": "",
    "trust_table": False,
}
TEXTS = ("phase", "table")


@dataclass(frozen=True)
class Budget:
    """Limits on the cost of a genotype.

    Attributes:
      limits: quantity and limit, of `QUANTITIES`.
      batch, length, phase: where costs are meant; length 0 is that of the task.
      floor: share of a limit below which a search under this budget is not pressed to be cheaper.
      rate: of dual ascent: how much a multiplier grows in a step, for each share by which the limit
        is exceeded.
      table: file of measured latencies; "" for the one in the user's cache folder.
      trust_table: take it although another device or other versions measured it.
    """

    limits: tuple[tuple[str, float], ...]
    batch: int = 1
    length: int = 0
    phase: str = "forward"
    floor: float = 0.9
    rate: float = 0.1
    table: str = ""
    trust_table: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str = "search.budget") -> "Budget":
        """From `{"latency_ms": 12, "batch": 8}`; raises `InputError` for an unknown key or a value
        that cannot be."""
        for key, value in given.items():
            if key not in QUANTITIES and key not in PLACE:
                raise unknown(f"key of {where}", key, (*QUANTITIES, *PLACE))
            if key in TEXTS or (key == "length" and value == 0):
                continue
            if key == "trust_table":
                if not isinstance(value, bool):
                    raise InputError(f"{where}: trust_table must be true or false, got {value!r}.")
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not 0 < value < np.inf
            ):
                raise InputError(f"{where}: {key} must be a number above 0, got {value!r}.")
            if key in ("batch", "length") and int(value) != value:
                raise InputError(f"{where}: {key} must be a whole number, got {value!r}.")
        place: dict[str, Any] = {**PLACE, **{k: v for k, v in given.items() if k in PLACE}}
        if place["phase"] not in PHASES:
            raise unknown(f"phase of {where}", place["phase"], PHASES)
        if place["floor"] > 1:
            raise InputError(
                f"{where}: floor is a share of the limit, at most 1; got {place['floor']!r}."
            )
        limits = tuple((k, float(given[k])) for k in QUANTITIES if k in given)
        if not limits:
            raise InputError(f"{where} limits nothing: give one of {', '.join(QUANTITIES)}.")
        if place["phase"] == "decode" and "latency_ms" in given:
            raise InputError(
                f"{where}: latency_ms cannot be taken with phase = 'decode': nothing here runs token by "
                f"token, so that there is no latency to measure; limit kv_bytes or flops."
            )
        if place["phase"] == "decode" and "memory_bytes" in given:
            raise InputError(
                f"{where}: memory_bytes with phase = 'decode' is kv_bytes: limit that."
            )
        return cls(
            limits,
            int(place["batch"]),
            int(place["length"]),
            place["phase"],
            float(place["floor"]),
            float(place["rate"]),
            str(place["table"]),
            place["trust_table"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, that `of` reads."""
        return {
            **dict(self.limits),
            "batch": self.batch,
            "length": self.length,
            "phase": self.phase,
        }

    def __str__(self) -> str:
        limits = ", ".join(f"{key} = {number(value)}" for key, value in self.limits)
        return f"{limits} (batch {self.batch}{f', length {self.length}' if self.length else ''}, {self.phase})"


def parse(texts: Any, where: str = "--budget") -> dict[str, Any]:
    """`["latency_ms=12,batch=8", "parameters=1e5"]` as a mapping for `Budget.of`; raises
    `InputError`."""
    found: dict[str, Any] = {}
    for part in (p for text in texts for p in text.split(",") if p.strip()):
        key, equals, value = (s.strip() for s in part.partition("="))
        if not equals:
            raise InputError(f"{where} takes KEY=VALUE, as in latency_ms=12, got {part!r}.")
        if key not in QUANTITIES and key not in PLACE:
            raise unknown(f"key of {where}", key, (*QUANTITIES, *PLACE))
        if key == "trust_table":
            found[key] = value.lower() in ("true", "1", "yes")
            continue
        found[key] = value if key in TEXTS else read(value, f"{where}: {key}")
        if key in ("batch", "length") and found[key] == int(found[key]):
            found[key] = int(found[key])
    return found


def read(value: Any, name: str) -> float:
    """A finite number from a text; raises `InputError`."""
    try:
        made = float(value)
    except ValueError:
        made = np.nan
    if not np.isfinite(made):
        raise InputError(f"{name} must be a number above 0, got {value!r}.")
    return made


def number(value: float) -> str:
    """A cost in at most four digits, whole numbers with commas."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


@dataclass(frozen=True)
class Price:
    """What genotypes of a space cost in one quantity: `rest` and what the groups of heads of each
    layer add.

    Attributes:
      quantity: of `QUANTITIES`.
      rest: of a model without its attentions.
      groups: `[K, H + 1]`: n heads of candidate k in one layer; 0 for n = 0. Not linear in n: one
        head alone of a type still starts its whole kernel.
      largest: layers share it, so that the dearest counts (memory of a forward pass); else it is
        the sum over layers.
    """

    quantity: str
    rest: float
    groups: np.ndarray
    largest: bool = False

    def of(self, genotype: Genotype, space: SearchSpace) -> float:
        """The cost of a genotype."""
        counts = self.counts(space.choice(genotype))
        layers = self.groups[np.arange(len(self.groups)), counts].sum(-1)
        return float(self.rest + (layers.max() if self.largest else layers.sum()))

    def counts(self, choice: np.ndarray) -> np.ndarray:
        """`[L, K]` heads of each candidate, of choices `[L, H]`."""
        return (choice[..., None] == np.arange(len(self.groups))).sum(1)

    def expected(self, mixture: Array, tied: bool) -> Array:
        """Expected cost of the genotypes that are drawn from a mixture `[L, H, K]`, differentiable.

        Heads are drawn independently, so that the number of heads of a type is Poisson-binomial,
        and its distribution follows head by head: P(n) <- P(n) (1 - p_h) + P(n - 1) p_h. With
        `tied` heads, all of a layer are drawn as one."""
        groups = jnp.asarray(self.groups, mixture.dtype)
        if tied:
            layers = mixture[:, 0] @ groups[:, -1]
        else:
            odds = (
                jnp.zeros((*mixture.shape[::2], groups.shape[1]), mixture.dtype).at[..., 0].set(1)
            )
            for h in range(mixture.shape[1]):
                p = mixture[:, h, :, None]
                odds = odds * (1 - p) + jnp.pad(odds[..., :-1], ((0, 0), (0, 0), (1, 0))) * p
            layers = jnp.sum(odds * groups, (1, 2))
        return self.rest + (jnp.max(layers) if self.largest else jnp.sum(layers))

    def cheapest(self, space: SearchSpace) -> tuple[float, Genotype]:
        """The cheapest genotype of the space, with its cost."""
        return self._extreme(space, self.groups)

    def dearest(self, space: SearchSpace) -> tuple[float, Genotype]:
        """The dearest genotype of the space, with its cost."""
        return self._extreme(space, -self.groups)

    def _extreme(self, space: SearchSpace, groups: np.ndarray) -> tuple[float, Genotype]:
        if space.granularity != "head":
            found = space.genotype(
                np.full((space.layers, space.heads), int(np.argmin(groups[:, -1])))
            )
            return self.of(found, space), found
        heads = space.heads
        best: list[tuple[float, tuple[int, ...]]] = [
            (0.0 if n == 0 else np.inf, ()) for n in range(heads + 1)
        ]
        for row in groups:  # best[n]: of the candidates so far, n heads given out
            best = [
                min(
                    ((best[n - m][0] + float(row[m]), (*best[n - m][1], m)) for m in range(n + 1)),
                    key=lambda one: one[0],
                )
                for n in range(heads + 1)
            ]
        layer = np.repeat(np.arange(len(groups)), best[heads][1])
        found = space.genotype(np.broadcast_to(layer, (space.layers, heads)))
        return self.of(found, space), found

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "quantity": self.quantity,
            "rest": self.rest,
            "groups": self.groups.tolist(),
            "largest": self.largest,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Price":
        """The inverse of `to_dict`."""
        return cls(
            data["quantity"], data["rest"], np.array(data["groups"], np.float64), data["largest"]
        )


class BudgetTooSmall(InputError):
    """No genotype of the space is within the budget."""


def require_possible(budget: Budget, prices: Mapping[str, Price], space: SearchSpace) -> None:
    """Raise `BudgetTooSmall` for a limit below the cheapest genotype of the space, with what that
    costs."""
    for key, limit in budget.limits:
        least, genotype = prices[key].cheapest(space)
        if limit < least:
            raise BudgetTooSmall(
                f"the budget {key} = {number(limit)} is below the cheapest genotype of the space, "
                f"which costs {number(least)} ({genotype}; {number(prices[key].rest)} of it without "
                f"any attention)."
            )


def ratios(budget: Budget, prices: Mapping[str, Price], tied: bool) -> Callable[[Array], Array]:
    """mixture `[L, H, K]` -> expected cost over limit `[M]`, one number for each limit."""

    def of(mixture: Array) -> Array:
        return jnp.stack(
            [prices[key].expected(mixture, tied) / limit for key, limit in budget.limits]
        )

    return of
