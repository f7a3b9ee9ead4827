"""Data sets of texts: from the rows of their sources to examples of token ids."""

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from dartformer.data import tokens as tokenizers
from dartformer.data.prepare import Example, Examples, Notes
from dartformer.data.rows import (
    PARTS,
    Label,
    Labels,
    Row,
    Tally,
    accepted,
    among,
    digest,
    joined,
    refuse_leaks,
    usable,
    without_leaks,
)
from dartformer.errors import InputError
from dartformer.machine.printable import one_line
from dartformer.machine.progress import say
from dartformer.tasks.division import (
    SHARED_GROUP,
    Rows,
    division,
    group_digest,
    group_numbers,
    without_shared_groups,
)
from dartformer.tasks.encoding import Document, TextEncoding

VERSION = 2
"""Of what is prepared from the same rows. Another version is another folder: what an older one
wrote is not read."""

CHUNK = 500
"""Rows that are encoded at once."""

LOPSIDED = 0.9
"""The share of the largest class above which it is reported."""

UNKNOWN_SHARE = 0.05
"""The share of unknown tokens above which it is reported: the model reads nothing there."""


class MissingClasses(InputError):
    """Classes without a row in train.

    Attributes:
      names: of the classes.
    """

    def __init__(self, title: str, names: Sequence[str]):
        super().__init__(
            f"{title}: train has no row of the class {', '.join(names)}. Leave it out of "
            f"task.label_names, and set task.on_bad_label='drop' to leave out its rows."
        )
        self.names = names


def changed(title: str) -> InputError:
    """The error for data that are written while they are read."""
    return InputError(
        f"{title} changed while it was read. Wait until it is complete and run again."
    )


@dataclass(frozen=True)
class Source:
    """Where the rows of a split come from.

    `rows` starts reading; `identity` changes whenever the rows may have changed."""

    rows: Callable[[], Iterable[Row]]
    identity: Any


@dataclass(frozen=True)
class _Scan:
    """What the first pass over a source keeps of the rows that the rules let through.

    `numbers` `[S]` int64, `digests` and `groups` `[S]` uint64; `classes` `[S]` int64, empty where
    labels are no classes."""

    numbers: np.ndarray
    digests: np.ndarray
    groups: np.ndarray
    classes: np.ndarray
    tally: Tally

    def repeated(self) -> int:
        """Rows whose text, as words read it, occurred before in the same source."""
        return len(self.digests) - len(np.unique(self.digests))


class _Encoded(NamedTuple):
    """A row: what the model reads of its texts, its label as read, and the example of both."""

    documents: Sequence[Document]
    label: Label
    example: Example

    def has_unknown(self) -> bool:
        """Whether the model reads an unknown token."""
        return any(document.unknown for document in self.documents)


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
    read: int = 0
    """Tokens that the model reads, or predicts."""
    unknown: int = 0
    """Of these, unknown ones."""

    def unknown_share(self) -> float:
        """Share of the tokens that are unknown."""
        return round(self.unknown / self.read, 4)

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
            "unknown share": self.unknown_share(),
            "padded share": self.padded_share(length),
        }


