"""Scores: how every example of test was answered by every model, kept so that runs can be compared
pair by pair."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from dartformer.data.splits import Split, in_order
from dartformer.machine.workdir import read_json, write_json
from dartformer.stages.study import Run

FILE = "test_scores.json"


def write(run: Run, each: dict[str, list[dict[str, np.ndarray]]]) -> None:
    """Write `test_scores.json`.

    Args:
      run: whose test part was read.
      each: for every model, for every seed, what `Evaluator.per_example` gives.
    """
    score = "accuracy" if run.metric.name == "accuracy" else "loss"
    write_json(
        run.file(FILE),
        {
            "score": score,
            "higher": score == "accuracy",
            "examples": len(run.parts["test"]),
            "fingerprint": fingerprint(run.parts["test"]),
            "seeds": list(run.config.retrain.seeds),
            "models": {name: [_pack(one[score]) for one in seeds] for name, seeds in each.items()},
        },
    )


def read(folder: Path) -> dict[str, Any] | None:
    """What `write` wrote, each model an array `[S, n]` of seeds and examples; None if it is not
    there."""
    if not (folder / FILE).exists():
        return None
    data = read_json(folder / FILE)
    return {
        **data,
        "models": {
            name: np.array([_unpack(one) for one in seeds])
            for name, seeds in data["models"].items()
        },
    }


def fingerprint(split: Split) -> str:
    """Of the examples in their order: two runs whose fingerprints are equal were tested on the same
    ones."""
    found = hashlib.sha256()
    for batch in in_order(split):
        for name in ("tokens", "valid", "label"):
            found.update(np.ascontiguousarray(batch[name]).tobytes())
    return found.hexdigest()[:16]


def _pack(scores: np.ndarray) -> str | list[float]:
    """A text of 0 and 1 where there is nothing else, or numbers of six digits."""
    if np.isin(scores, (0, 1)).all():
        return "".join("01"[int(one)] for one in scores)
    return [float(f"{one:.6g}") for one in scores]


def _unpack(scores: str | list[float]) -> np.ndarray:
    return np.array(
        [one == "1" for one in scores] if isinstance(scores, str) else scores, np.float64
    )
