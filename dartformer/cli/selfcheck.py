"""The verb selfcheck: search planted tasks whose best attention is known."""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dartformer import api
from dartformer.cli.grammar import FAILED_CHECK
from dartformer.cli.new import space_file
from dartformer.cli.output import print_json
from dartformer.config import load_config
from dartformer.machine import compile_cache
from dartformer.machine.printable import printable
from dartformer.tasks.planted import ANSWERS, Planted

KINDS = ("recall", "local", "mix")
"""A task that is learned slowly, which must not be judged too early; one that is learned quickly;
and one whose work two heads must divide."""


@dataclass(frozen=True)
class Check:
    """One planted task: the planted attention of each layer's heads, and the derived ones."""

    kind: str
    planted: list[list[str]]
    found: list[list[str]]
    passed: bool
    seconds: float

    def __str__(self) -> str:
        if self.passed:
            return f"{self.kind:8} found {_names(self.planted)} ({self.seconds:.0f} s)"
        return (
            f"{self.kind:8} MISSED {_names(self.planted)}: the search chose {_names(self.found)} "
            f"({self.seconds:.0f} s)"
        )


@dataclass(frozen=True)
class SelfCheck:
    """All planted tasks that were searched."""

    passed: bool
    seconds: float
    tasks: list[Check]


def command(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Run the self-check and print it."""
    compile_cache.use()
    if arguments.json:
        result = selfcheck()
        print_json(asdict(result))
    else:
        result = selfcheck(report=lambda check: print(printable(str(check)), flush=True))
        outcome = {True: "passed", False: "FAILED"}[result.passed]
        print(f"{outcome} in {result.seconds:.0f} s")
    if not result.passed:
        return FAILED_CHECK
    return 0


def selfcheck(
    kinds: Sequence[str] | None = None,
    *,
    seed: int = 0,
    report: Callable[[Check], None] | None = None,
) -> SelfCheck:
    """Search planted tasks with the recommended settings and compare with the planted answers.

    Args:
      kinds: of `dartformer.tasks.planted`; `KINDS` if None.
      seed: of the searches.
      report: called with each task's check as soon as it is done.
    """
    if kinds is None:
        kinds = KINDS
    checks = []
    seconds = 0.0
    for kind in kinds:
        check = _check(kind, seed)
        checks.append(check)
        seconds += check.seconds
        if report is not None:
            report(check)
    return SelfCheck(
        passed=all(check.passed for check in checks),
        seconds=seconds,
        tasks=checks,
    )


def _check(kind: str, seed: int) -> Check:
    """Search one planted task and compare its derived attentions with the planted ones."""
    started = time.monotonic()
    file = space_file("planted", kind=kind)
    # Observing measures every branch, which costs time and has no part in the answer.
    config = load_config(file, {"seed": seed, "search.observe": False})
    with tempfile.TemporaryDirectory() as folder:
        # In a folder that is removed: a check leaves nothing behind.
        genotype = api.derive(api.search(config, Path(folder) / "run"))
    derived = genotype.texts()
    return Check(
        kind=kind,
        planted=list(map(list, ANSWERS[kind])),
        found=derived,
        passed=Planted(kind).is_answer(derived),
        seconds=time.monotonic() - started,
    )


def _names(layers: Sequence[Sequence[str]]) -> str:
    """The distinct attentions of each layer, in words."""
    words = []
    for heads in layers:
        distinct = dict.fromkeys(heads)  # in the order of the heads
        words.append(" and ".join(distinct))
    return ", then ".join(words)
