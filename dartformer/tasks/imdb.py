"""IMDb reviews, positive or negative, as bytes or as words: two tasks of Long Range Arena and of
the papers before it.

The data are Maas et al. 2011's: 25,000 reviews to train on and 25,000 to test. There is no valid
split: it is cut out of train, and never out of test (both public code bases select on test)."""

import contextlib
import os
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dartformer.data.records import Record, members, read, splits, suffix
from dartformer.data.rows import Row
from dartformer.errors import InputError
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.files import identity, located
from dartformer.tasks.text import Source, TextTask

LABELS = ("neg", "pos")
ROWS = 25_000
SERVER = "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
PAPER = "Maas et al. 2011; as bytes in Long Range Arena, Tay et al. 2020, 2011.04006"


@dataclass(frozen=True, kw_only=True)
class _Imdb(TextTask):
    """`path` is a folder `aclImdb/`, the archive `aclImdb_v1.tar.gz` (which is read, never
    unpacked), or a folder with `train.jsonl` and `test.jsonl` (compressed or not; columns `text`
    and `label`). Left empty, TFDS's `imdb_reviews` is read where it is prepared, as array_record or
    TFRecord; with `download`, TFDS fetches it first. `rows` says whether all 25,000 of each split
    must be there; False for parts of the data."""

    path: str = ""
    download: bool = False
    rows: bool = True
    valid_fraction: float = 0.1

    @property
    def title(self) -> str:
        """What messages call it."""
        return "IMDb"

    @property
    def labels(self) -> tuple[str, ...]:
        """Negative and positive."""
        return LABELS

    def sources(self, data_dir: str | None) -> dict[str, Source]:
        """Train and test, wherever they are; `InputError` says what was looked for, and where."""
        if not self.path:
            path = self._tfds(data_dir)
        else:
            path = located(self.path, data_dir)
        known = identity(path) if path.is_file() else _light(path)

        def source(split: str) -> Source:
            return Source(lambda: self._counted(path, split), (str(path), split, known))

        return {"train": source("train"), "test": source("test")}

    def _tfds(self, data_dir: str | None) -> Path:
        try:
            return located("tfds:imdb_reviews", data_dir)
        except InputError as error:
            if not self.download:
                raise InputError(
                    f"no IMDb data: task.path is empty, and {str(error).rstrip('.')}. Set task.path to a folder "
                    f"aclImdb/, to aclImdb_v1.tar.gz, or to a folder with train.jsonl and test.jsonl; or set "
                    f"task.download = True."
                ) from None
        _download(data_dir)
        return located("tfds:imdb_reviews", data_dir)

    def _counted(self, path: Path, split: str) -> Iterator[Row]:
        """The rows of a split; `InputError` where there are fewer or more than there should be."""
        count = 0
        for count, record in enumerate(records(path, split), 1):
            label = record["label"]
            yield Row(
                (str(record["text"]),),
                LABELS[label] if label in (0, 1) else label,
                f"{path.name} {split}, row {count}",
            )
        if self.rows and count != ROWS:
            raise InputError(
                f"IMDb {split} in {path} has {count:,} rows; it should have {ROWS:,} (task.rows)."
            )


def _download(data_dir: str | None) -> None:
    """Have TFDS fetch and prepare the data; `InputError` within seconds where the server cannot be
    reached, which TFDS itself would try for minutes."""
    import tensorflow_datasets as tfds

    try:
        with urllib.request.urlopen(urllib.request.Request(SERVER, method="HEAD"), timeout=20):
            pass
        with contextlib.redirect_stdout(sys.stderr):  # standard output may be JSON
            tfds.builder(
                "imdb_reviews", data_dir=data_dir, file_format="array_record"
            ).download_and_prepare()
    except Exception as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"TFDS cannot download imdb_reviews from {SERVER}: {reason}. Fetch aclImdb_v1.tar.gz where "
            f"there is a network, and set task.path to it."
        ) from error


def records(path: Path, split: str) -> Iterator[Record]:
    """`{"text", "label"}` of a split of an archive, an `aclImdb` folder, a TFDS folder or a folder
    of JSONL files."""
    if path.is_file():
        if suffix(path) != ".tar":
            raise InputError(
                f"{path} is no tar archive: IMDb is read from a folder, or from aclImdb_v1.tar.gz."
            )
        for name, data in members(path):
            parts = name.split("/")
            if (
                len(parts) >= 3
                and parts[-3] == split
                and parts[-2] in LABELS
                and name.endswith(".txt")
            ):
                yield {"text": data.read().decode("utf-8", "surrogateescape"), "label": parts[-2]}
        return
    if all((path / split / label).is_dir() for label in LABELS):
        for label in LABELS:
            for file in sorted(os.scandir(path / split / label), key=lambda entry: entry.name):
                if file.name.endswith(".txt"):
                    yield {
                        "text": Path(file.path).read_bytes().decode("utf-8", "surrogateescape"),
                        "label": label,
                    }
        return
    if split not in splits(path):
        raise InputError(
            f"no IMDb {split} in {path}: looked for {split}/neg and {split}/pos, for {split}.jsonl, and "
            f"for a TFDS folder."
        )
    yield from read(path, split)


def _light(path: Path) -> list[tuple[str, int]]:
    """Names and times of what lies in a folder, two levels deep: its 100,000 files are not looked
    at one by one."""
    return [
        (str(p.relative_to(path)), p.stat().st_mtime_ns)
        for depth in ("*", "*/*")
        for p in sorted(path.glob(depth))
        if p.is_dir() or depth == "*"
    ]


@dataclass(frozen=True, kw_only=True)
class ImdbBytes(_Imdb):
    """IMDb reviews as bytes."""

    tokens: str = "bytes"
    length: int = 1000

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="is a film review, read byte by byte, positive?", paper=PAPER
    )


@dataclass(frozen=True, kw_only=True)
class ImdbTokens(_Imdb):
    """IMDb reviews as words, or by byte-pair encoding."""

    tokens: str = "words"
    length: int = 256

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="is a film review, read word by word, positive?", paper=PAPER
    )
