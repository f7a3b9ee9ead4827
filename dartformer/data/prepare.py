"""Prepares data sets on disk: each once, completely, checked, and by one process at a time.

Every task's examples go through a TFDS builder that writes array_record files; TensorFlow is never
imported. TFDS writes to another folder and renames it at the end, so that an unfinished data set
never looks complete."""

import contextlib
import hashlib
import io
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from rich.markup import escape
from rich.progress import track

from dartformer.errors import InputError
from dartformer.machine import locks
from dartformer.machine.printable import note
from dartformer.machine.progress import console
from dartformer.machine.workdir import crc32

if TYPE_CHECKING:  # imported where data are prepared: a loaded model needs neither
    from tensorflow_datasets.features import FeatureConnector

    from dartformer.data.builder import Builder

Item = TypeVar("Item")

Example = Mapping[str, Any]
"""`{"tokens": [n], "label": int}`; the label may be a float, or [n], one for each token; a second
document is `tokens2`."""

Examples = Iterable[Example]

Notes = dict[str, Any]
"""Kept with a prepared set: how many rows were dropped and why, a tokenizer, labels.

Plain data, or arrays, which have files of their own."""

CHECKED_BYTES = 256 * 2**20
"""A set of up to this size is compared with its checksums when it is opened; of a larger one only
the sizes of the files are."""


class Records(Protocol):
    """A TFDS data source: records by index, decoded."""

    split: str
    dataset_info: Any

    def __len__(self) -> int: ...
    def __getitems__(self, indices: Sequence[int]) -> Iterable[Example]: ...


@dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    Attributes:
      splits: TFDS data sources by split.
      notes: from preparing it; arrays are mapped from their files.
    """

    splits: Mapping[str, Records]
    notes: Notes


def prepared(
    name: str,
    options: object,
    description: str,
    features: "Mapping[str, FeatureConnector]",
    splits: Callable[[Notes], Mapping[str, Examples]],
    data_dir: str | None,
    *,
    title: str,
    label: str = "",
    totals: Mapping[str, int] | None = None,
) -> Prepared:
    """The data set `name` of `options`, prepared under `data_dir` unless it is there.

    Args:
      name: of the set, an identifier.
      options: everything that decides its content, with a `repr` that is the same in every process.
      description: one sentence kept with the data.
      features: TFDS features of an example; use `tfds.features.Tensor`, which is ten times faster
        than `Sequence`.
      splits: called once if the set must be prepared, with empty `Notes` to fill; returns the
        examples of every split, which are read one split after the other.
      data_dir: a folder; None for where TFDS keeps data.
      title: its name in progress lines.
      label: a readable part of the folder's name.
      totals: how many examples a split will have, for progress lines.

    Raises:
      InputError: the folder cannot be written, or a prepared file is missing or not as it was
        written.
    """
    import tensorflow_datasets as tfds

    from dartformer.data.builder import Builder, Recipe

    digest = hashlib.blake2b(repr(options).encode(), digest_size=6).hexdigest()
    folder = f"{label}-{digest}".removeprefix("-")
    config = tfds.core.BuilderConfig(name=folder)

    def with_bars(notes: Notes) -> Mapping[str, Examples]:
        timed = {}
        for part, examples in splits(notes).items():
            total = (totals or {}).get(part)
            timed[part] = with_progress(examples, total, f"{title} {part}")
        return timed

    recipe = Recipe(name, description, features, with_bars)

    def new_builder() -> Builder:
        return Builder(recipe, data_dir=data_dir, config=config, file_format="array_record")

    with _quiet():
        builder = new_builder()
        if not builder.is_prepared():
            try:
                with alone(Path(builder.data_path)):
                    # Another process may have prepared it while this one waited for the lock.
                    builder = new_builder()
                    if not builder.is_prepared():
                        _prepare(builder)
            except OSError as error:
                raise InputError(f"cannot write {title} to {builder.data_path}: {error}") from error
        _verify(builder)
        return Prepared(builder.as_data_source(), _notes(builder))


def _prepare(builder: "Builder") -> None:
    """Write the data set; the caller holds its lock."""
    import tensorflow_datasets as tfds

    # Incomplete folders are those of killed processes: no other process can hold the lock.
    for incomplete in Path(builder.data_path).parent.glob("incomplete.*"):
        shutil.rmtree(incomplete, ignore_errors=True)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )


def _notes(builder: "Builder") -> Notes:
    from dartformer.data.builder import ARRAY

    notes = dict(builder.info.metadata["notes"])
    for name in builder.info.metadata.get("files", {}):
        file = Path(builder.data_path, name)
        if file.suffix == ARRAY:
            # A plain array over the same file: indexing a memmap makes memmaps, which is slower.
            notes[file.stem] = np.asarray(np.load(file, mmap_mode="r"))
    return notes


def _verify(builder: "Builder") -> None:
    """Raise `InputError` unless the files are as they were written."""
    folder = Path(builder.data_path)
    remedy = f"Delete {folder} and run again to prepare it again."
    written = builder.info.metadata.get("files", {})
    thorough = sum(size for size, _ in written.values()) <= CHECKED_BYTES
    for name, (size, crc) in written.items():
        file = folder / name
        if not file.exists():
            raise InputError(f"the prepared data set {folder} lacks {name}. {remedy}")
        if file.stat().st_size != size or (thorough and crc32(file) != crc):
            raise InputError(
                f"{file} is not as it was written (its size or checksum differs). {remedy}"
            )
    for split, source in builder.as_data_source().items():
        count = builder.info.splits[split].num_examples
        if len(source) != count:
            raise InputError(
                f"split {split!r} of {folder} has {len(source):,} rows, and {count:,} were "
                f"written. {remedy}"
            )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a data set; another process that prepares the same one waits.

    The system frees the lock of a killed process."""
    config = folder.parent
    config.parent.mkdir(parents=True, exist_ok=True)
    with open(config.parent / f".{config.name}.lock", "a") as lock:
        try:
            locks.lock(lock, wait=False)
        except BlockingIOError:
            note(f"waiting for another process that prepares {config}")
            locks.lock(lock, wait=True)
        yield