class Preparation:
    """Three passes over the sources: which rows go where, the tokenizer, and the examples.

    Rows are in two splits where the model would read the same tokens of both. The tokens follow
    from train, which must not hold these rows: so rows of equal text go first, then the tokenizer is
    learned, and then the rows go whose tokens are equal all the same, such as those that differ
    beyond the crop, or in words outside the vocabulary.

    Of valid, rows that differ from test in unknown words alone stay. Nothing is trained on them, and
    where every row holds a rare word none would be left.
    """

    def __init__(self, task: TextEncoding, sources: dict[str, Source]):
        self.task = task
        self.sources = sources
        self.labels = Labels(task.kind, task.labels)

    def run(self, notes: Notes) -> dict[str, Examples]:
        """The examples of each split.

        Fills `notes` with "learned" and, while the examples are read, "splits" and, of rows in
        groups, "groups": the number of the group of each example of train."""
        # What is wrong with the rows themselves is said before anything is learned or written.
        self.scans = {name: self._scan(name) for name in self.sources}
        self.rows = self._divided()
        self.leaked = self._drop_leaked()
        self._check_rows()
        self.learned = {**self._trained_tokenizer().state(), **self._scale()}
        # The tokenizer is restored from what is kept, as it is for a prediction.
        self.task = replace(self.task, learned=json.dumps(self.learned, sort_keys=True))
        notes["learned"] = self.learned
        notes["splits"] = {}
        self.notes = notes
        # Later splits first: an earlier one leaves out what they hold.
        self.digests: dict[str, list[np.ndarray]] = {}
        examples: dict[str, Examples] = {}
        for part in reversed(PARTS):
            examples[part] = self._examples(part)
        return examples

    def _scan(self, name: str) -> _Scan:
        """The first pass over a source."""
        task, tally = self.task, Tally()
        # As machine words: a row's four numbers in lists of Python take 200 bytes.
        numbers, digests, groups, classes = array("q"), array("Q"), array("Q"), array("q")
        for row in accepted(self.sources[name].rows(), task.rules, self.labels, tally):
            numbers.append(row.number)
            digests.append(digest(list(map(task.comparable, row.texts))))
            groups.append(group_digest(row.group))
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
            np.array(groups, np.uint64),
            np.array(classes, np.int64),
            tally,
        )

    def _divided(self) -> dict[str, Rows]:
        """The rows of each split; what the data lack is cut out of train, by `seed`."""
        groups = {name: scan.groups for name, scan in self.scans.items()}
        fractions = {"test": self.task.test_fraction, "valid": self.task.valid_fraction}
        rows = division(groups, fractions, self.task.seed)
        rows, self.shared = without_shared_groups(rows, groups)
        return rows

    def _drop_leaked(self) -> dict[str, int]:
        """Drop rows whose text occurs in a later split, if the rule says so; how many there are."""
        digests = {}
        for part, (source, positions) in self.rows.items():
            digests[part] = self.scans[source].digests[positions]
        # After the division: rows that the seed puts into valid or test count as later, too.
        keep, leaked = without_leaks(digests, self.task.on_duplicate)
        for part, (source, positions) in self.rows.items():
            self.rows[part] = Rows(source, positions[keep[part]])
        return leaked

    def _check_rows(self) -> None:
        """Raise `InputError` for a split without rows, or a class without an example in train."""
        task = self.task
        for part, rows in self.rows.items():
            if not len(rows.positions):
                raise InputError(f"{task.title}: no rows are left for {part}.")
        if task.kind == "classification":
            present = self.scans["train"].classes[self.rows["train"].positions]
            self._check_classes(present.tolist())

    def _check_classes(self, present: Iterable[int]) -> None:
        """Raise `InputError` for a class that is not among those `present` in train."""
        missing = sorted(set(range(self.task.classes)).difference(present))
        if missing:
            raise MissingClasses(self.task.title, [self.task.labels[i] for i in missing])

    def _selected(self, part: str) -> Iterator[tuple[tuple[str, ...], Label]]:
        """Texts and label of each row of a split: another pass over its source."""
        source, positions = self.rows[part]
        numbers = iter(self.scans[source].numbers[positions].tolist())
        number = next(numbers, None)
        for i, row in enumerate(self.sources[source].rows()):
            if i != number:
                continue
            # What is odd was counted in the first pass.
            texts_and_label = usable(row, self.task.rules, self.labels, Tally())
            if texts_and_label is None:
                raise changed(row.where)
            yield texts_and_label
            number = next(numbers, None)
            if number is None:
                return

    def _training_texts(self) -> Iterator[str]:
        """Every text of train, one at a time: the corpus need not fit into memory."""
        for texts, _ in self._selected("train"):
            yield from texts

    def _trained_tokenizer(self) -> tokenizers.Tokenizer:
        """The tokenizer of the training part: the second pass."""
        task = self.task
        if task.tokens == "checkpoint":
            return task.tokenizer
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
        values = np.array(array("d", (label for _, label in self._selected("train"))))
        # Labels that are all alike have no deviation to divide by.
        return {"mean": float(values.mean()), "scale": float(values.std()) or 1.0}

    def _examples(self, part: str) -> Iterator[Example]:
        """The third pass: the examples of a split; the notes get its facts at the end."""
        task = self.task
        source, positions = self.rows[part]
        scan = self.scans[source]
        groups = scan.groups[positions]
        members = []
        odd = scan.tally.positive()
        if self.shared[part]:
            odd[SHARED_GROUP] = self.shared[part]
        facts = _Facts(odd, 0, scan.repeated())
        later = self._later(part)
        self.digests[part] = []
        for rows in self._encoded(part):
            digests = np.array([_digest(row.example) for row in rows], np.uint64)
            self.digests[part].append(digests)
            leaked = among(digests, later)
            if part != "train":
                leaked &= ~np.array([row.has_unknown() for row in rows])
            facts.leaked += int(leaked.sum())
            of_rows, groups = groups[: len(rows)], groups[len(rows) :]
            if task.on_duplicate != "keep":
                rows = list(itertools.compress(rows, ~leaked))
                of_rows = of_rows[~leaked]
            members.append(of_rows)
            for row in rows:
                self._count(facts, row)
                yield row.example
        self._check_part(part, facts)
        if task.on_duplicate != "keep":
            facts.leaked += self.leaked[part]
        length = task.length * task.inputs
        self.notes["splits"][part] = facts.to_dict(length)
        numbers = group_numbers(np.concatenate(members))
        if part == "train" and numbers is not None:
            self.notes["groups"] = numbers
        self._report(part, facts, length, has_source=source == part)

    def _encoded(self, part: str) -> Iterator[list[_Encoded]]:
        """The rows of a split, some at a time: the tokenizer encodes a batch in parallel."""
        task = self.task
        encode = Encoder(task)
        rows = self._selected(part)
        while chunk := list(itertools.islice(rows, CHUNK)):
            texts: list[str] = []
            for row_texts, _ in chunk:
                texts.extend(row_texts)
            documents = encode(texts)
            encoded = []
            for i, (_, label) in enumerate(chunk):
                of_row = documents[i * task.inputs : (i + 1) * task.inputs]
                encoded.append(_Encoded(of_row, label, self._example(of_row, label)))
            yield encoded

    def _later(self, part: str) -> np.ndarray:
        """Digests of the rows of the splits after a split, sorted."""
        digests = [np.zeros(0, np.uint64)]
        for name in PARTS[PARTS.index(part) + 1 :]:
            digests.extend(self.digests[name])
        return np.unique(np.concatenate(digests))

    def _count(self, facts: _Facts, row: _Encoded) -> None:
        """Count an example of a split."""
        task = self.task
        facts.rows += 1
        facts.cropped += max(document.tokens for document in row.documents) > task.length
        for document in row.documents:
            facts.tokens += min(document.tokens, task.length)
            facts.read += len(document.ids)
            facts.unknown += document.unknown
        if task.kind == "classification":
            facts.labels[task.labels[row.label]] += 1

    def _check_part(self, part: str, facts: _Facts) -> None:
        """Raise `InputError` where the tokens leave a split without rows, or without a class."""
        task = self.task
        refuse_leaks(part, facts.leaked, task.on_duplicate)
        if not facts.rows:
            raise InputError(
                f"{task.title}: no rows are left for {part}, because the model reads the same "
                f"tokens in later splits. Use other task.tokens, or more task.length."
            )
        if task.kind == "classification" and part == "train":
            self._check_classes(map(task.labels.index, facts.labels))

    def _example(self, documents: Sequence[Document], label: Label) -> Example:
        """An example from what the model reads of its texts."""
        task = self.task
        tokens = documents[0].ids
        if task.kind == "language":
            return _next_tokens(tokens)
        if task.kind == "labelling":
            label = np.array(task.cropped(label), np.int32)
        elif task.kind == "regression":
            label = (label - self.learned["mean"]) / self.learned["scale"]
        example = {"tokens": tokens, "label": label}
        if task.inputs == 2:
            example["tokens2"] = documents[1].ids
        return example

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
        if facts.unknown_share() > UNKNOWN_SHARE:
            odd.append(f"warning: {100 * facts.unknown_share():.0f}% of the tokens are unknown")
        largest = max(facts.labels.values(), default=0) / facts.rows
        if largest > LOPSIDED:
            odd.append(f"{100 * largest:.0f}% are of one class")
        line = f"{task.title} {part}: {facts.rows:,} rows"
        details = [f"{100 * facts.padded_share(length):.0f}% padding", *odd]
        say(one_line(f"{line}, {', '.join(details)}"))


