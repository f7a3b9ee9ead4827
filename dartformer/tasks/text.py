"""What tasks on texts have in common: rows by the rules, a tokenizer of the training part, splits,
a simple rule."""

import itertools
import json
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from dartformer.data import tokens as tokenizers
from dartformer.data.prepare import Examples, Notes, Prepared, prepared
from dartformer.data.rows import Labels, Row, Rules, Tally, digest, kept, without_leaks
from dartformer.data.sources import from_source
from dartformer.data.splits import Split, permutation
from dartformer.errors import InputError, unknown
from dartformer.tasks import simple
from dartformer.tasks.base import TaskTraits

CROPS = ("head", "tail", "ends")


@dataclass(frozen=True)
class Source:
    """Where the rows of a split come from: a function that starts reading, and whatever changes if
    they change."""

    rows: Callable[[], Iterable[Row]]
    identity: Any


@dataclass(frozen=True, kw_only=True)
class TextTask(ABC):
    """Texts as tokens: "bytes", "characters", "words" or "bpe", at most `vocabulary_size` of them
    (0: the default).

    A text of more than `length` tokens is cropped: its "head", its "tail", or half of each
    ("ends"). Where the source has no valid (or test) split, `valid_fraction` (`test_fraction`) of
    train becomes one, by `seed`. Rows that occur in two splits, blank texts, labels outside the
    classes and bytes that are no UTF-8 follow `on_duplicate`, `on_empty`, `on_bad_label` and
    `on_invalid` (see `dartformer.data.rows`); how many there were is printed and kept."""

    tokens: str = "bytes"
    vocabulary_size: int = 0
    length: int = 512
    crop: str = "head"
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    on_empty: str = "drop"
    on_duplicate: str = "drop"
    on_bad_label: str = "error"
    on_invalid: str = "replace"
    learned: str = field(default="", repr=False, metadata={"option": False})

    traits: ClassVar[TaskTraits]

    def __post_init__(self) -> None:
        tokenizers.size_of(self.tokens, self.vocabulary_size)
        if self.length < 1:
            raise InputError(f"task.length must be at least 1, got {self.length}.")
        if self.crop not in CROPS:
            raise unknown("task.crop", self.crop, CROPS)
        for name in ("valid_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 0.5:
                raise InputError(
                    f"task.{name} must be above 0 and below 0.5, got {getattr(self, name)}."
                )
        if self.seed < 0:
            raise InputError(f"task.seed must be at least 0, got {self.seed}.")
        self.rules  # noqa: B018 - raises for a rule that there is not

    # What a task says of itself.

    @property
    def title(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @property
    def kind(self) -> str:
        """ "classification", "regression", "labelling" (a class for each token) or "language" (the
        next token)"""
        return "classification"

    @property
    def inputs(self) -> int:
        """Documents of an example."""
        return 1

    @property
    def rules(self) -> Rules:
        """What is done with odd rows."""
        return Rules(self.on_empty, self.on_duplicate, self.on_bad_label, self.on_invalid)

    @property
    def vocabulary(self) -> int:
        """Token ids there may be, with padding; the tokenizer of little data uses fewer."""
        return tokenizers.size_of(self.tokens, self.vocabulary_size)

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(self.labels)

    @abstractmethod
    def sources(self, data_dir: str | None) -> dict[str, Source]:
        """The source of "train" and, if the data have them, "valid" and "test"; `InputError` says
        what is missing."""

    # From texts to token ids.

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """What the training part taught; `InputError` before `fitted`."""
        if self.tokens == "bytes":
            return tokenizers.Bytes()
        if not self.learned:
            raise InputError(
                f"{self.title} has not learned its {self.tokens} yet: prepare its data first."
            )
        return _restored(self.learned)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, cropped as in training; `InputError` for a blank one."""
        if not text.strip():
            raise InputError("the text is empty.")
        ids = self.tokenizer.encode([text])[0]
        if not ids:
            raise InputError(f"the text {text[:40]!r} has no tokens.")
        return self.cropped(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, padding left out; `InputError` for an id beyond the vocabulary."""
        tokenizer = self.tokenizer
        for i in ids:
            if not 0 <= i < tokenizer.size:
                raise InputError(f"token id {i} is not between 0 and {tokenizer.size - 1}.")
        return tokenizer.decode([int(i) for i in ids])

    def cropped(self, ids: list[int], more: int = 0) -> list[int]:
        """At most `length` of the ids, and `more`."""
        n = self.length + more
        if len(ids) <= n:
            return ids
        if self.crop == "head":
            return ids[:n]
        return ids[-n:] if self.crop == "tail" else ids[: n - n // 2] + ids[len(ids) - n // 2 :]

    # Preparing.

    def check(self, data_dir: str | None = None) -> None:
        """Raise `InputError` where the data are not there, or their first row will not do."""
        for name, source in self.sources(data_dir).items():
            first = next(iter(source.rows()), None)
            if first is None:
                raise InputError(f"{self.title}: {name} has no rows.")

    def fitted(self, data_dir: str | None = None) -> "TextTask":
        """This task with what its training part taught; prepared on first use."""
        return replace(
            self, learned=json.dumps(self._prepared(data_dir).notes["learned"], sort_keys=True)
        )

    def facts(self, data_dir: str | None = None) -> dict[str, Any]:
        """What was counted while preparing, by split: rows, why some were left out, labels, share
        of padding."""
        return self._prepared(data_dir).notes["splits"]

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", prepared on first use under `data_dir`, by default
        where TFDS keeps data.

        Raises `InputError` for whatever the rules call an error, or a class of which train has no
        example."""
        found = self._prepared(data_dir)
        return {
            name: from_source(source, self.length, self.vocabulary)
            for name, source in found.splits.items()
        }

    def _prepared(self, data_dir: str | None) -> Prepared:
        sources = self.sources(data_dir)
        options = {k: v for k, v in vars(self).items() if k != "learned"}
        identity = [(name, source.identity) for name, source in sorted(sources.items())]
        dtype = np.min_scalar_type(self.vocabulary - 1)
        token_feature = tfds.features.Tensor(shape=(None,), dtype=dtype.type)
        features: dict[str, Any] = {"tokens": token_feature, "label": self._label_feature()}
        if self.inputs == 2:
            features["tokens2"] = token_feature
        return prepared(
            f"dartformer_{type(self).__name__.lower()}",
            (sorted(options.items()), identity),
            f"{self.title}: {self}.",
            features,
            lambda notes: self._splits(sources, notes),
            data_dir,
            title=self.title,
            label=f"{self.tokens}-{self.length}",
        )

    def _label_feature(self) -> Any:
        if self.kind == "regression":
            return tfds.features.Scalar(np.float32)
        return (
            tfds.features.Tensor(shape=(None,), dtype=np.int32)
            if self.kind in ("labelling", "language")
            else tfds.features.Scalar(np.int32)
        )

    def _splits(self, sources: dict[str, Source], notes: Notes) -> dict[str, Examples]:
        """Three passes over the source: which rows go where, the tokenizer, and the examples."""
        labels, tallies = Labels(self.kind, self.labels), {name: Tally() for name in sources}
        numbers, digests, classes = {}, {}, {}
        for name, source in sources.items():
            found = [
                (number, digest(texts), label if self.kind == "classification" else 0)
                for number, texts, label in kept(source.rows(), self.rules, labels, tallies[name])
            ]
            if not found:
                raise InputError(
                    f"{self.title}: {name} has no rows that can be used "
                    f"({tallies[name].text() or 'it is empty'})."
                )
            numbers[name] = np.array([n for n, _, _ in found], np.int64)
            digests[name] = np.array([d for _, d, _ in found], np.uint64)
            classes[name] = np.array([c for _, _, c in found], np.int64)
        rows = self._divided({name: len(n) for name, n in numbers.items()})
        stay, leaks = without_leaks(
            {part: digests[name][at] for part, (name, at) in rows.items()}, self.on_duplicate
        )
        rows = {part: (name, at[stay[part]]) for part, (name, at) in rows.items()}
        for part, (_, at) in rows.items():
            if not len(at):
                raise InputError(f"{self.title}: no rows are left for {part}.")
        if self.kind == "classification":
            missing = np.setdiff1d(np.arange(self.classes), classes["train"][rows["train"][1]])
            if len(missing):
                raise InputError(
                    f"{self.title}: train has no row of the class "
                    f"{', '.join(self.labels[c] for c in missing)}."
                )
        repeated = {part: int(len(d) - len(np.unique(d))) for part, d in digests.items()}

        def chosen(part: str) -> Iterator[tuple[tuple[str, ...], Any]]:
            name, wanted = rows[part]
            here = iter(numbers[name][wanted].tolist())
            at = next(here, None)
            for number, texts, label in kept(sources[name].rows(), self.rules, labels, Tally()):
                if number == at:
                    yield texts, label
                    at = next(here, None)

        texts_of_train = (t for texts, _ in chosen("train") for t in texts)
        tokenizer = tokenizers.train(
            self.tokens,
            distinct(texts_of_train) if self.inputs == 2 else texts_of_train,
            self.vocabulary,
            split=self.kind == "labelling",
        )
        notes["learned"] = learned = {**tokenizer.state(), **self._scale(chosen)}
        notes["splits"] = {}

        def examples(part: str) -> Iterator[dict[str, Any]]:
            name = rows[part][0]
            facts: dict[str, Any] = {
                "rows": 0,
                "left out or odd": {k: v for k, v in tallies[name].counts.items() if v},
                "also in a later split": leaks[part],
                "repeated in the source": repeated[name],
                "labels": Counter(),
                "cropped": 0,
            }
            used = 0
            stream, encode = chosen(part), Encoder(self, tokenizer)
            while chunk := list(itertools.islice(stream, 500)):
                flat = encode([t for texts, _ in chunk for t in texts])
                for i, (_, label) in enumerate(chunk):
                    each = flat[i * self.inputs : (i + 1) * self.inputs]
                    example = self._example(
                        [ids if len(ids) else [1] for ids, _ in each], label, learned
                    )
                    facts["rows"] += 1
                    facts["cropped"] += any(n > self.length for _, n in each)
                    used += sum(min(n, self.length) for _, n in each)
                    if self.kind == "classification":
                        facts["labels"][self.labels[label]] += 1
                    yield example
            facts["padded share"] = round(1 - used / (facts["rows"] * self.length * self.inputs), 4)
            facts["labels"] = dict(sorted(facts["labels"].items()))
            notes["splits"][part] = facts
            self._say(part, facts, own=name == part)

        return {part: examples(part) for part in ("test", "valid", "train")}

    def _scale(
        self, chosen: Callable[[str], Iterator[tuple[tuple[str, ...], Any]]]
    ) -> dict[str, float]:
        """Mean and standard deviation of numbers to be predicted: training sees them scaled to 0
        and 1."""
        if self.kind != "regression":
            return {}
        values = np.array([label for _, label in chosen("train")], np.float64)
        return {"mean": float(values.mean()), "scale": float(values.std()) or 1.0}

    def value(self, output: float) -> float:
        """The number that an output of the model stands for."""
        learned = json.loads(self.learned)
        return output * learned["scale"] + learned["mean"]

    def _example(self, ids: list[Any], label: Any, learned: dict[str, Any]) -> dict[str, Any]:
        dtype = np.min_scalar_type(self.vocabulary - 1)
        tokens = [np.array(self.cropped(one), dtype) for one in ids]
        if self.kind == "language":
            whole = np.array(self.cropped(ids[0], 1), np.int32)
            tokens, label = [whole[:-1].astype(dtype)], whole[1:]
            if not len(label):  # a single token: nothing follows it
                tokens, label = [whole.astype(dtype)], np.array([-1], np.int32)
        elif self.kind == "labelling":
            label = np.array(self.cropped(label), np.int32)
        elif self.kind == "regression":
            label = (label - learned["mean"]) / learned["scale"]
        return {
            "tokens": tokens[0],
            "label": label,
            **({"tokens2": tokens[1]} if self.inputs == 2 else {}),
        }

    def _divided(self, counts: dict[str, int]) -> dict[str, tuple[str, np.ndarray]]:
        """Source and positions of the rows of each split; what the data lack is cut out of train,
        by `seed`."""
        whole = {name: (name, np.arange(n)) for name, n in counts.items()}
        order, n, at = permutation(counts["train"], self.seed), counts["train"], 0
        for part, fraction in (("test", self.test_fraction), ("valid", self.valid_fraction)):
            if part not in whole:
                count = max(1, round(fraction * n))
                whole[part] = ("train", np.sort(order[at : at + count]))
                at += count
        whole["train"] = ("train", np.sort(order[at:]))
        return whole

    def _say(self, part: str, facts: dict[str, Any], own: bool) -> None:
        """One line; what was odd in a source is said once, of the part that has its name."""
        odd = [f"{n:,} {name}" for name, n in facts["left out or odd"].items() if own]
        if facts["also in a later split"]:
            done = {"drop": ", left out", "keep": ", kept", "error": ""}[self.on_duplicate]
            odd.append(f"{facts['also in a later split']:,} also in a later split{done}")
        if facts["repeated in the source"] and own:
            odd.append(f"{facts['repeated in the source']:,} repeated in the source")
        if facts["cropped"]:
            odd.append(f"{facts['cropped']:,} cropped to {self.length} tokens")
        largest = max(facts["labels"].values(), default=0) / facts["rows"]
        if largest > 0.9:
            odd.append(f"{100 * largest:.0f}% are of one class")
        print(
            f"{self.title} {part}: {facts['rows']:,} rows, {100 * facts['padded share']:.0f}% padding"
            f"{'; ' if odd else ''}{', '.join(odd)}",
            file=sys.stderr,
            flush=True,
        )

    # Simple rules.

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """Rules of `dartformer.tasks.simple` that fit the kind of labels, fitted on `train` and
        scored on `split`."""
        grams = self.tokens in ("bytes", "characters")
        features = simple.occurs(simple.HASHED if grams else self.vocabulary, 4 if grams else 1)
        if self.kind == "regression":
            return {"mean": simple.mean_of_train(train, split)}
        if self.kind == "labelling":
            return {"own_token": simple.own_token(train, split, self.vocabulary, self.classes)}
        if self.kind == "language":
            return simple.bigram(train, split, self.vocabulary)
        found = {"naive_bayes": simple.naive_bayes(train, split, self.classes, features)}
        if self.inputs == 2 and self.classes == 2:
            found["overlap"] = simple.overlap(train, split, features)
        return found


class Encoder:
    """Token ids of texts, and how many each text has.

    The documents of pairs come again and again: there ids are cropped, and kept for the next time.
    """

    HELD = 2**25
    """Ids that are kept at most."""

    def __init__(self, task: TextTask, tokenizer: tokenizers.Tokenizer):
        self.task, self.tokenizer = task, tokenizer
        self.known: dict[int, tuple[Any, int]] = {}
        self.held = 0

    def __call__(self, texts: list[str]) -> list[tuple[Any, int]]:
        """(ids, number) of each text."""
        if self.task.inputs == 1:
            return [(ids, len(ids)) for ids in self.tokenizer.encode(texts)]
        if self.held > self.HELD:
            self.known, self.held = {}, 0
        keys = [digest([text]) for text in texts]
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in self.known}
        dtype = np.min_scalar_type(self.task.vocabulary - 1)
        for key, ids in zip(fresh, self.tokenizer.encode(list(fresh.values())), strict=True):
            self.known[key] = np.array(self.task.cropped(ids), dtype), len(ids)
            self.held += min(len(ids), self.task.length)
        return [self.known[key] for key in keys]


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Each text once: a document that is in many pairs says no more about its words."""
    seen = set()
    for text in texts:
        if (key := digest([text])) not in seen:
            seen.add(key)
            yield text


@lru_cache(maxsize=8)
def _restored(learned: str) -> tokenizers.Tokenizer:
    return tokenizers.restored(json.loads(learned))


def token_names(task: TextTask) -> tuple[str, ...]:
    """The text of every token id; before the task has learned them, their numbers."""
    if task.tokens == "bytes" or task.learned:
        names = task.tokenizer.names()
        return tuple(names + [f"#{i}" for i in range(len(names), task.vocabulary)])
    return tuple(f"#{i}" for i in range(task.vocabulary))
