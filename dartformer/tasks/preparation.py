"""Data sets of texts: from the rows of their sources to examples of token ids."""

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dartformer.data import tokens as tokenizers
from dartformer.data.prepare import Example, Examples, Notes
from dartformer.data.rows import Label, Labels, Row, Tally, accepted, digest, without_leaks
from dartformer.data.splits import permutation
from dartformer.errors import InputError
from dartformer.tasks.encoding import Ids, TextEncoding

CHUNK = 500
"""Rows that are encoded at once."""

LOPSIDED = 0.9
"""The share of the largest class above which it is reported."""


@dataclass(frozen=True)
class Source:
    """Where the rows of a split come from.

    `rows` starts reading; `identity` changes whenever the rows may have changed."""

    rows: Callable[[], Iterable[Row]]
    identity: Any


@dataclass(frozen=True)
class _Scan:
    """What the first pass over a source keeps of the rows that the rules let through.

    `numbers` `[S]` int64, `digests` `[S]` uint64; `classes` `[S]` int64, empty where labels are no
    classes."""

    numbers: np.ndarray
    digests: np.ndarray
    classes: np.ndarray
    tally: Tally

    def repeated(self) -> int:
        """Rows whose text occurred before in the same source."""
        return len(self.digests) - len(np.unique(self.digests))


class _Rows(NamedTuple):
    """The rows of a split: a source, and positions `[S]` among the rows of its scan."""

    source: str
    positions: np.ndarray


@dataclass
class _Facts:
    """What is counted of a split, as `facts` returns it."""

    odd: dict[str, int]
    leaked: int
    repeated: int
    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    cropped: int = 0
    tokens: int = 0
    """Tokens that are not padding."""

    def padded_share(self, length: int) -> float:
        """Share of padding where a row has `length` tokens."""
        return round(1 - self.tokens / (self.rows * length), 4)

    def to_dict(self, length: int) -> dict[str, Any]:
        """Plain data."""
        return {
            "rows": self.rows,
            "left out or odd": self.odd,
            "also in a later split": self.leaked,
            "repeated in the source": self.repeated,
            "labels": dict(sorted(self.labels.items())),
            "cropped": self.cropped,
            "padded share": self.padded_share(length),
        }


