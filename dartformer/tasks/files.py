"""The user's own data: JSONL, CSV, TSV, Parquet, npz, a folder for each class, a TFDS or saved
`datasets` folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dartformer.data.records import Record, read, splits, tfds_folder
from dartformer.data.rows import Row
from dartformer.errors import InputError, unknown
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.text import Source, TextTask, token_names

VALID_NAMES = ("valid", "validation")

KINDS = ("classification", "regression", "labelling", "language")


class ByKind:
    """The traits of a `Files`, which depend on its `kind`; of the type, those of the default."""

    def __get__(self, task: Any, owner: type) -> TaskTraits:
        kind = "classification" if task is None else task.kind
        return TaskTraits(
            summary="your own data: JSONL, CSV, TSV, Parquet, npz, a folder per class, TFDS or `datasets` folders",
            paper="none: `dartformer new --data FILE` writes its config",
            metric={"regression": "r2", "language": "bits_per_character"}.get(kind, "accuracy"),
            causal=kind == "language",
            per_token=kind in ("labelling", "language"),
        )


@dataclass(frozen=True, kw_only=True)
class Files(TextTask):
    """A text in the column `text` and its label in the column `label`, of the file or folder
    `path`.

    `kind`: "classification" of a text, or of two where `text2` names another column; "regression",
    a number, also of one or two; "labelling", a label for each word, texts and labels separated by
    spaces (or lists); "language", the next byte or character of each text.

    `path` may be `tfds:NAME`, a data set that TFDS has prepared. `valid` and `test` are files of
    their own; without them, splits of those names in `path` are used, else fractions of train.
    `label_names` lists the labels, in order; `dartformer new --data FILE` finds them and writes the
    whole config."""

    path: str = ""
    valid: str = ""
    test: str = ""
    kind: str = "classification"
    text: str = "text"
    text2: str = ""
    label: str = "label"
    label_names: tuple[str, ...] = ()

    traits: ClassVar[Any] = ByKind()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.label_names)) != len(self.label_names):
            raise InputError(f"task.label_names holds a name twice: {', '.join(self.label_names)}.")
        if self.kind not in KINDS:
            raise unknown("task.kind", self.kind, KINDS)
        if self.text2 and self.kind in ("labelling", "language"):
            raise InputError(
                f"task.kind = {self.kind!r} reads one text: leave task.text2 empty, got {self.text2!r}."
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
        return ("value",) if self.kind == "regression" else self.label_names

    @property
    def inputs(self) -> int:
        """Documents of an example."""
        return 2 if self.text2 else 1

    def sources(self, data_dir: str | None) -> dict[str, Source]:
        """Train, and valid and test where there are files or splits of these names."""
        if not self.path:
            raise InputError(
                "task.path is empty: which file? `dartformer new --data FILE` writes a config for one."
            )
        path = located(self.path, data_dir)
        inside = splits(path)
        found = {"train": self._source(path, "train" if "train" in inside else "")}
        if inside and "train" not in inside:
            raise InputError(f"{path} has no split 'train'; it has {', '.join(inside)}.")
        for part, given, names in (
            ("valid", self.valid, VALID_NAMES),
            ("test", self.test, ("test",)),
        ):
            name = next((n for n in names if n in inside), "")
            if given:
                found[part] = self._source(located(given, data_dir), "")
            elif name:
                found[part] = self._source(path, name)
        return found

    def _source(self, path: Path, split: str) -> Source:
        return Source(lambda: self._rows(path, split), (str(path), split, identity(path)))

    def _rows(self, path: Path, split: str) -> Iterator[Row]:
        for number, record in enumerate(read(path, split), 1):
            where = f"{path.name}{f' {split}' if split else ''}, row {number}"
            texts = tuple(
                text_of(column(record, name, where), where)
                for name in (self.text, self.text2)
                if name
            )
            yield Row(
                texts, None if self.kind == "language" else column(record, self.label, where), where
            )


def located(path: str, data_dir: str | None) -> Path:
    """The file or folder that `path` names; `InputError` where there is none."""
    if path.startswith("tfds:"):
        return tfds_folder(path.removeprefix("tfds:"), data_dir)
    found = Path(path).expanduser()
    if not found.exists():
        raise InputError(f"there is no file or folder {path} (looked in {found.absolute()}).")
    return found


def identity(path: Path) -> list[Any]:
    """Size and time of a file, or of every file of a folder: another set is prepared when one
    changes."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return [(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def column(record: Record, name: str, where: str) -> Any:
    """A record's column; `InputError` lists the columns there are."""
    if name not in record:
        raise InputError(f"{where}: {unknown('column', name, record)}")
    return record[name]


def text_of(value: Any, where: str) -> str:
    """A text; a missing one is empty, and a number is written out."""
    if value is None:
        return ""
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return " ".join(value)  # words, of texts whose words are labelled
    raise InputError(f"{where}: a text is needed, got {type(value).__name__}.")
