"""Does this installation find planted answers? Three short searches whose right result is known."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dartformer import api
from dartformer import config as configs
from dartformer.attention import to_text
from dartformer.cli import new as starter
from dartformer.tasks.planted import ANSWERS, Planted

KINDS = ("recall", "local", "mix")
"""A slow learner, which must not be judged too early; a quick one; and two heads that must divide
the work."""


def selfcheck(
    kinds: Sequence[str] | None = None,
    *,
    seed: int = 0,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Search each kind of planted task with the recommended settings and compare with the planted
    answer.

    Args:
      kinds: of `dartformer.tasks.planted`; `KINDS` if None.
      seed: of the searches.
      report: called with each kind's row when it is done.

    Returns:
      `{"passed", "seconds", "tasks": [{"kind", "planted", "found", "passed", "seconds"}, ...]}`.
    """
    rows = []
    for kind in KINDS if kinds is None else kinds:
        started = time.monotonic()
        config = configs.defaults("planted")
        configs.override(config, {**starter.planted(kind), "seed": seed, "search.observe": False})
        with tempfile.TemporaryDirectory() as folder:
            result = api.search(config, Path(folder) / "run")
            genotype = api.derive(result)
        names = [[to_text(a) for a in heads] for heads in genotype.layers]
        row = {
            "kind": kind,
            "planted": [list(heads) for heads in ANSWERS[kind]],
            "found": names,
            "passed": Planted(kind).found(names),
            "seconds": time.monotonic() - started,
        }
        rows.append(row)
        if report is not None:
            report(row)
    return {
        "passed": all(row["passed"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "tasks": rows,
    }
