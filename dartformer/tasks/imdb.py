"""IMDb reviews, positive or negative, as bytes or as words.

Both are tasks of Long Range Arena and of the papers before it.

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

from dartformer.data.compressed import members, suffix
from dartformer.data.locations import identity, located
from dartformer.data.records import Record, read, splits
from dartformer.data.rows import Row
from dartformer.errors import InputError
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.preparation import Source
from dartformer.tasks.text import TextTask

LABELS = ("neg", "pos")
ROWS = 25_000
SERVER = "http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
PAPER = "Maas et al. 2011; as bytes in Long Range Arena, Tay et al. 2020, 2011.04006"


@dataclass(frozen=True, kw_only=True)
class _Imdb(TextTask):
    """Reviews from `path`, or from TFDS's `imdb_reviews` where that is empty.

    TFDS's set is read where it is prepared, as array_record or TFRecord.

    Attributes:
      path: a folder `aclImdb/`, the archive `aclImdb_v1.tar.gz` (which is read, never unpacked), or a
        folder with `train.jsonl` and `test.jsonl` (compressed or not; columns `text` and `label`).
      download: let TFDS fetch its set first.
      rows: refuse a set without all 25,000 rows of each split; False for parts of the data.
    """

    path: str = ""
    download: bool = False
    rows: bool = True
    valid_fraction: float = 0.1

    @property
    def title(self) -> str:
        """Its name in messages."""
        return "IMDb"

    @property
    def labels(self) -> tuple[str, ...]:
        """Negative and positive."""
        return LABELS

    def sources(self, data_dir: str | None) -> dict[str, Source]:
        """Train and test; `InputError` says which files are missing."""
        if self.path:
            path = located(self.path, data_dir)
        else:
            path = self._tfds(data_dir)
        version: object
        if path.is_file():
            version = identity(path)
        else:
            version = _folder_times(path)

        def source(split: str) -> Source:
            return Source(lambda: self._rows(path, split), (str(path), split, version))

        return {"train": source("train"), "test": source("test")}

    def _tfds(self, data_dir: str | None) -> Path:
        try:
            return located("tfds:imdb_reviews", data_dir)
        except InputError as error:
            if not self.download:
                reason = str(error).rstrip(".")
                raise InputError(
                    f"no IMDb data: task.path is empty, and {reason}. Set task.path to a folder "
                    f"aclImdb/, to aclImdb_v1.tar.gz, or to a folder with train.jsonl and "
                    f"test.jsonl; or set task.download=True."
                ) from None
        _download(data_dir)
        return located("tfds:imdb_reviews", data_dir)

    def _rows(self, path: Path, split: str) -> Iterator[Row]:
        """The rows of a split; `InputError` where there are fewer or more than there should be."""
        count = 0
        for count, record in enumerate(records(path, split), 1):
            label = record["label"]
            if label in (0, 1):
                label = LABELS[label]
            yield Row((str(record["text"]),), label, f"{path.name} {split}, row {count}")
        if self.rows and count != ROWS:
            raise InputError(
                f"IMDb {split} in {path} has {count:,} rows; it should have {ROWS:,} (task.rows)."
            )


def _download(data_dir: str | None) -> None:
    """Have TFDS fetch and prepare the data.

    Raises `InputError` within seconds where the server cannot be reached: TFDS itself would try for
    minutes."""
    import tensorflow_datasets as tfds

    try:
        # A request without a body shows at once whether the server answers.
        with urllib.request.urlopen(urllib.request.Request(SERVER, method="HEAD"), timeout=20):
            pass
        with contextlib.redirect_stdout(sys.stderr):  # standard output may be JSON
            builder = tfds.builder("imdb_reviews", data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except Exception as error:
        reason = getattr(error, "reason", error)
        raise InputError(
            f"TFDS cannot download imdb_reviews from {SERVER}: {reason}. Fetch aclImdb_v1.tar.gz "
            f"where there is a network, and set task.path to it."
        ) from error


def records(path: Path, split: str) -> Iterator[Record]:
    """`{"text", "label"}` of a split of an archive or a folder.

    The folder is `aclImdb`, one of TFDS, or one of JSONL files."""
    if path.is_file():
        yield from _archived(path, split)
    elif all((path / split / label).is_dir() for label in LABELS):
        yield from _unpacked(path, split)
    elif split in splits(path):
        yield from read(path, split)
    else:
        raise InputError(
            f"no IMDb {split} in {path}: looked for {split}/neg and {split}/pos, for "
            f"{split}.jsonl, and for a TFDS folder."
        )


def _archived(path: Path, split: str) -> Iterator[Record]:
    """Reviews of the archive `aclImdb_v1.tar.gz`."""
    if suffix(path) != ".tar":
        raise InputError(
            f"{path} is not a tar archive. Set task.path to a folder, or to aclImdb_v1.tar.gz."
        )
    for name, data in members(path):
        *_, folder, label, file = ("", "", *name.split("/"))
        if folder == split and label in LABELS and file.endswith(".txt"):
            yield {"text": _text(data.read()), "label": label}


def _unpacked(path: Path, split: str) -> Iterator[Record]:
    """Reviews of a folder `aclImdb`."""
    for label in LABELS:
        entries = os.scandir(path / split / label)
        # Sorted: a file system lists a folder in any order, and `seed` draws by position.
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.endswith(".txt"):
                yield {"text": _text(Path(entry.path).read_bytes()), "label": label}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _folder_times(path: Path) -> list[tuple[str, int]]:
    """Names and times of a folder's entries, and of its folders' folders.

    Its 100,000 files would take too long. Only what is named after a split counts: the data may be
    prepared in the same folder."""
    times = []
    for split in ("train", "test"):
        entries = sorted(path.glob(f"*{split}*"))
        entries += filter(Path.is_dir, sorted(path.glob(f"*{split}*/*")))
        for entry in entries:
            times.append((str(entry.relative_to(path)), entry.stat().st_mtime_ns))
    return times


@dataclass(frozen=True, kw_only=True)
class ImdbBytes(_Imdb):
    """IMDb reviews as bytes."""

    tokens: str = "bytes"
    length: int = 1000

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Classify film reviews as positive or negative, byte by byte", paper=PAPER
    )


@dataclass(frozen=True, kw_only=True)
class ImdbTokens(_Imdb):
    """IMDb reviews as words, or by byte-pair encoding."""

    tokens: str = "words"
    length: int = 256

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Classify film reviews as positive or negative, word by word", paper=PAPER
    )
