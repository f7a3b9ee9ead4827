"""What the benchmarks share: JSON lines, and things compared that take turns."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import dartformer


def say(**numbers: Any) -> dict[str, Any]:
    """Print one JSON line, and give it back; floating-point numbers to five digits."""
    row = _rounded(numbers)
    print(json.dumps(row), flush=True)
    return row


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """Print what the figures were measured on."""
    return say(name="machine", cores=os.cpu_count(), system=platform.machine(), device=jax.devices()[0].device_kind,
               jax=jax.__version__, dartformer=dartformer.__version__)


def ratios(parts: Mapping[str, Callable[[], Any]], seconds: float, least: int = 5) -> dict[str, list[float]]:
    """Seconds of every part in each of several rounds; the parts take turns.

    Args:
      parts: by name; one that gives a number has measured itself, as what runs in another process must.
      seconds: for each of the parts.
      least: rounds, however long they take.
    """
    for part in parts.values():
        part()
    times: dict[str, list[float]] = {name: [] for name in parts}
    until = time.perf_counter() + seconds * len(parts)
    while time.perf_counter() < until or len(next(iter(times.values()))) < least:
        for name, part in parts.items():
            started = time.perf_counter()
            measured = part()
            spent = time.perf_counter() - started
            times[name].append(measured if isinstance(measured, float) else spent)
    return times


def median_ratio(times: Mapping[str, list[float]], over: str, under: str) -> float:
    """The median of the rounds' ratios: a machine whose speed drifts changes both sides alike."""
    return float(np.median(np.array(times[over]) / np.array(times[under])))
