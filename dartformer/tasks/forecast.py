"""Forecasts: every window of a series is an example, and its label is what comes next."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dartformer.data.rows import PARTS
from dartformer.data.sequences import Scale, Sequences
from dartformer.errors import InputError
from dartformer.tasks.numeric_encoding import NumericEncoding
from dartformer.tasks.numeric_preparation import Prepared, Table, report, state_of

FEWEST_STEPS = 2
"""Steps from which a forecast is made, at least."""


class Windows(NamedTuple):
    """The steps that forecasts are made from, and what they are of.

    Attributes:
      source: the name of their table.
      starts: of the steps, in the values of the table, `[S]`.
      counts: of the steps, `[S]`.
      places: of the values that are forecast, `[S]`.
    """

    source: str
    starts: np.ndarray
    counts: np.ndarray
    places: np.ndarray


def forecasting(task: NumericEncoding, tables: Mapping[str, Table]) -> Prepared:
    """Splits of windows.

    Parts that the data lack are the end of every series of train: the last values are test, those
    before them valid."""
    fractions = {}
    for part, fraction in (("test", task.test_fraction), ("valid", task.valid_fraction)):
        if part not in tables:
            fractions[part] = fraction
    windows = windows_of(task, "train", tables["train"], fractions)
    for part, table in tables.items():
        if part != "train":
            windows[part] = windows_of(task, part, table, {})["train"]
    for part, of_part in windows.items():
        if not len(of_part.places):
            raise InputError(
                f"{task.title}: its series are too short for the part {part}. Use longer series, "
                f"or less task.length."
            )
    train = tables["train"]
    scale = Scale.of(train.values[_reached(train, windows["train"])])
    # Not centred: the label 0 is "nothing changes".
    deviation = float(changes(task, train, windows["train"]).std()) or 1.0
    splits, facts = {}, {}
    most = task.length * task.patch_steps
    for part in PARTS:
        source, starts, counts, places = windows[part]
        table = tables[source]
        labels = (changes(task, table, windows[part]) / deviation).astype(np.float32)
        splits[part] = Sequences(table.values, starts, counts, labels, scale, task.patches)
        odd = {}
        if source == part:
            odd = table.tally.positive()
        facts[part] = {
            "rows": len(places),
            "left out or odd": odd,
            "also in a later split": 0,
            "repeated in the source": 0,
            "labels": {},
            "cropped": 0,
            "padded share": round(1 - float(counts.mean()) / most, 4),
        }
        report(task, part, facts[part])
    return Prepared(splits, state_of(scale, {"mean": 0.0, "scale": deviation}), facts)


def windows_of(
    task: NumericEncoding, source: str, table: Table, fractions: Mapping[str, float]
) -> dict[str, Windows]:
    """The windows of all series of a table: of train, and of the parts that are cut off its end."""
    most, horizon = task.length * task.patch_steps, task.horizon_steps
    places: dict[str, list[np.ndarray]] = {part: [] for part in ("train", *fractions)}
    firsts: dict[str, list[np.ndarray]] = {part: [] for part in ("train", *fractions)}
    for start, count in zip(table.starts.tolist(), table.counts.tolist(), strict=True):
        # A quarter of a short series stands before its first forecast.
        least = min(most, max(FEWEST_STEPS, count // 4))
        targets = np.arange(start + least - 1 + horizon, start + count)
        end = len(targets)
        for part, fraction in fractions.items():
            drawn = max(1, round(fraction * len(targets)))
            places[part].append(targets[max(0, end - drawn) : end])
            end = max(0, end - drawn)
        places["train"].append(targets[:end])
        for part in places:
            firsts[part].append(np.full(len(places[part][-1]), start))
    target = task.target or 0
    windows = {}
    for part in places:
        place, first = np.concatenate(places[part]), np.concatenate(firsts[part])
        last = place - horizon
        # A value that is missing cannot be forecast, nor a change from one.
        present = np.isfinite(table.values[place, target] + table.values[last, target])
        place, first, last = place[present], first[present], last[present]
        starts = np.maximum(first, last + 1 - most)
        windows[part] = Windows(source, starts, last + 1 - starts, place)
    return windows


def changes(task: NumericEncoding, table: Table, windows: Windows) -> np.ndarray:
    """How far the target is from its last value in each window, `[S]`."""
    target = table.values[:, task.target or 0].astype(np.float64)
    return target[windows.places] - target[windows.places - task.horizon_steps]


def _reached(table: Table, windows: Windows) -> np.ndarray:
    """The steps that a window, or its forecast, reaches, bool `[T]`."""
    edges = np.zeros(len(table.values) + 1, np.int64)
    np.add.at(edges, windows.starts, 1)
    np.add.at(edges, windows.places + 1, -1)
    return np.cumsum(edges)[:-1] > 0
