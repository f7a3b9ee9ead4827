"""How a data set comes to lie prepared on disk: once, whole, checked, and by one process at a time.

Every task's examples go through a TFDS builder that writes array_record files; TensorFlow is never
imported. TFDS writes to another folder and renames it at the end, so that what was killed half-way
never looks whole."""

import contextlib
import fcntl
import hashlib
import io
import logging
import math
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from rich.progress import track

from dartformer.errors import InputError
from dartformer.machine.progress import console

Examples = Iterable[Mapping[str, Any]]
Notes = dict[str, Any]
"""Plain data kept with a prepared set: how many rows were dropped and why, a tokenizer, labels."""

CHECKED_BYTES = 256 * 2**20
"""Up to this size a set is compared with its checksums when opened; of a larger one only the files'
sizes are."""


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: TFDS data sources by split, and the notes that were made while
    preparing."""

    splits: Mapping[str, Any]
    notes: Notes


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Ask no server about data that are made here."""


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes `splits()` as a TFDS data set, with checksums of its files."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        name: str,
        title: str,
        description: str,
        features: Mapping[str, Any],
        splits: Callable[[Notes], Mapping[str, Examples]],
        totals: Mapping[str, int],
        **arguments: Any,
    ):
        self.name = name
        self._made = title, description, features, splits, totals
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        _, description, features, _, _ = self._made
        return _Info(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(dict(features)),
            disable_shuffling=True,  # the order is the task's business, and batches are shuffled anyway
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Any]]]:
        title, _, _, splits, totals = self._made
        self.notes: Notes = {}
        return {
            name: enumerate(with_progress(examples, totals.get(name), f"{title} {name}"))
            for name, examples in splits(self.notes).items()
        }

    def _generate_examples(self) -> Iterator[tuple[int, Any]]:
        raise AssertionError("every split has its own generator")

    def _download_and_prepare(self, *arguments: Any, **options: Any) -> None:
        super()._download_and_prepare(*arguments, **options)
        files = {
            p.name: [p.stat().st_size, _crc(p)]
            for p in sorted(Path(self.data_path).glob("*.array_record*"))
        }
        self.info.metadata.update({"files": files, "notes": self.notes})


def prepared(
    name: str,
    options: Any,
    description: str,
    features: Mapping[str, Any],
    splits: Callable[[Notes], Mapping[str, Examples]],
    data_dir: str | None,
    *,
    title: str,
    label: str = "",
    totals: Mapping[str, int] | None = None,
) -> Prepared:
    """The data set `name` of `options`, made under `data_dir` unless it is there.

    Args:
      name: of the set, an identifier.
      options: whatever decides its content, with a `repr` that is the same in every process.
      description: one sentence kept with the data.
      features: TFDS features of an example; use `tfds.features.Tensor`, which is ten times faster
        than `Sequence`.
      splits: called once if the set must be made, with an empty `Notes` to fill; returns the
        examples of every split, which are read one split after the other.
      data_dir: a folder; None for where TFDS keeps data.
      title: what the progress shown calls it.
      label: a readable part of the folder's name.
      totals: how many examples a split will have, for the progress shown.

    Raises:
      InputError: the folder cannot be written, or a prepared file is missing or not as it was
        written.
    """
    digest = hashlib.blake2b(repr(options).encode(), digest_size=6).hexdigest()
    config = tfds.core.BuilderConfig(name=f"{label}-{digest}" if label else digest)

    def opened() -> _Builder:
        return _Builder(
            name,
            title,
            description,
            features,
            splits,
            totals or {},
            data_dir=data_dir,
            config=config,
            file_format="array_record",
        )

    with _quiet():
        builder = opened()
        if not builder.is_prepared():
            try:
                with alone(Path(builder.data_path)):
                    builder = opened()  # another process may have made it while this one waited
                    if not builder.is_prepared():
                        for left in Path(builder.data_path).parent.glob("incomplete.*"):
                            shutil.rmtree(
                                left, ignore_errors=True
                            )  # of a process that was killed: the lock is ours
                        builder.download_and_prepare(
                            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
                        )
            except OSError as error:
                raise InputError(f"cannot write {title} to {builder.data_path}: {error}") from error
        _verify(builder)
        return Prepared(builder.as_data_source(), dict(builder.info.metadata["notes"]))


def _verify(builder: _Builder) -> None:
    """Raise `InputError` unless the files are as they were written."""
    folder = Path(builder.data_path)
    remedy = f"Delete {folder} and run again: it will be prepared anew."
    noted = builder.info.metadata.get("files", {})
    found = {p.name: p for p in folder.glob("*.array_record*")}
    thorough = sum(size for size, _ in noted.values()) <= CHECKED_BYTES
    for file, (size, crc) in noted.items():
        if file not in found:
            raise InputError(f"the prepared data set {folder} lacks {file}. {remedy}")
        if found[file].stat().st_size != size or (thorough and _crc(found[file]) != crc):
            raise InputError(
                f"{found[file]} is not as it was written (its size or checksum differs). {remedy}"
            )
    for split, source in builder.as_data_source().items():
        if len(source) != builder.info.splits[split].num_examples:
            raise InputError(
                f"split {split!r} of {folder} has {len(source):,} rows, and "
                f"{builder.info.splits[split].num_examples:,} were written. {remedy}"
            )


def _crc(file: Path) -> int:
    value = 0
    with open(file, "rb") as data:
        while block := data.read(2**20):
            value = zlib.crc32(block, value)
    return value


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a set; another process that prepares the same one waits. A killed one lets
    go of it."""
    config = folder.parent
    config.parent.mkdir(parents=True, exist_ok=True)
    with open(config.parent / f".{config.name}.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"waiting for another process that prepares {config}", file=sys.stderr, flush=True
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep TFDS from warning of a configuration it does not know, from its own bars, and from
    standard output."""
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


def with_progress(stream: Iterable[Any], total: int | None, name: str) -> Iterator[Any]:
    """`stream`, with a bar where standard error is a terminal, else a line every ten seconds and at
    the end; with neither where progress is not to be shown."""
    if console.quiet:
        yield from stream
        return
    if console.is_terminal:
        yield from track(stream, name, total, console=console)
        return
    started = last = time.monotonic()
    i = 0
    for i, item in enumerate(stream, 1):
        yield item
        now = time.monotonic()
        if now - last >= 10:
            last = now
            left = (
                ""
                if total is None
                else f"/{total:,}  {math.ceil((now - started) * (total / i - 1))} s left"
            )
            print(f"{name}  {i:,}{left}", file=sys.stderr, flush=True)
    print(f"{name}  {i:,}/{i if total is None else total:,}  done", file=sys.stderr, flush=True)
