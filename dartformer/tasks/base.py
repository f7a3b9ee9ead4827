"""What a task is: where examples come from, how they are split, and what guessing scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from dartformer.data.large import drawn, is_large
from dartformer.data.splits import (
    Batch,
    Endless,
    Split,
    Subset,
    divided,
    in_order,
    linked,
    permutation,
    row_digests,
    row_groups,
)
from dartformer.errors import InputError
from dartformer.tasks.rules import Merit, Rule

PARTS = ("weights", "alphas", "valid", "test")
"""The four disjoint parts: two halves of train for the two levels of a search, one to choose on,
one to report."""

VALID_FRACTION = 0.1
"""How much of train becomes the valid part where the data has no valid split of its own."""


@dataclass(frozen=True)
class TaskTraits:
    """What is known of a task without its data: a one-line summary, its paper, its metric.

    A task that compares two documents has an attribute `inputs` = 2, one whose tokens are F numbers
    each has `features` = F; a task that predicts numbers has `value`, from an output to a number.

    Attributes:
      summary: one line.
      paper: where the task comes from.
      metric: a name of `dartformer.training.metric`.
      causal: whether a token's output may depend on earlier tokens only.
      per_token: every token has a label (or a negative number where it has none), so that nothing
        is pooled.
      decoded: the labels of all tokens must be read from the last token's vector.
      generated: the task draws its examples, as many as its options say.
    """

    summary: str
    paper: str
    metric: str = "accuracy"
    causal: bool = False
    per_token: bool = False
    decoded: bool = False
    generated: bool = False


class Unlabelled(NamedTuple):
    """A row of a table.

    Attributes:
      where: names the row.
      document: what a loaded model takes: a text, two texts, or tokens that are numbers.
    """

    where: str
    document: Any


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass whose fields are the task's options; it holds no data.

    Examples are at most `length` tokens long.
    """

    traits: ClassVar[TaskTraits]

    @property
    def vocabulary(self) -> int:
        """The number of token ids; 0 is padding."""
        ...

    @property
    def classes(self) -> int:
        """The number of labels."""
        ...

    @property
    def length(self) -> int:
        """Tokens of the longest possible example."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a raw text.

        Raises `InputError` for an unknown symbol or a length beyond `length`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without padding."""
        ...

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "test" and, where the data has one, "valid"; prepared on first use."""
        ...

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """Accuracies in [0, 1] of simple rules, fitted on `train` and scored on `split`.

        `majority` is added for every task."""
        ...


@runtime_checkable
class Checks(Protocol):
    """A task whose data may be missing or wrong."""

    def check(self, data_dir: str | None = None) -> None:
        """Raise `InputError` for faults of the data that show before anything is prepared."""
        ...


@runtime_checkable
class Learns(Protocol):
    """A task that learns something from its training part, such as a tokenizer.

    It also counts what it met while preparing the data."""

    learned: str
    """JSON of what was learned; empty before `fitted`."""

    def fitted(self, data_dir: str | None = None) -> Self:
        """The task with what it learned; the data are prepared on first use."""
        ...

    def facts(self, data_dir: str | None = None) -> dict[str, Any]:
        """What was counted while preparing, by split."""
        ...


@runtime_checkable
class EncodesMany(Protocol):
    """A task that encodes many texts faster together than one by one."""

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """What `encode` gives for each text; it raises what `encode` raises for any of them."""
        ...


@runtime_checkable
class ReadsTables(Protocol):
    """A task on tables of the user's, which a loaded model of it can answer."""

    def unlabelled(self, path: Path) -> Iterator[Unlabelled]:
        """What the model reads of each row of a table, without its label.

        Where the task has learned something, it has learned it. Raises `InputError`, with the row,
        for one that cannot be read."""
        ...


@runtime_checkable
class Ruled(Protocol):
    """A task whose examples plain models can be fitted to: the first thing a user would try."""

    def plain_rules(self, train: Split, valid: Split, merit: Merit) -> Sequence[Rule]:
        """Rules of `dartformer.tasks.rules`, fitted on `train` and chosen on `valid` by `merit`.

        Where the task learns something, it has learned it."""
        ...


