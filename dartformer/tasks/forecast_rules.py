"""Rules that a forecaster would try first: the last season again, and linear autoregression."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dartformer.data.answers import Answers, labels_of
from dartformer.data.splits import Split, in_order
from dartformer.tasks.numeric_encoding import NumericEncoding
from dartformer.tasks.rules import (
    MOST_ROWS,
    TRIED_ROWS,
    Merit,
    Rule,
    can_fit,
    first,
    linear,
    sampled,
)

ORDERS = (4, 16, 64, 256)
"""Last steps that an autoregression reads; windows may have fewer."""

MOST_FEATURES = 1024
"""Numbers that it reads."""

PENALTIES = (0.01, 1.0, 100.0)
"""Settings of ridge regression. The numbers are scaled by channel."""


class Windows(NamedTuple):
    """Windows with their last step first.

    Attributes:
      steps: `[S, T, D]` scaled channels less those of the last step; 0 before the window begins.
      levels: `[S]` the scaled last value of the target.
      counts: `[S]` steps.
    """

    steps: np.ndarray
    levels: np.ndarray
    counts: np.ndarray


def of_forecasts(task: NumericEncoding, train: Split, valid: Split, merit: Merit) -> list[Rule]:
    """The value a season ago, and ridge regression on the last values.

    The season is chosen on train; the order and the penalty are chosen on valid. The task has
    learned its scale.
    """
    if not can_fit(labels_of(train).values):
        return []
    rules = [_autoregression(task, train, valid, merit)]
    seasonal = _seasonal(task, train)
    if seasonal is not None:
        rules.insert(0, seasonal)
    return rules


def _windows(task: NumericEncoding, split: Split) -> Windows:
    parts = list(_batches(task, split))
    return Windows(*map(np.concatenate, zip(*parts, strict=True)))


def _batches(task: NumericEncoding, split: Split) -> Iterator[Windows]:
    for batch in in_order(split):
        tokens = batch["tokens"]
        steps = tokens.reshape(len(tokens), -1, task.channels + 1)  # [B, T, D + 1]
        length = steps.shape[1]
        # Steps that do not exist are zeros, and so is the last one but for its level.
        exist = (steps != 0).any(-1)
        counts = length - exist[:, ::-1].argmax(1)
        counts = np.where(exist.any(1), counts, 1)
        places = counts[:, None] - 1 - np.arange(length)  # [B, T]
        backward = np.take_along_axis(steps, np.maximum(places, 0)[..., None], 1)
        backward = np.where(places[..., None] >= 0, backward, 0)
        yield Windows(backward[..., :-1], backward[:, 0, -1], counts)


# The last season.


def _seasonal(task: NumericEncoding, train: Split) -> Rule | None:
    """The value a season before the one that is forecast; None where windows are too short."""
    start = time.perf_counter()
    rows = first(train, MOST_ROWS)
    windows, labels = _windows(task, rows), labels_of(rows).values
    errors = {}
    for period in range(2, windows.steps.shape[1] + task.horizon_steps):
        reached = windows.counts > _back(task, period)
        # A season that few windows hold would be chosen for those few.
        if 2 * reached.sum() < len(reached):
            break
        errors[period] = ((_a_season_ago(task, windows, period) - labels) ** 2).mean()
    if not errors:
        return None
    period = min(errors, key=errors.__getitem__)

    def answers(split: Split) -> Answers:
        return Answers(_a_season_ago(task, _windows(task, split), period), labels_of(split))

    words = (
        f"the value {_back(task, period) + task.horizon_steps} steps before it (chosen on train)"
    )
    return Rule("seasonal_naive", words, answers, time.perf_counter() - start)


def _back(task: NumericEncoding, period: int) -> int:
    """How many steps before the last one the value is that a season later is forecast."""
    # Of a horizon beyond a season, several seasons ago.
    seasons = -(-task.horizon_steps // period)  # rounded up
    return seasons * period - task.horizon_steps


def _a_season_ago(task: NumericEncoding, windows: Windows, period: int) -> np.ndarray:
    """`[S]` changes from the last value, as labels are scaled; 0 where the window is too short."""
    target = task.target or 0
    change = windows.steps[:, _back(task, period), target]
    return change.astype(np.float64) * task.scale.deviation[target] / task.value(1.0)


# Autoregression.


def _autoregression(task: NumericEncoding, train: Split, valid: Split, merit: Merit) -> Rule:
    start = time.perf_counter()
    tried, judges = first(train, TRIED_ROWS), first(valid, TRIED_ROWS)
    fitting, judging = _windows(task, tried), _windows(task, judges)
    labels, judged = labels_of(tried).values, labels_of(judges)
    fitted = []
    for order in _orders(fitting):
        for penalty in PENALTIES:
            model = linear(_last(fitting, order), labels, 0, penalty)
            value = merit(Answers(model.outputs(_last(judging, order)), judged))
            # Of equals the shorter one with the larger penalty.
            fitted.append((value, -order, penalty))
    _, negative, penalty = max(fitted)
    order = -negative
    rows = first(train, MOST_ROWS)
    model = linear(_last(_windows(task, rows), order), labels_of(rows).values, 0, penalty)

    def answers(split: Split) -> Answers:
        outputs = model.outputs(_last(_windows(task, split), order))
        return Answers(outputs, labels_of(split))

    words = f"ridge regression (penalty {penalty:g}) on the last {order} steps"
    words += sampled(len(rows), len(train))
    return Rule("autoregression", words, answers, time.perf_counter() - start)


def _orders(windows: Windows) -> list[int]:
    """The orders that fit into windows and memory."""
    _, length, channels = windows.steps.shape
    most = max(1, min(length, MOST_FEATURES // channels))
    return sorted({min(order, most) for order in ORDERS})


def _last(windows: Windows, order: int) -> np.ndarray:
    """`[S, F]` the last steps, less the last one, and its level."""
    steps = windows.steps[:, 1:order].reshape(len(windows.steps), -1)
    # In float64: neighbouring steps are so alike that float32 is too coarse to tell them apart.
    return np.concatenate([steps, windows.levels[:, None]], axis=1, dtype=np.float64)
