"""The user's own data: JSONL, CSV, TSV, Parquet, npz, or a folder in one of several forms."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dartformer.data.folders import split_of
from dartformer.data.locations import identity, located
from dartformer.data.records import Record, read, splits
from dartformer.data.rows import PARTS, Labels, Row, canonical
from dartformer.data.tokens import words
from dartformer.errors import InputError, brief, unknown
from dartformer.tasks.base import TaskTraits, Unlabelled
from dartformer.tasks.encoding import token_names
from dartformer.tasks.preparation import Source
from dartformer.tasks.text import TextTask

KINDS = ("classification", "regression", "labelling", "language")

METRICS = {"regression": "r2", "language": "bits_per_character"}
"""The metric of each kind that is not scored by accuracy."""


class ByKind:
    """The traits of a `Files`, which depend on its `kind`; on the class, those of the default."""

    def __get__(self, task: "Files | None", owner: type) -> TaskTraits:
        kind = "classification"
        if task is not None:
            kind = task.kind
        return TaskTraits(
            summary="Your own data: JSONL, CSV, TSV, Parquet, npz, a folder per class, TFDS or "
            "`datasets` folders",
            paper="none: `dartformer new --data FILE` writes its config",
            metric=METRICS.get(kind, "accuracy"),
            causal=kind == "language",
            per_token=kind in ("labelling", "language"),
        )


@dataclass(frozen=True, kw_only=True)
class Files(TextTask):
    """Texts and their labels in two columns, `text` and `label`, of the file or folder `path`.

    Attributes:
      path: a file, a folder, `tfds:NAME`, a data set that TFDS has prepared, or `hf:OWNER/NAME`, one
        of the Hugging Face hub (`hf:OWNER/NAME:CONFIGURATION`).
      valid: a file for validation; empty for the split of that name in `path`, or else a part of train.
      test: a file for test; empty for the split of that name in `path`, or else a part of train.
      kind: "classification" of one or two texts; "regression", a number for one or two texts;
        "labelling", a label for each word; "language", the next byte or character.
      text: the column of texts.
      text2: the column of second texts, to compare with the first; empty for one text.
      label: the column of labels; for "labelling" lists, or texts with spaces between the labels.
      label_names: the labels in order; `dartformer new --data FILE` finds them.
      group: the column of groups, whose rows are all in one split; empty for none.
      split: the column that says which split a row is in; empty for none.
      sentence: with a word in each row, the column that says which sentence it is of (blank: that of
        the row before); empty where a row is a text.
    """

    path: str = ""
    valid: str = ""
    test: str = ""
    kind: str = "classification"
    text: str = "text"
    text2: str = ""
    label: str = "label"
    label_names: tuple[str | int, ...] = ()
    group: str = ""
    split: str = ""
    sentence: str = ""

    traits: ClassVar[Any] = ByKind()

    def __post_init__(self) -> None:
        super().__post_init__()
        # Two names of one class, such as 1 and "1.0", would be one number to the model.
        if len(Labels(self.kind, self.label_names).numbers) != len(self.label_names):
            names = ", ".join(map(canonical, self.label_names))
            raise InputError(f"task.label_names has a name twice: {names}.")
        if self.kind not in KINDS:
            raise unknown("task.kind", self.kind, KINDS)
        if self.sentence and (self.kind != "labelling" or self.group or self.split):
            raise InputError(
                "task.sentence joins the words of rows for task.kind='labelling', and works without "
                "task.group and task.split. Leave it empty otherwise."
            )
        if self.text2 and self.kind in ("labelling", "language"):
            raise InputError(
                f"task.kind = {self.kind!r} reads one text: leave task.text2 empty, got "
                f"{self.text2!r}."
            )
        if self.label_names and self.kind in ("regression", "language"):
            raise InputError(
                f"task.kind = {self.kind!r} has no classes: leave task.label_names empty."
            )
        if self.kind == "labelling" and self.tokens != "words":
            raise InputError(
                f"task.kind = 'labelling' needs task.tokens = 'words', got {self.tokens!r}."
            )
        if self.kind == "language" and self.tokens not in ("bytes", "characters"):
            raise InputError(
                f"task.kind = 'language' needs task.tokens = 'bytes' or 'characters', got "
                f"{self.tokens!r}."
            )

    @property
    def title(self) -> str:
        """The data's name."""
        return Path(self.path).name or "files"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, of the next token, or of the one number."""
        if self.kind == "language":
            return token_names(self)
        if self.kind == "regression":
            return ("value",)
        # Whole numbers are texts here, as in the file.
        return tuple(map(canonical, self.label_names))

    @property
    def inputs(self) -> int:
        """Documents of an example."""
        if self.text2:
            return 2
        return 1

    def sources(self, data_dir: str | None) -> dict[str, Source]:
        """Train, and valid and test where there are files or splits of these names."""
        path = path_of(self, data_dir)
        if self.split:
            return self._sources_by_column(path)
        sources = {}
        for part, (place, name) in places(self, splits(path), data_dir).items():
            sources[part] = self._source(place, name)
        return sources

    def unlabelled(self, path: Path) -> Iterator[Unlabelled]:
        """The texts of each row of a table, without its label."""
        records = read(path)
        if self.sentence:
            records = joined_words(records, self.sentence, path.name)
        for number, record in enumerate(records, 1):
            where = f"{path.name}, row {number}"
            texts = []
            for name in filter(None, (self.text, self.text2)):
                texts.append(text_of(column(record, name, where), where))
            document: str | list[str] = texts
            if not self.text2:
                document = texts[0]
            yield Unlabelled(where, document)

    def _sources_by_column(self, path: Path) -> dict[str, Source]:
        """The splits that the column `split` names."""
        sources = {}
        version = identity(path)
        for part in parts_in_column(path, self.split, json.dumps(version)):
            rows = partial(self._rows, path, "", part)
            sources[part] = Source(rows, (str(path), self.split, part, version))
        return sources

    def _source(self, path: Path, split: str) -> Source:
        return Source(lambda: self._rows(path, split), (str(path), split, identity(path)))

    def _rows(self, path: Path, split: str, part: str = "") -> Iterator[Row]:
        """The rows of a split; of `part` alone, as the column `split` names it, unless it is ""."""
        columns = list(filter(None, (self.text, self.text2)))
        source = f"{path.name} {split}".rstrip()
        records = enumerate(read(path, split), 1)
        if self.sentence:
            records = enumerate(joined_words(read(path, split), self.sentence, source), 1)
        for number, record in records:
            where = f"{source}, row {number}"
            if part and part_of(record, self.split, where) != part:
                continue
            values = [column(record, name, where) for name in columns]
            texts = tuple(text_of(value, where) for value in values)
            label = None
            if self.kind != "language":
                label = column(record, self.label, where)
            fault = ""
            if self.kind == "labelling":
                fault = unlike_words(values[0])
            group = ""
            if self.group:
                group = canonical(column(record, self.group, where))
            yield Row(texts, label, where, fault, group)


class OwnData(Protocol):
    """The options of a task on the user's data that say where the splits are."""

    @property
    def path(self) -> str: ...
    @property
    def valid(self) -> str: ...
    @property
    def test(self) -> str: ...


