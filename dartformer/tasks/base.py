"""What a task is: where examples come from, how they are split and batched, and what guessing
scores."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import grain
import numpy as np

from dartformer.errors import InputError

Batch = dict[str, np.ndarray]
"""`tokens` [B, N] int32, 0 where padded; `valid` [B, N] bool, from lengths and never from token
ids; `label` [B] int32 (or [B, N] where every token has one; a negative label does not count).

Of two documents tokens and valid are [B, 2, N]; tokens that are F numbers are [B, N, F] float32;
labels that are numbers are float32."""

PARTS = ("weights", "alphas", "valid", "test")
"""The four disjoint parts: two halves of train for the two levels of a search, one to choose on,
one to report."""

VALID_FRACTION = 0.1
"""How much of train becomes the valid part where the data has no valid split of its own."""


@dataclass(frozen=True)
class TaskTraits:
    """What is known of a task without its data: one line, its paper, what is scored.

    `per_token`: every token has a label (or a negative number where it has none), so that nothing
    is pooled."""

    summary: str
    paper: str
    metric: str = "accuracy"
    causal: bool = False
    per_token: bool = False
    """`metric` is a name of `dartformer.training.metric`. A task that compares two documents has an
    attribute `inputs` = 2, one whose tokens are F numbers each has `features` = F; what predicts
    numbers has `value`, from an output to one."""


@runtime_checkable
class Split(Protocol):
    """Examples by index, many at a time."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> Batch:
        """The examples at `indices` [B], padded to the task's length, in arrays of their own."""
        ...


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass whose fields are the task's options; it holds no data.

    Examples are at most `length` tokens long.
    """

    traits: ClassVar[TaskTraits]

    @property
    def vocabulary(self) -> int:
        """How many token ids there are; 0 is padding."""
        ...

    @property
    def classes(self) -> int:
        """How many labels there are."""
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
        """Token ids of a raw text; `InputError` names an unknown symbol or a length beyond
        `length`."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, padding left out."""
        ...

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "test" and, where the data has one, "valid"; prepared on first use."""
        ...

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """Accuracies in [0, 1], beside `majority`, of rules fitted on `train` and scored on
        `split`."""
        ...


@runtime_checkable
class Checks(Protocol):
    """A task whose data may be missing or wrong."""

    def check(self, data_dir: str | None = None) -> None:
        """Raise `InputError` for what is wrong with the data at first sight, before anything is
        prepared."""
        ...


@runtime_checkable
class Learns(Protocol):
    """A task that also learns something from its training part, such as a tokenizer, and knows its
    data's oddities."""

    learned: str
    """JSON of what was learned; empty before `fitted`."""

    def fitted(self, data_dir: str | None = None) -> Any:
        """The task with what it learned; the data are prepared on first use."""
        ...

    def facts(self, data_dir: str | None = None) -> dict[str, Any]:
        """What was counted while preparing, by split."""
        ...


class ArraySplit:
    """Examples in memory: `tokens` [S, N] of any integer type, `lengths` [S], `labels` [S] or [S,
    N].

    Of two documents `tokens` [S, 2, N] and `lengths` [S, 2]; labels may be float32. The arrays may
    be mapped files."""

    def __init__(self, tokens: np.ndarray, lengths: np.ndarray, labels: np.ndarray):
        if not len(tokens) == len(lengths) == len(labels):
            raise InputError(
                f"a split needs tokens, lengths and labels of as many examples; got {len(tokens)}, {len(lengths)} "
                f"and {len(labels)}."
            )
        self.tokens, self.lengths, self.labels = tokens, lengths, labels

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, indices: np.ndarray) -> Batch:
        """Rows `indices` [B] as a `Batch`."""
        return {
            "tokens": self.tokens[indices].astype(np.int32),
            "valid": np.arange(self.tokens.shape[-1]) < self.lengths[indices][..., None],
            "label": self.labels[indices].astype(
                np.float32 if self.labels.dtype.kind == "f" else np.int32
            ),
        }


class Subset:
    """The examples of `split` at `indices` [S], in that order."""

    def __init__(self, split: Split, indices: np.ndarray):
        self.split, self.indices = split, indices

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: np.ndarray) -> Batch:
        """The examples at positions `indices` [B] of this subset."""
        return self.split.take(self.indices[indices])


