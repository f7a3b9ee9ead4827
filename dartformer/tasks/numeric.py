"""Tasks on sequences of numbers, prepared in memory."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np

from dartformer.data.splits import Split, in_order
from dartformer.errors import InputError
from dartformer.tasks import rules, simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.forecast import forecasting
from dartformer.tasks.forecast_rules import of_forecasts
from dartformer.tasks.numeric_encoding import NumericEncoding
from dartformer.tasks.numeric_preparation import NumericSource, Prepared, by_rows, table_of
from dartformer.tasks.preparation import changed


class TraitsByKind:
    """The traits of a task, which depend on its `kind`; on the class, those of classification."""

    def __init__(self, summary: str, paper: str):
        self.summary, self.paper = summary, paper

    def __get__(self, task: "NumericTask | None", owner: type) -> TaskTraits:
        metric = "accuracy"
        if task is not None and task.kind != "classification":
            metric = "r2"
        return TaskTraits(summary=self.summary, paper=self.paper, metric=metric)


@dataclass(frozen=True, kw_only=True)
class NumericTask(NumericEncoding):
    """A task on sequences of numbers; a subclass says where the rows of its splits come from."""

    @abstractmethod
    def sources(self, data_dir: str | None) -> dict[str, NumericSource]:
        """The source of "train" and, if the data have them, "valid" and "test"."""

    def check(self, data_dir: str | None = None) -> None:
        """Raise `InputError` where the data are missing, or their first row cannot be read."""
        for name, source in self.sources(data_dir).items():
            if next(iter(source.rows()), None) is None:
                raise InputError(f"{self.title}: {name} has no rows.")

    def fitted(self, data_dir: str | None = None) -> Self:
        """This task with the scale of its training part."""
        return replace(self, learned=self.prepared(data_dir).learned)

    def facts(self, data_dir: str | None = None) -> dict[str, Any]:
        """What was counted while preparing, by split."""
        return self.prepared(data_dir).facts

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", in memory."""
        return self.prepared(data_dir).splits

    def prepared(self, data_dir: str | None = None) -> Prepared:
        """What is made of the data, once in a process while they do not change."""
        sources = self.sources(data_dir)
        identity = [(name, source.identity) for name, source in sorted(sources.items())]
        bare = replace(self, learned="")
        return _prepared(bare, data_dir, json.dumps(identity))

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """Simple rules, fitted on `train` and scored on `split`.

        `nearest_mean`: the class whose mean sequence is nearest. For numbers `mean`; for forecasts
        `last_value`, which says that nothing changes."""
        if self.kind == "classification":
            return {"nearest_mean": nearest_mean(train, split, self.classes)}
        scores = {"mean": simple.mean_of_train(train, split)}
        if self.kind == "forecasting":
            scores["last_value"] = no_change(split)
        return scores

    def plain_rules(self, train: Split, valid: Split, merit: rules.Merit) -> Sequence[rules.Rule]:
        """A linear model and boosted trees; of forecasts, the last season and autoregression, too."""
        fitted: list[rules.Rule] = []
        if self.kind == "forecasting":
            fitted = of_forecasts(self, train, valid, merit)
        classes = 0
        if self.kind == "classification":
            classes = self.classes
        return [*fitted, *rules.of_numbers(train, valid, classes, merit)]


def nearest_mean(train: Split, split: Split, classes: int) -> float:
    """Accuracy on `split` of the class whose mean sequence, of `train`, is nearest."""
    total: np.ndarray | float = 0.0
    count = np.zeros(classes)
    for batch in in_order(train):
        one_hot = np.eye(classes)[batch["label"]]
        total = total + one_hot.T @ batch["tokens"].reshape(len(one_hot), -1)
        count += one_hot.sum(0)
    means = np.asarray(total) / np.maximum(count, 1)[:, None]
    squares = (means**2).sum(1)  # [classes]
    right = 0
    for batch in in_order(split):
        flat = batch["tokens"].reshape(len(batch["label"]), -1)
        # |x - m|^2 without |x|^2, which all classes share, and with its sign changed.
        nearness = 2 * flat @ means.T - squares
        nearness[:, count == 0] = -np.inf  # a class without a sequence has no mean
        right += int((nearness.argmax(1) == batch["label"]).sum())
    return right / len(split)


def no_change(split: Split) -> float:
    """Share of variance that "nothing changes" explains; NaN where all changes are the same."""
    labels = np.concatenate([batch["label"] for batch in in_order(split)]).astype(np.float64)
    if labels.min() == labels.max():
        return float("nan")
    return float(1 - (labels**2).mean() / labels.var())


@lru_cache(maxsize=2)
def _prepared(task: NumericTask, data_dir: str | None, identity: str) -> Prepared:
    """`NumericTask.prepared`; `identity` changes with the data."""
    sources = task.sources(data_dir)
    tables = {name: table_of(task, name, source.rows()) for name, source in sources.items()}
    _require_unchanged(task, data_dir, identity)
    if task.kind == "forecasting":
        return forecasting(task, tables)
    return by_rows(task, tables)


def _require_unchanged(task: NumericTask, data_dir: str | None, identity: str) -> None:
    sources = task.sources(data_dir)
    now = [(name, source.identity) for name, source in sorted(sources.items())]
    if json.dumps(now) != identity:
        raise changed(task.title)