def path_of(task: OwnData, data_dir: str | None) -> Path:
    """Where the data are; `InputError` where no option says so, or nothing is there."""
    if not task.path:
        raise InputError(
            "task.path is empty. Set it to a file or folder, or let `dartformer new --data FILE` "
            "write a config."
        )
    return located(task.path, data_dir)


def places(
    task: OwnData, available: Collection[str], data_dir: str | None
) -> dict[str, tuple[Path, str]]:
    """Where each split is: a file or folder, and the split's name in it, "" for the whole.

    Args:
      task: says where the data are.
      available: the splits that they have.
      data_dir: the folder for prepared data sets.

    Raises `InputError` where the data have splits, and none is train.
    """
    path = path_of(task, data_dir)
    if available and "train" not in available:
        raise InputError(f"{path} has no split 'train'; it has {', '.join(available)}.")
    train = ""
    if available:
        train = "train"
    listed = {"train": (path, train)}
    for part, file in (("valid", task.valid), ("test", task.test)):
        # A file that is named for a part comes before a split of the folder.
        if file:
            listed[part] = located(file, data_dir), ""
        elif part in available:
            listed[part] = path, part
    return listed


@lru_cache(maxsize=4)
def parts_in_column(path: Path, name: str, version: str) -> tuple[str, ...]:
    """The splits that a column names, train first; `version` changes with the file.

    Raises `InputError` for another name, or where none is train."""
    parts = set()
    for number, record in enumerate(read(path), 1):
        parts.add(part_of(record, name, f"{path.name}, row {number}"))
    if "train" not in parts:
        names = ", ".join(sorted(parts))
        raise InputError(f"the column {name!r} of {path.name} has no row 'train', only {names}.")
    return tuple(part for part in PARTS if part in parts)


def part_of(record: Record, name: str, where: str) -> str:
    """The split that the column `name` of a record says it is in."""
    value = canonical(column(record, name, where))
    part = split_of(value)
    if part not in PARTS:
        raise InputError(
            f"{where}: the column {name!r} says {brief(value)}, which is no split. Its values must "
            f"be train, valid (validation, val, dev) and test."
        )
    return part


def joined_words(records: Iterable[Record], sentence: str, source: str) -> Iterator[Record]:
    """A record for each sentence: its columns are lists of those of its words."""
    words_of: list[Record] = []
    name = ""
    for number, record in enumerate(records, 1):
        value = canonical(column(record, sentence, f"{source}, row {number}") or "")
        if words_of and value not in ("", name):
            yield _joined(words_of, sentence)
            words_of = []
        name = value or name
        words_of.append(record)
    if words_of:
        yield _joined(words_of, sentence)


def _joined(records: list[Record], sentence: str) -> Record:
    joined: Record = {sentence: records[0][sentence]}
    for name in records[0]:
        if name != sentence:
            joined[name] = [canonical(record.get(name)) for record in records]
    return joined


def column(record: Record, name: str, where: str) -> Any:
    """The value of a record's column; `InputError` lists the columns."""
    if name not in record:
        raise InputError(f"{where}: {unknown('column', name, record)}")
    return record[name]


def text_of(value: object, where: str) -> str:
    """A text; a missing one is empty, and a number is written out."""
    if value is None:
        return ""
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return " ".join(value)  # words, of texts whose words are labelled
    raise InputError(f"{where}: a text is needed, got {type(value).__name__}.")


def unlike_words(value: object) -> str:
    """What is wrong with a list of words, one of which is none or several."""
    if not isinstance(value, list):
        return ""
    for word in value:
        if len(words(word)) != 1:
            return f"its word {brief(word)} is {len(words(word))} words"
    return ""