def _digest(example: Example) -> int:
    """Of what the model reads of an example; its label does not count."""
    tokens = [example["tokens"].tobytes()]
    if "tokens2" in example:
        tokens.append(example["tokens2"].tobytes())
    return digest(joined(tokens))


def _next_tokens(ids: np.ndarray) -> Example:
    """An example whose labels are the next tokens."""
    tokens, label = ids[:-1], ids[1:].astype(np.int32)
    if not len(label):  # a single token: nothing follows it
        tokens, label = ids, np.array([-1], np.int32)
    return {"tokens": tokens, "label": label}


class Encoder:
    """What the model reads of texts.

    The documents of pairs occur again and again: what is read of them is kept for the next time.
    """

    CAPACITY = 2**25
    """Ids that are kept at most."""

    def __init__(self, task: TextEncoding):
        self.task = task
        self.extra = int(task.kind == "language")
        self.cache: dict[int, Document] = {}
        self.size = 0

    def __call__(self, texts: list[str]) -> list[Document]:
        """What the model reads of each text."""
        if self.task.inputs == 1:
            return self.task.documents(texts, self.extra)
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
        documents = self.task.documents(list(fresh.values()))
        for key, document in zip(fresh, documents, strict=True):
            self.cache[key] = document
            self.size += len(document.ids)
        return [self.cache[key] for key in keys]


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Each text once: a document that is in many pairs says no more about its words."""
    digests = set()
    for text in texts:
        key = digest([text])
        if key not in digests:
            digests.add(key)
            yield text
