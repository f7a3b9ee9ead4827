"""Does an attention keep the protocol? Every property is tried on it, and every failure is
named."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax

from dartformer.attention.base import Attention
from dartformer.attention.conformance.case import Case, Failed, NotApplicable
from dartformer.attention.conformance.properties import PROPERTIES, text_round_trip
from dartformer.errors import InputError

PASSED, FAILED, NOT_APPLICABLE = "passed", "FAILED", "not applicable"


@dataclass(frozen=True)
class Result:
    """One property: its name, "passed", "FAILED" or "not applicable", and the numbers or the
    reason."""

    name: str
    status: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name:28} {self.status:15} {self.detail}"


@dataclass(frozen=True)
class Report:
    """What `check` found, one `Result` for every property, none left out."""

    attention: str
    results: tuple[Result, ...]

    @property
    def failed(self) -> tuple[Result, ...]:
        """The properties that do not hold."""
        return tuple(r for r in self.results if r.status == FAILED)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed

    def __getitem__(self, name: str) -> Result:
        return next(r for r in self.results if r.name == name)

    def __str__(self) -> str:
        return "\n".join([self.attention, *(f"  {r}" for r in self.results)])


class ConformanceError(AssertionError):
    """An attention does not keep the protocol: the message lists every failed property with its
    numbers."""

    def __init__(self, report: Report) -> None:
        self.report = report
        lines = "\n".join(f"  {r.name}: {r.detail}" for r in report.failed)
        super().__init__(
            f"{report.attention} fails {len(report.failed)} of {len(report.results)} properties:\n{lines}"
        )


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
    """Try every property of `check_properties.PROPERTIES` on `attention`, on the CPU and mostly in
    float64.

    Args:
      attention: any object that means to keep the protocol, a user's own type too.
      seed: of the inputs, parameters and keys.
      heads, head_dim, length: sizes; at least 2 heads, and 24 tokens, so that there is room for
        padding.
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
    with jax.default_device(jax.local_devices(backend="cpu")[0]), jax.enable_x64(True):
        case = Case(attention, seed, heads, head_dim, length, tolerance)
        for prop in PROPERTIES:
            try:
                detail = text_round_trip(case, table) if prop is text_round_trip else prop(case)
                status = PASSED
            except Failed as failure:
                status, detail = FAILED, str(failure)
            except NotApplicable as reason:
                status, detail = NOT_APPLICABLE, str(reason)
            except (
                Exception
            ) as error:  # a user's attention may raise anything, and the other properties still run
                first_line = next(iter(str(error).strip().splitlines()), "no message")
                status, detail = FAILED, f"raised {type(error).__name__}: {first_line}"
            results.append(Result(prop.__name__, status, detail))
    report = Report(repr(attention), tuple(results))
    if raise_ and not report.ok:
        raise ConformanceError(report)
    return report