class Endless:
    """Examples made as they are taken, fresh ones for as long as they are asked for.

    `make` gives the examples of the numbers [B], int64 of at least 0, each a function of its number
    alone; example i of this split is number `first + every * i`. `len` is `count`: how many stand
    for all of them where labels are counted."""

    def __init__(
        self, make: Callable[[np.ndarray], Batch], count: int, first: int = 0, every: int = 1
    ):
        self.make, self.count, self.first, self.every = make, count, first, every

    def __len__(self) -> int:
        return self.count

    def take(self, indices: np.ndarray) -> Batch:
        """The examples at `indices` [B], which may lie beyond `len`."""
        return self.make(self.first + self.every * np.asarray(indices, np.int64))

    def halves(self) -> tuple["Endless", "Endless"]:
        """Every other example, and the rest: two endless splits without a common example."""
        return (
            Endless(self.make, (self.count + 1) // 2, self.first, 2 * self.every),
            Endless(self.make, self.count // 2, self.first + self.every, 2 * self.every),
        )


def parts(task: Task, data_dir: str | None = None, seed: int = 0) -> dict[str, Split]:
    """The four disjoint `PARTS`, and under "train" the union of "weights" and "alphas", to retrain
    on.

    Which examples of train fall in which part depends on `seed` and the number of examples alone.
    Where the data has no valid split, `VALID_FRACTION` of train becomes "valid" before the rest is
    halved; the test split is never used for anything but "test". An `Endless` train is halved
    example by example. Raises `InputError` where train is too small for every part to have an
    example, or is endless and there is no valid split."""
    splits = task.load(data_dir)
    train = splits["train"]
    if isinstance(train, Endless):
        if "valid" not in splits:
            raise InputError("a task whose train split is endless needs a valid split.")
        weights, alphas = train.halves()
        return {
            "weights": weights,
            "alphas": alphas,
            "valid": splits["valid"],
            "test": splits["test"],
            "train": train,
        }
    order = permutation(len(train), seed)
    carved = 0 if "valid" in splits else max(1, round(VALID_FRACTION * len(train)))
    rest = order[carved:]
    if len(rest) < 2:
        raise InputError(
            f"train has {len(train)} examples: too few for the parts {', '.join(PARTS[:3])}."
        )
    half = (len(rest) + 1) // 2
    return {
        "weights": Subset(train, rest[:half]),
        "alphas": Subset(train, rest[half:]),
        "valid": splits["valid"] if "valid" in splits else Subset(train, order[:carved]),
        "test": splits["test"],
        "train": Subset(train, rest),
    }


def permutation(n: int, *seed: int) -> np.ndarray:
    """0 .. n-1 in an order that depends on `seed` alone.

    NumPy promises that a bit generator's raw stream never changes between versions; it makes no
    such promise for `Generator.permutation`, and a split that moved with NumPy's version would leak
    train into valid."""
    return np.argsort(_raw(n, *seed), kind="stable")


def _raw(n: int, *seed: int) -> np.ndarray:
    """`[n]` uniform uint64."""
    if min(seed, default=0) < 0:
        raise InputError(f"seed {min(seed)} is negative.")
    return np.random.PCG64(seed).random_raw(n)


def lengths(split: Split) -> np.ndarray:
    """`[S]` tokens of each example (of two documents, of the longer); `InputError` where they have
    no end."""
    if isinstance(split, Subset):
        return lengths(split.split)[split.indices]
    if isinstance(split, ArraySplit):
        return split.lengths.reshape(len(split), -1).max(1)
    if isinstance(split, Endless):
        raise InputError(
            "data.buckets above 1 sorts examples by length, and these are made without end."
        )
    return np.concatenate(
        [batch["valid"].sum(-1).reshape(len(batch["label"]), -1).max(1) for batch in counted(split)]
    )


class Buckets:
    """Which of at most `count` lengths each example is cut to: equal steps of the full length.

    `of` `[S]` is the number of steps, at least 1, that hold an example; 1 for all where there is
    but one bucket."""

    def __init__(self, split: Split, count: int):
        self.count, self.of = count, np.ones(len(split), np.int64)
        if count > 1:
            self.whole = split.take(np.arange(1))["valid"].shape[-1]
            self.step = -(-self.whole // count)
            self.of = np.maximum(-(-lengths(split) // self.step), 1)

    def cut(self, batch: Batch, rows: np.ndarray) -> Batch:
        """`batch`, of the examples `rows` [B], without the padding that none of them needs."""
        return (
            batch
            if self.count == 1
            else resized(batch, min(int(self.of[rows].max()) * self.step, self.whole))
        )


def resized(batch: Batch, n: int) -> Batch:
    """A batch cut, or padded, to `n` tokens; what is padded is not valid, and its labels do not
    count."""
    axis = batch["valid"].ndim - 1

    def one(array: np.ndarray, fill: int) -> np.ndarray:
        more = n - array.shape[axis]
        if more <= 0:
            return array[(slice(None),) * axis + (slice(n),)]
        return np.pad(
            array, [(0, more if i == axis else 0) for i in range(array.ndim)], constant_values=fill
        )

    changed = {"tokens": one(batch["tokens"], 0), "valid": one(batch["valid"], 0)}
    if batch["label"].ndim > 1:
        changed["label"] = one(batch["label"], -1)
    return {**batch, **changed}


def padded_share(split: Split, batch_size: int, buckets: int = 1) -> float:
    """Share of the tokens of an epoch's batches that are padding."""
    made = _Epochs(split, batch_size, 0, buckets)
    valid = [made[i]["valid"] for i in range(made.steps)]
    return 1 - sum(int(v.sum()) for v in valid) / sum(v.size for v in valid)


class _Epochs:
    """Batch number `i` of an endless stream that passes over the split in a new order every epoch.

    With `buckets` above 1 a batch holds examples of about the same length, and is cut to the
    shortest of that many equal steps of the full length that holds them all."""

    def __init__(
        self,
        split: Split,
        batch_size: int,
        seed: int,
        buckets: int = 1,
        lengths_seed: int | None = None,
    ):
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.lengths_seed = seed if lengths_seed is None else lengths_seed
        self.steps = len(split) // batch_size
        self.buckets = Buckets(split, buckets)
        self.shuffled = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: Any) -> Batch:
        epoch, i = divmod(int(step), self.steps)
        shuffled = self.shuffled
        if shuffled[0] != epoch:
            # One assignment: a reading thread must never see one epoch's order under another's
            # number.
            self.shuffled = shuffled = (epoch, self._order(epoch))
        rows = shuffled[1][i * self.batch_size : (i + 1) * self.batch_size]
        return self.buckets.cut(self.split.take(rows), rows)

    def _order(self, epoch: int) -> np.ndarray:
        """Examples in the order of the epoch's batches."""
        order = permutation(len(self.split), self.seed, epoch)
        if self.buckets.count == 1:
            return order
        order = order[: self.steps * self.batch_size]  # what is left over is left over at random
        order = order[np.argsort(self.buckets.of[order], kind="stable")].reshape(
            self.steps, self.batch_size
        )
        return order[permutation(self.steps, self.lengths_seed, epoch)].reshape(-1)


class _Fresh:
    """Batch number `i` of an endless split; the seed says where in its 2^60 examples to start."""

    def __init__(self, split: Endless, batch_size: int, seed: int):
        self.split, self.batch_size = split, batch_size
        self.start = int(_raw(1, seed)[0]) >> 4

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: Any) -> Batch:
        first = self.start + int(step) * self.batch_size
        return self.split.take(np.arange(first, first + self.batch_size))


def batches(
    split: Split, batch_size: int, seed: int, buckets: int = 1, lengths_seed: int | None = None
) -> grain.DatasetIterator:
    """An endless iterator of `Batch`es of exactly `batch_size` examples, reshuffled every epoch.

    An epoch takes every example at most once and drops the remainder; an `Endless` split has no
    epochs, and no example comes twice. With `buckets` above 1 batches have at most so many lengths,
    and hold examples of like length; short and long ones come in an order of `lengths_seed` (of
    `seed` where it is None), so that streams over halves of the same data can keep step.
    `get_state()` is one small dictionary, and `set_state` of it on a fresh iterator of the same
    arguments continues with the same batches. Raises `InputError` where a batch is larger than the
    split.

    Whole batches are grain's elements, because its own index shuffle costs 9 us an example. One
    thread reads ahead."""
    if not 1 <= batch_size <= len(split):
        raise InputError(
            f"batch size {batch_size} is not between 1 and the split's {len(split)} examples."
        )
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    if buckets > 1 and isinstance(split, Endless):
        lengths(split)
    made = (
        _Fresh(split, batch_size, seed)
        if isinstance(split, Endless)
        else _Epochs(split, batch_size, seed, buckets, lengths_seed)
    )
    return iter(grain.MapDataset.source(made).to_iter_dataset(options))


def examine(split: Split, batch_size: int, buckets: int = 1) -> Iterator[Batch]:
    """Every example once in batches of exactly `batch_size`, for evaluation.

    Each batch also has `row` [B], the examples' positions, and `weight` [B] float32: 1 for an
    example, 0 for the copies of the last one that fill the last batch, so that one compiled
    function serves them all and a weighted mean counts every example once. With `buckets` above 1
    the shorter come first, and batches have at most so many lengths."""
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} is less than 1.")
    found = Buckets(split, buckets)
    order = np.argsort(found.of, kind="stable")
    for start in range(0, len(split), batch_size):
        at = np.arange(start, start + batch_size)
        rows = order[np.minimum(at, len(split) - 1)]
        yield {
            **found.cut(split.take(rows), rows),
            "row": rows,
            "weight": (at < len(split)).astype(np.float32),
        }


def counted(split: Split, chunk: int = 512) -> Iterator[Batch]:
    """Every example once, in order, the last batch shorter: for counting, not for a compiled
    function."""
    for start in range(0, len(split), chunk):
        yield split.take(np.arange(start, min(start + chunk, len(split))))


def majority(train: Split, split: Split) -> float:
    """Accuracy in [0, 1], on `split`, of always predicting the most frequent label of `train`.

    Negative labels do not count. Of equally frequent labels the smallest is predicted.
    """
    most = int(np.bincount(np.concatenate([_labels(batch) for batch in counted(train)])).argmax())
    return float(np.concatenate([_labels(batch) == most for batch in counted(split)]).mean())


def _labels(batch: Batch) -> np.ndarray:
    return batch["label"][batch["label"] >= 0]
