"""Batches from whatever a user has: arrays, lists, loaders, or functions that return iterators."""

import base64
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dartformer.errors import InputError, brief
from dartformer.machine.progress import say
from dartformer.training.loop import Stream

Batch = Any
"""A pytree of arrays: the user's loss reads it, and nothing else looks inside."""

Batches = Any
"""Arrays with examples along their first axis (one, or a dict or tuple of them); or a list, a loader,
or a function that returns an iterator, of batches."""

OBJECTS = {
    "O": "an array of Python objects",
    "U": "an array of texts",
    "S": "an array of bytes",
    "M": "an array of dates",
    "m": "an array of durations",
    "T": "an array of texts",
}
"""Arrays that no program takes, by NumPy's letter for their kind."""

ARRAYS = (np.ndarray, jax.Array, Mapping, tuple)
"""What a part of arrays is; all else is iterated."""

PARTS = ("weights", "alphas", "train", "valid", "test")


class Source(Protocol):
    """One part of the data.

    Attributes:
      name: of the part, such as "valid".
    """

    name: str

    def stream(self, seed: int) -> Stream:
        """Batches without end."""
        ...

    def head(self, count: int) -> list[Batch]:
        """The first batches, at most so many, which later streams give again."""
        ...

    def once(self, examples: int | None = None) -> Iterator[Batch]:
        """Every example once, in order; or batches with at least the first so many."""
        ...

    def missing(self, count: int) -> str:
        """Where the first `count` batches have missing values, in words; empty where nowhere."""
        ...


def as_arrays(name: str, batch: Batch) -> Batch:
    """A batch with NumPy or JAX arrays in place of those of other libraries.

    Raises `InputError` for texts and other objects, which no program takes, by the part's name.
    """

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return leaf
        array = np.asarray(leaf)
        if array.dtype.kind in OBJECTS:
            example = ""
            if array.size:
                first = array.ravel()[0]
                example = f", such as {brief(first)} ({type(first).__name__})"
            raise InputError(
                f"data[{name!r}] holds {OBJECTS[array.dtype.kind]}{example}. Use numbers."
            )
        return array

    return jax.tree.map(plain, batch)