class Preparation:
    """Three passes over the sources: which rows go where, the tokenizer, and the examples."""

    def __init__(self, task: TextEncoding, sources: dict[str, Source]):
        self.task = task
        self.sources = sources
        self.labels = Labels(task.kind, task.labels)

    def run(self, notes: Notes) -> dict[str, Examples]:
        """The examples of each split.

        Fills `notes` with "learned" and, while the examples are read, "splits"."""
        # Everything that can be wrong with the rows is said before anything is learned or written.
        self.scans = {name: self._scan(name) for name in self.sources}
        self.rows = self._divided()
        self.leaked = self._drop_leaked()
        self._check_rows()
        self.tokenizer = self._trained_tokenizer()
        self.learned = {**self.tokenizer.state(), **self._scale()}
        notes["learned"] = self.learned
        notes["splits"] = {}
        examples: dict[str, Examples] = {}
        for part in ("test", "valid", "train"):
            examples[part] = self._examples(part, notes["splits"])
        return examples

    def _scan(self, name: str) -> _Scan:
        """The first pass over a source."""
        task, tally = self.task, Tally()
        numbers, digests, classes = [], [], []
        for row in accepted(self.sources[name].rows(), task.rules, self.labels, tally):
            numbers.append(row.number)
            digests.append(digest(row.texts))
            if task.kind == "classification":
                classes.append(row.label)
        if not numbers:
            raise InputError(
                f"{task.title}: {name} has no rows that can be used "
                f"({tally.text() or 'it is empty'})."
            )
        return _Scan(
            np.array(numbers, np.int64),
            np.array(digests, np.uint64),
            np.array(classes, np.int64),
            tally,
        )

    def _divided(self) -> dict[str, _Rows]:
        """The rows of each split; what the data lack is cut out of train, by `seed`."""
        rows = {}
        for name, scan in self.scans.items():
            rows[name] = _Rows(name, np.arange(len(scan.numbers)))
        n = len(self.scans["train"].numbers)
        order = permutation(n, self.task.seed)
        fractions = {"test": self.task.test_fraction, "valid": self.task.valid_fraction}
        for part, fraction in fractions.items():
            if part not in rows:
                count = max(1, round(fraction * n))
                # In the order of the source, which is read from start to end.
                rows[part] = _Rows("train", np.sort(order[:count]))
                order = order[count:]
        rows["train"] = _Rows("train", np.sort(order))
        return rows

    def _drop_leaked(self) -> dict[str, int]:
        """Drop rows that occur in a later split, if the rule says so; how many there are."""
        digests = {}
        for part, (source, positions) in self.rows.items():
            digests[part] = self.scans[source].digests[positions]
        # After the division: rows that the seed puts into valid or test count as later, too.
        keep, leaked = without_leaks(digests, self.task.on_duplicate)
        for part, (source, positions) in self.rows.items():
            self.rows[part] = _Rows(source, positions[keep[part]])
        return leaked

    def _check_rows(self) -> None:
        """Raise `InputError` for a split without rows, or a class without an example in train."""
        task = self.task
        for part, rows in self.rows.items():
            if not len(rows.positions):
                raise InputError(f"{task.title}: no rows are left for {part}.")
        if task.kind != "classification":
            return
        present = self.scans["train"].classes[self.rows["train"].positions]
        missing = np.setdiff1d(np.arange(task.classes), present)
        if len(missing):
            names = ", ".join(task.labels[i] for i in missing)
            raise InputError(f"{task.title}: train has no row of the class {names}.")

    def _selected(self, part: str) -> Iterator[tuple[tuple[str, ...], Label]]:
        """Texts and label of each row of a split: another pass over its source."""
        source, positions = self.rows[part]
        numbers = iter(self.scans[source].numbers[positions].tolist())
        number = next(numbers, None)
        rows = self.sources[source].rows()
        # What is odd was counted in the first pass.
        for row in accepted(rows, self.task.rules, self.labels, Tally()):
            if row.number == number:
                yield row.texts, row.label
                number = next(numbers, None)

    def _training_texts(self) -> Iterator[str]:
        """Every text of train, one at a time: the corpus need not fit into memory."""
        for texts, _ in self._selected("train"):
            yield from texts

    def _trained_tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer of the training part: the second pass."""
        task = self.task
        texts: Iterator[str] = self._training_texts()
        if task.inputs == 2:
            texts = distinct(texts)
        split = task.kind == "labelling"
        return tokenizers.train(task.tokens, texts, task.vocabulary, split=split)

    def _scale(self) -> dict[str, float]:
        """Mean and standard deviation of labels that are numbers.

        Training sees them with mean 0 and deviation 1."""
        if self.task.kind != "regression":
            return {}
        values = np.array([label for _, label in self._selected("train")], np.float64)
        # Labels that are all alike have no deviation to divide by.
        return {"mean": float(values.mean()), "scale": float(values.std()) or 1.0}

    def _examples(self, part: str, noted: Notes) -> Iterator[Example]:
        """The third pass: the examples of a split; `noted` gets its facts at the end."""
        task = self.task
        source = self.rows[part].source
        scan = self.scans[source]
        facts = _Facts(scan.tally.positive(), self.leaked[part], scan.repeated())
        rows = self._selected(part)
        encode = Encoder(task, self.tokenizer)
        while chunk := list(itertools.islice(rows, CHUNK)):
            texts: list[str] = []
            for row_texts, _ in chunk:
                texts.extend(row_texts)
            # One call for the chunk: the tokenizer encodes a batch in parallel.
            encoded = encode(texts)
            for i, (_, label) in enumerate(chunk):
                documents = encoded[i * task.inputs : (i + 1) * task.inputs]
                facts.rows += 1
                ids, counts = zip(*documents, strict=True)
                facts.cropped += max(counts) > task.length
                facts.tokens += sum(min(n, task.length) for n in counts)
                if task.kind == "classification":
                    facts.labels[task.labels[label]] += 1
                yield self._example(ids, label)
        length = task.length * task.inputs
        noted[part] = facts.to_dict(length)
        self._report(part, facts, length, has_source=source == part)

    def _example(self, texts: Sequence[Ids], label: Label) -> Example:
        """An example from the ids of its texts."""
        task = self.task
        tokens = []
        for ids in texts:
            if not len(ids):
                # An unknown token in place of none: every row has something to attend to.
                ids = [1]
            if task.kind == "language":
                return self._next_tokens(ids)
            tokens.append(np.array(task.cropped(ids), task.token_dtype))
        if task.kind == "labelling":
            label = np.array(task.cropped(label), np.int32)
        elif task.kind == "regression":
            label = (label - self.learned["mean"]) / self.learned["scale"]
        example = {"tokens": tokens[0], "label": label}
        if task.inputs == 2:
            example["tokens2"] = tokens[1]
        return example

    def _next_tokens(self, ids: Ids) -> Example:
        """An example whose labels are the next tokens."""
        stream = np.array(self.task.cropped(ids, 1), np.int32)
        tokens, label = stream[:-1], stream[1:]
        if not len(label):  # a single token: nothing follows it
            tokens, label = stream, np.array([-1], np.int32)
        return {"tokens": tokens.astype(self.task.token_dtype), "label": label}

    def _report(self, part: str, facts: _Facts, length: int, has_source: bool) -> None:
        """Print a line; what was odd in a source is printed only for the split of its name."""
        task = self.task
        odd = []
        if has_source:
            for name, n in facts.odd.items():
                odd.append(f"{n:,} {name}")
        if facts.leaked:
            action = {"drop": ", dropped", "keep": ", kept"}.get(task.on_duplicate, "")
            odd.append(f"{facts.leaked:,} also in a later split{action}")
        if facts.repeated and has_source:
            odd.append(f"{facts.repeated:,} repeated in the source")
        if facts.cropped:
            odd.append(f"{facts.cropped:,} cropped to {task.length} tokens")
        largest = max(facts.labels.values(), default=0) / facts.rows
        if largest > LOPSIDED:
            odd.append(f"{100 * largest:.0f}% are of one class")
        line = f"{task.title} {part}: {facts.rows:,} rows"
        details = [f"{100 * facts.padded_share(length):.0f}% padding", *odd]
        print(f"{line}, {', '.join(details)}", file=sys.stderr, flush=True)


class Encoder:
    """Token ids of texts, and how many each text has.

    The documents of pairs occur again and again: their ids are cropped, and kept for the next time.
    """

    CAPACITY = 2**25
    """Ids that are kept at most."""

    def __init__(self, task: TextEncoding, tokenizer: tokenizers.Tokenizer):
        self.task = task
        self.tokenizer = tokenizer
        self.cache: dict[int, tuple[Ids, int]] = {}
        self.size = 0

    def __call__(self, texts: list[str]) -> list[tuple[Ids, int]]:
        """(ids, number) of each text."""
        if self.task.inputs == 1:
            encoded = self.tokenizer.encode(texts)
            return list(zip(encoded, map(len, encoded), strict=True))
        # Emptied between calls only: what this call looks up below must still be there.
        if self.size > self.CAPACITY:
            self.cache, self.size = {}, 0
        keys = []
        fresh = {}
        for text in texts:
            key = digest([text])  # not the text: a document may be long
            keys.append(key)
            if key not in self.cache:
                fresh[key] = text
        encoded = self.tokenizer.encode(list(fresh.values()))
        for key, ids in zip(fresh, encoded, strict=True):
            # Cropped and of the smallest type: a list takes up to 36 bytes an id.
            kept = np.array(self.task.cropped(ids), self.task.token_dtype)
            self.cache[key] = kept, len(ids)
            self.size += len(kept)
        return [self.cache[key] for key in keys]


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Each text once: a document that is in many pairs says no more about its words."""
    digests = set()
    for text in texts:
        key = digest([text])
        if key not in digests:
            digests.add(key)
            yield text