def parts(task: Task, data_dir: str | None = None, seed: int = 0) -> dict[str, Split]:
    """The four disjoint `PARTS`, and under "train" the union of "weights" and "alphas".

    Which examples of train fall in which part depends on `seed`, the number of examples and which are
    repeated: those of which the model reads the same tokens are in the same part. So are those of a
    group, unless a half would have less than a quarter of the examples. Where the data has no valid
    split, `VALID_FRACTION` of train becomes "valid" before the remainder is halved; the test split is
    never used for anything but "test". An `Endless` train is halved as it is generated. Above
    `shuffle.LARGE` examples, and without groups, each is drawn into a part by its tokens, so the
    sizes of the parts are approximate.

    Raises `InputError` where train is too small for every part to have an example, or is endless and
    there is no valid split."""
    return parts_of(task.load(data_dir), seed)


def parts_of(splits: Mapping[str, Split], seed: int = 0) -> dict[str, Split]:
    """`parts` of splits that are loaded."""
    splits = dict(splits)
    train = splits["train"]
    if isinstance(train, Endless):
        if "valid" not in splits:
            raise InputError("a task whose train split is endless needs a valid split.")
        splits["weights"], splits["alphas"] = train.halves()
        return splits
    if is_large(train):
        return _of_large(splits, seed)
    order = permutation(len(train), seed)
    digests = row_digests(train)
    if "valid" not in splits:
        count = max(1, round(VALID_FRACTION * len(train)))
        valid, order = divided(order, digests[order], count)
        splits["valid"] = Subset(train, valid)
    # Disjoint: alphas that learned on the weights' examples would reward overfitting.
    weights, alphas = _halves(order, digests, row_groups(train))
    if not len(weights) or not len(alphas):
        different = len(np.unique(digests))
        raise InputError(f"{_too_few(train)} {different} of them differ.")
    splits["weights"] = Subset(train, weights)
    splits["alphas"] = Subset(train, alphas)
    splits["train"] = Subset(train, order)
    return splits


def _of_large(splits: dict[str, Split], seed: int) -> dict[str, Split]:
    """The parts of a train split of which no array of all rows is sorted."""
    train = splits["train"]
    shares = [0.0, 0.5, 0.5]
    if "valid" not in splits:
        shares = [VALID_FRACTION, (1 - VALID_FRACTION) / 2, (1 - VALID_FRACTION) / 2]
    valid, weights, alphas = drawn(train, shares, seed)
    if not len(weights) or not len(alphas) or (shares[0] and not len(valid)):
        raise InputError(f"{_too_few(train)} Nearly all of them are equal.")
    if shares[0]:
        splits["valid"] = Subset(train, valid)
        splits["train"] = Subset(train, np.sort(np.concatenate([weights, alphas])))
    splits["weights"], splits["alphas"] = Subset(train, weights), Subset(train, alphas)
    return splits


def _too_few(train: Split) -> str:
    return (
        f"train has {len(train)} examples: too few for the parts {', '.join(PARTS[:3])}, which "
        f"share none."
    )


def _halves(
    order: np.ndarray, digests: np.ndarray, groups: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The two halves of the rows in `order`."""
    count = (len(order) + 1) // 2
    if groups is not None:
        halves = divided(order, linked(digests[order], groups[order]), count)
        if min(map(len, halves)) >= len(order) / 4:
            return halves
        # Of few or large groups no halves can be made: what is alike is apart at least.
    return divided(order, digests[order], count)


def majority(train: Split, split: Split) -> float:
    """Accuracy in [0, 1], on `split`, of always predicting the most frequent label of `train`.

    Negative labels do not count. Of equally frequent labels the smallest is predicted. NaN, which
    means undefined, where `split` has no label.
    """
    # Batch by batch: neither part may fit into memory.
    counts = np.zeros(1, np.int64)
    for batch in in_order(train):
        fresh = np.bincount(_counting(batch), minlength=len(counts))
        fresh[: len(counts)] += counts
        counts = fresh
    right = total = 0
    for batch in in_order(split):
        labels = _counting(batch)
        right += int((labels == counts.argmax()).sum())
        total += len(labels)
    if not total:
        return float("nan")
    return right / total


def _counting(batch: Batch) -> np.ndarray:
    return batch["label"][batch["label"] >= 0]
