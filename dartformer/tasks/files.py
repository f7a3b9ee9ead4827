"""The user's own data: JSONL, CSV, TSV, Parquet, npz, a folder for each class, a TFDS or saved `datasets` folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from dartformer.errors import InputError, unknown
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.records import Record, read, splits, tfds_folder
from dartformer.tasks.rows import Row
from dartformer.tasks.text import Source, TextTask

VALID_NAMES = ("valid", "validation")


@dataclass(frozen=True, kw_only=True)
class Files(TextTask):
    """A text in the column `text` and its class in the column `label`, of the file or folder `path`.

    `path` may be `tfds:NAME`, a data set that TFDS has prepared. `valid` and `test` are files of their own; without
    them, splits of those names in `path` are used, else fractions of train. `label_names` lists the labels, in order;
    `dartformer new --data FILE` finds them and writes the whole config.
    """

    path: str = ""
    valid: str = ""
    test: str = ""
    text: str = "text"
    label: str = "label"
    label_names: tuple[str, ...] = ()

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="your own data: JSONL, CSV, TSV, Parquet, npz, a folder for each class, TFDS and `datasets` folders",
        paper="none: `dartformer new --data FILE` writes its config")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.label_names)) != len(self.label_names):
            raise InputError(f"task.label_names holds a name twice: {', '.join(self.label_names)}.")

    @property
    def title(self) -> str:
        """The data's name."""
        return Path(self.path).name or "files"

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.label_names

    def sources(self, data_dir: str | None) -> dict[str, Source]:
        """Train, and valid and test where there are files or splits of these names."""
        if not self.path:
            raise InputError("task.path is empty: which file? `dartformer new --data FILE` writes a config for one.")
        path = located(self.path, data_dir)
        inside = splits(path)
        found = {"train": self._source(path, "train" if "train" in inside else "")}
        if inside and "train" not in inside:
            raise InputError(f"{path} has no split 'train'; it has {', '.join(inside)}.")
        for part, given, names in (("valid", self.valid, VALID_NAMES), ("test", self.test, ("test",))):
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
            yield Row((text_of(column(record, self.text, where), where),), column(record, self.label, where), where)


def located(path: str, data_dir: str | None) -> Path:
    """The file or folder that `path` names; `InputError` where there is none."""
    if path.startswith("tfds:"):
        return tfds_folder(path.removeprefix("tfds:"), data_dir)
    found = Path(path).expanduser()
    if not found.exists():
        raise InputError(f"there is no file or folder {path} (looked in {found.absolute()}).")
    return found


def identity(path: Path) -> list[Any]:
    """Size and time of a file, or of every file of a folder: another set is prepared when one changes."""
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
    raise InputError(f"{where}: a text is needed, got {type(value).__name__}.")
