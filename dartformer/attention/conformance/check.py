"""Does an attention keep the protocol? All properties are tried on it, and all failures named."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax

from dartformer.attention.base import Attention
from dartformer.attention.conformance.case import Case, Failed, NotApplicable
from dartformer.attention.conformance.properties import PROPERTIES, text_round_trip
from dartformer.errors import InputError

PASSED, FAILED, NOT_APPLICABLE = "passed", "FAILED", "not applicable"


@dataclass(frozen=True)
class Result:
    """What one property says of an attention."""

    name: str
    status: str
    """`PASSED`, `FAILED` or `NOT_APPLICABLE`."""
    detail: str
    """The numbers, or the reason."""

    def __str__(self) -> str:
        return f"{self.name:28} {self.status:15} {self.detail}"


@dataclass(frozen=True)
class Report:
    """The outcome of `check`: one `Result` for every property."""

    attention: str
    results: tuple[Result, ...]

    @property
    def failed(self) -> tuple[Result, ...]:
        """The properties that do not hold."""
        return tuple(result for result in self.results if result.status == FAILED)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    def __getitem__(self, name: str) -> Result:
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def __str__(self) -> str:
        lines = [self.attention]
        for result in self.results:
            lines.append(f"  {result}")
        return "\n".join(lines)


class ConformanceError(AssertionError):
    """An attention does not keep the protocol; the message lists every failure with its numbers."""

    def __init__(self, report: Report) -> None:
        self.report = report
        failed, total = len(report.failed), len(report.results)
        lines = [f"{report.attention} fails {failed} of {total} properties:"]
        for result in report.failed:
            lines.append(f"  {result.name}: {result.detail}")
        super().__init__("\n".join(lines))


def check(
    attention: Attention,
    *,
    seed: int = 0,
    heads: int = 3,
    head_dim: int = 8,
    length: int = 53,
    tolerance: float = 1e-6,
    raise_: bool = True,
    table: Mapping[str, type] | None = None,
) -> Report:
    """Try every property of `properties.PROPERTIES` on `attention`.

    On the CPU, and mostly in float64.

    Args:
      attention: any object that means to keep the protocol, a user's own type too.
      seed: of the inputs, parameters and keys.
      heads, head_dim, length: sizes; at least 2 heads, and 24 tokens to leave room for padding.
      tolerance: relative, between the output and its definition. The default leaves room for
        float32 inside; an attention that stays in float64 keeps 1e-9.
      raise_: raise if anything fails; otherwise only report.
      table: names and classes, to try the text form.

    Raises:
      ConformanceError: some property fails, and `raise_`.
      InputError: sizes too small.
    """
    if heads < 2 or length < 24:
        raise InputError(
            f"check needs at least 2 heads and 24 tokens, got heads={heads}, length={length}."
        )
    results = []
    cpu = jax.local_devices(backend="cpu")[0]
    with jax.default_device(cpu), jax.enable_x64(True):
        case = Case(attention, seed, heads, head_dim, length, tolerance)
        for prop in PROPERTIES:
            if prop is text_round_trip:
                prop = functools.partial(text_round_trip, table=table)
            results.append(_result(prop, case))
    report = Report(repr(attention), tuple(results))
    if raise_ and not report.ok:
        raise ConformanceError(report)
    return report


def _result(prop: Callable[[Case], str], case: Case) -> Result:
    """What a property says of `case`."""
    name = getattr(prop, "func", prop).__name__
    try:
        return Result(name, PASSED, prop(case))
    except Failed as failure:
        return Result(name, FAILED, str(failure))
    except NotApplicable as reason:
        return Result(name, NOT_APPLICABLE, str(reason))
    except Exception as error:
        # A user's attention may raise anything, and the other properties still run.
        lines = str(error).strip().splitlines() or ["no message"]
        return Result(name, FAILED, f"raised {type(error).__name__}: {lines[0]}")