def missing_in(name: str, batch: Batch) -> str:
    """Which array of a batch has missing values, in words; empty where none has."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        rows = np.isnan(np.asarray(leaf)).reshape((*np.shape(leaf)[:1], -1)).any(-1)
        if rows.any():
            where = jax.tree_util.keystr(path)
            return (
                f"data[{name!r}]{where} has missing values (NaN) in {int(rows.sum())} of "
                f"{rows.size} rows, first in row {int(rows.argmax())}"
            )
    return ""


def form_of(batch: Batch) -> str:
    """A batch in words, such as "(float32[16, 8], int32[16])"."""

    def leaf_form(leaf: Any) -> str:
        return f"{leaf.dtype}{list(leaf.shape)}"

    return str(jax.tree.map(leaf_form, batch)).replace("'", "")


def size_of(batch: Batch) -> int:
    """How many examples a batch holds: the first axis of its first array."""
    shape = np.shape(jax.tree.leaves(batch)[0])
    if not shape:
        return 1
    return shape[0]


# Arrays.


@dataclass
class Arrays:
    """Arrays whose first axis is that of the examples, in another order for each epoch.

    Attributes:
      name: of the part.
      arrays: a pytree of them.
      batch_size: examples of a batch; an epoch's last ones that fill no batch are left out.
      rows: the examples that count.
      given: the part that the user gave, where it was divided.
    """

    name: str
    arrays: Any
    batch_size: int
    rows: np.ndarray
    given: str = ""

    def stream(self, seed: int) -> Stream:
        """See `Source`."""
        if len(self.rows) < self.batch_size:
            raise InputError(
                f"data[{self.name!r}] has {len(self.rows)} examples, and a batch {self.batch_size}. "
                f"Use a smaller batch_size."
            )
        return _ArrayStream(self, seed)

    def head(self, count: int) -> list[Batch]:
        """See `Source`."""
        stream = self.stream(0)
        return [next(stream) for _ in range(count)]

    def missing(self, count: int) -> str:
        """See `Source`."""
        return missing_in(self.given or self.name, self.arrays)

    def take(self, rows: np.ndarray) -> Batch:
        """Some examples."""
        return jax.tree.map(lambda array: array[rows], self.arrays)

    def once(self, examples: int | None = None) -> Iterator[Batch]:
        """See `Source`."""
        rows = self.rows[:examples]
        for start in range(0, len(rows), self.batch_size):
            yield self.take(rows[start : start + self.batch_size])


class _ArrayStream:
    def __init__(self, source: Arrays, seed: int):
        self.source, self.seed = source, seed
        self.count = 0
        self.per_epoch = len(source.rows) // source.batch_size
        self.order = (-1, source.rows)

    def __next__(self) -> Batch:
        epoch, number = divmod(self.count, self.per_epoch)
        if self.order[0] != epoch:
            # From the seed and the epoch alone, so that a resumed search sees the same order.
            random = np.random.default_rng([self.seed, epoch])
            self.order = (epoch, random.permutation(self.source.rows))
        self.count += 1
        size = self.source.batch_size
        return self.source.take(self.order[1][number * size : (number + 1) * size])

    def get_state(self) -> int:
        return self.count

    def set_state(self, state: int) -> None:
        self.count = state


def arrays_of(name: str, value: Any, batch_size: int) -> Arrays:
    """Arrays as a part of the data; raises `InputError` where they do not fit together."""
    arrays = as_arrays(name, value)
    lengths = set()
    for leaf in jax.tree.leaves(arrays):
        if not leaf.shape:
            raise InputError(f"data[{name!r}] holds a single number. Use arrays, a row an example.")
        lengths.add(leaf.shape[0])
    if len(lengths) != 1 or lengths == {0}:
        raise InputError(
            f"data[{name!r}] must hold arrays of one length, at least 1, got {sorted(lengths)}."
        )
    return Arrays(name, arrays, batch_size, np.arange(lengths.pop()))


# Iterables.


@dataclass
class Iterated:
    """A list, a loader, or a function that returns an iterator, of batches.

    Attributes:
      name: of the part.
      iterable: as the user gave it.
    """

    name: str
    iterable: Iterable[Batch] | Callable[[], Iterator[Batch]]
    kept: list[Batch] | None = field(default=None, repr=False)

    def iterator(self) -> Iterator[Batch]:
        """The batches from the first on, where that is possible."""
        if callable(self.iterable) and not hasattr(self.iterable, "__iter__"):
            return iter(self.iterable())
        assert isinstance(self.iterable, Iterable)
        return iter(self.iterable)

    @property
    def repeats(self) -> bool:
        """Whether it can be iterated again: an iterator is its own iterator, and ends once."""
        return not hasattr(self.iterable, "__next__")

    def stream(self, seed: int) -> Stream:
        """See `Source`; the order is that of the iterable."""
        return _IteratedStream(self)

    def head(self, count: int) -> list[Batch]:
        """See `Source`."""
        iterator = self.iterator()
        state = None
        if not self.repeats and hasattr(iterator, "get_state"):
            state = iterator.get_state()
        drawn = list(itertools.islice(iterator, count))
        if not drawn:
            raise InputError(f"data[{self.name!r}] is empty.")
        # What ends once must give them again.
        if state is not None:
            self.iterable.set_state(state)  # type: ignore[union-attr]
        elif not self.repeats:
            self.iterable = itertools.chain(drawn, iterator)
        return [as_arrays(self.name, batch) for batch in drawn]

    def once(self, examples: int | None = None) -> Iterator[Batch]:
        """See `Source`."""
        count = 0
        for batch in self._batches():
            if examples is not None and count >= examples:
                return
            arrays = as_arrays(self.name, batch)
            count += size_of(arrays)
            yield arrays
        if not count:
            raise InputError(f"data[{self.name!r}] is empty.")

    def missing(self, count: int) -> str:
        """See `Source`; what ends once has been read, and is not searched."""
        if not self.repeats:
            return ""
        for number, batch in enumerate(itertools.islice(self.iterator(), count)):
            where = missing_in(self.name, as_arrays(self.name, batch))
            if where:
                return f"{where} of batch {number + 1}"
        return ""

    def _batches(self) -> Iterable[Batch]:
        if self.repeats:
            return self.iterator()
        # What ends once is read once and kept: a search evaluates several times.
        if self.kept is None:
            self.kept = list(self.iterator())
        return self.kept


class _IteratedStream:
    def __init__(self, source: Iterated):
        self.source = source
        self.iterator = source.iterator()
        self.count = 0

    def __next__(self) -> Batch:
        try:
            batch = next(self.iterator)
        except StopIteration:
            batch = self._again()
        self.count += 1
        return as_arrays(self.source.name, batch)

    def _again(self) -> Batch:
        name = self.source.name
        if not self.source.repeats:
            raise InputError(
                f"data[{name!r}] ended after {self.count} batches, at step {self.count + 1}, and "
                f"cannot be iterated again. Pass a list, a loader, or a function that returns an "
                f"iterator."
            )
        self.iterator = self.source.iterator()
        try:
            return next(self.iterator)
        except StopIteration:
            raise InputError(f"data[{name!r}] is empty.") from None

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"count": self.count}
        if hasattr(self.iterator, "get_state"):
            state["iterator"] = _encoded(self.iterator.get_state())
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]
        if "iterator" in state and hasattr(self.iterator, "set_state"):
            self.iterator.set_state(_decoded(state["iterator"]))
        else:
            say(
                f"data[{self.source.name!r}] cannot say where it was (no get_state and set_state): "
                f"it begins with its first batch again"
            )


def _encoded(state: Any) -> Any:
    """The state of an iterator as JSON: some libraries give bytes."""
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    return {"plain": state}


def _decoded(state: Mapping[str, Any]) -> Any:
    if "bytes" in state:
        return base64.b64decode(state["bytes"])
    return state["plain"]


# All parts.


class Alternating:
    """Two streams in turn, for what learns from both."""

    def __init__(self, first: Stream, second: Stream):
        self.streams = (first, second)
        self.count = 0

    def __next__(self) -> Batch:
        stream = self.streams[self.count % 2]
        self.count += 1
        return next(stream)

    def get_state(self) -> list[Any]:
        """How many were drawn, and where the streams are."""
        first, second = self.streams
        return [self.count, first.get_state(), second.get_state()]

    def set_state(self, state: list[Any]) -> None:
        """Continue where `get_state` was called."""
        self.count, first, second = state
        self.streams[0].set_state(first)
        self.streams[1].set_state(second)


@dataclass
class Parts:
    """The parts of a search's data: weights and alphas learn from the first two, valid chooses."""

    weights: Source
    alphas: Source
    valid: Source
    test: Source | None = None

    def train(self, seed: int) -> Stream:
        """Batches of weights and alphas, for what has one level."""
        if self.weights is self.alphas:
            return self.weights.stream(seed)
        return Alternating(self.weights.stream(seed), self.alphas.stream(seed + 1))