def write_once(folder: Path, write: Callable[[Path], None], part_of: Path | None = None) -> None:
    """Let `write` fill a folder, unless it is there.

    One process writes at a time; the lock is that of `part_of`, a data set, if it is in one. The
    folder appears complete, by a renaming, so a process that was
    killed half-way starts again. Raises `OSError` where it cannot be written."""
    if folder.exists():
        return
    with alone(part_of or folder):
        # Another process may have written it while this one waited for the lock.
        if folder.exists():
            return
        unfinished = folder.with_name(f"{folder.name}.part")
        # What is there was left by a process that was killed: this one holds the lock.
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        os.replace(unfinished, folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence TFDS.

    It would warn about a configuration it does not know, show progress bars, and write to standard
    output."""
    import tensorflow_datasets as tfds

    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
        tfds.enable_progress_bar()


def with_progress(stream: Iterable[Item], total: int | None, name: str) -> Iterator[Item]:
    """`stream`, with its progress on standard error.

    A bar on a terminal, else a line every ten seconds and at the end; neither where progress is
    turned off."""
    if console.quiet:
        yield from stream
        return
    if console.is_terminal:
        yield from track(stream, escape(name), total, console=console)  # its text is markup
        return
    start = last = time.monotonic()
    i = 0
    for i, item in enumerate(stream, 1):
        yield item
        now = time.monotonic()
        if now - last >= 10:
            last = now
            remaining = ""
            if total is not None:
                seconds = math.ceil((now - start) * (total / i - 1))
                remaining = f"/{total:,}  {seconds} s left"
            note(f"{name}  {i:,}{remaining}")
    expected = i
    if total is not None:
        expected = total
    note(f"{name}  {i:,}/{expected:,}  done")