def parts_of(data: Mapping[str, Batches], batch_size: int, seed: int, halves: bool) -> Parts:
    """The parts of what a user gave; "train" is divided into weights and alphas.

    Raises `InputError` where a part is missing or unknown.
    """
    if not isinstance(data, Mapping):
        raise InputError(
            "data must be a dict with 'train' and 'valid', or 'weights', 'alphas' and 'valid'."
        )
    for name in data:
        if name not in PARTS:
            raise InputError(f"data has no part {name!r}; its parts are {', '.join(PARTS)}.")
    if "valid" not in data:
        raise InputError("data needs 'valid', examples that the choice is made on.")
    valid = _source("valid", data["valid"], batch_size)
    test = None
    if "test" in data:
        test = _source("test", data["test"], batch_size)
    if "train" not in data:
        for name in ("weights", "alphas"):
            if name not in data:
                raise InputError(f"data needs {name!r}, or 'train' in place of weights and alphas.")
        _require_apart(data["weights"], data["alphas"])
        weights = _source("weights", data["weights"], batch_size)
        return Parts(weights, _source("alphas", data["alphas"], batch_size), valid, test)
    for name in ("weights", "alphas"):
        if name in data:
            raise InputError(
                f"data has 'train' and {name!r}. Use 'train' alone, which is divided into weights and "
                f"alphas, or both of these."
            )
    train = _source("train", data["train"], batch_size)
    if not halves:
        return Parts(train, train, valid, test)
    if not isinstance(train, Arrays):
        raise InputError(
            f"data['train'] can be divided only where it is arrays (one, or a dict or tuple of them), "
            f"got {type(data['train']).__name__}. Pass 'weights' and 'alphas', two halves that share "
            f"no example."
        )
    if train.rows.size < 2:
        raise InputError("data['train'] has one example, and is divided into weights and alphas.")
    rows = np.random.default_rng([seed, 0]).permutation(train.rows)
    half = len(rows) // 2
    first = Arrays("weights", train.arrays, batch_size, np.sort(rows[:half]), "train")
    second = Arrays("alphas", train.arrays, batch_size, np.sort(rows[half:]), "train")
    return Parts(first, second, valid, test)


def _require_apart(weights: Batches, alphas: Batches) -> None:
    """Raise `InputError` for one array as both halves; a loader may give each other batches."""
    if not (isinstance(weights, ARRAYS) and isinstance(alphas, ARRAYS)):
        return
    if set(map(id, jax.tree.leaves(weights))) & set(map(id, jax.tree.leaves(alphas))):
        raise InputError(
            "data['weights'] and data['alphas'] hold the same array, and must share no example. Pass "
            "it as 'train', which is divided."
        )


def _source(name: str, value: Batches, batch_size: int) -> Source:
    """A part from arrays (one, or a dict or tuple of them), or from an iterable of batches."""
    if isinstance(value, ARRAYS):
        return arrays_of(name, value, batch_size)
    if not isinstance(value, (str, bytes)) and (callable(value) or isinstance(value, Iterable)):
        return Iterated(name, value)
    raise InputError(
        f"data[{name!r}] must be arrays or an iterable of batches, got {type(value).__name__}."
    )
