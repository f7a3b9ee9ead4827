"""Documents packed one after another: their token ids in files, which are mapped and never read whole.

A text is read, tokenized and written piece by piece, so neither it nor its ids need fit into
memory."""

import hashlib
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from dartformer.data import folders, records
from dartformer.data.checkpoint_tokens import TOGETHER, CheckpointTokens
from dartformer.data.locations import identity
from dartformer.data.plain_text import text_files
from dartformer.data.prepare import with_progress, write_once
from dartformer.data.rows import PARTS, SURROGATES
from dartformer.data.tables import opened_text
from dartformer.data.tokens import pieces, pieces_of_parts
from dartformer.errors import InputError, brief
from dartformer.machine.record import Record
from dartformer.machine.workdir import read_json, write_json

FORMAT = 1

READ = 2**20
"""Characters of a file that are read at once."""

NOTES = "notes.json"


@dataclass(frozen=True)
class Source:
    """Text to pack.

    Attributes:
      path: a file of plain text, or a folder of them, of which each is a document; or a table.
      column: of a table whose rows are the documents; empty for plain text.
      fractions: of train, that become "valid" and "test" where the folder has no files for them.
    """

    path: Path
    column: str
    fractions: tuple[float, float]


@dataclass(frozen=True)
class Stretch(Record):
    """Where the tokens of a part are, and what was counted of the file's text.

    Attributes:
      file: in the folder of the notes.
      start, stop: places in it.
      documents: of the file.
      invalid: bytes of its text that were not valid UTF-8.
    """

    file: str
    start: int
    stop: int
    documents: int
    invalid: int


@dataclass(frozen=True)
class Notes(Record):
    """What was written.

    Attributes:
      format: 1.
      itemsize: bytes of an id.
      parts: by name.
    """

    format: int
    itemsize: int
    parts: dict[str, Stretch]


class Part(NamedTuple):
    """The tokens of a part, `[T]`, mapped from a file; see `Stretch` for the counts."""

    ids: np.ndarray
    documents: int
    invalid: int


class _Piece(NamedTuple):
    """A piece of a document, in order."""

    text: str
    number: int


def packed(source: Source, tokenizer: CheckpointTokens, data_dir: str | None) -> dict[str, Part]:
    """The ids of every part; they are written under `data_dir` on first use.

    Raises:
      InputError: a text cannot be read or is too short, the end token is not known and there are
        several documents, or the folder cannot be written.
    """
    key = (FORMAT, tokenizer.text, tokenizer.end, source, identity(source.path))
    folder = folder_of_ids(key, data_dir)

    def write(unfinished: Path) -> None:
        _write(source, tokenizer, unfinished)

    try:
        write_once(folder, write)
        return _opened(folder)
    except OSError as error:
        raise InputError(
            f"cannot write the tokens of {source.path} to {folder}: {error}."
        ) from None


def folder_of_ids(key: object, data_dir: str | None) -> Path:
    """The folder for the ids of a text.

    Args:
      key: what decides the ids, with a `repr` that is the same in every process.
      data_dir: for prepared data; None for where TFDS keeps data.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=6).hexdigest()
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    # Called as other prepared data is, so that no folder of data is read with it.
    return Path(root).expanduser() / f"{folders.PREPARED}language" / digest / "ids"


def _opened(folder: Path) -> dict[str, Part]:
    file = folder / NOTES
    notes = Notes.from_dict(read_json(file), str(file))
    parts = {}
    for name, stretch in notes.parts.items():
        ids = np.memmap(folder / stretch.file, f"<u{notes.itemsize}", "r")
        if stretch.stop > len(ids):
            raise InputError(f"{folder} is not as it was written. Delete it and run again.")
        # A plain array over the same file: indexing a memmap makes memmaps, which is slower.
        part = np.asarray(ids)[stretch.start : stretch.stop]
        parts[name] = Part(part, stretch.documents, stretch.invalid)
    return parts


def _write(source: Source, tokenizer: CheckpointTokens, folder: Path) -> None:
    """Write the files of ids and their notes."""
    dtype = np.dtype(np.min_scalar_type(tokenizer.size - 1)).newbyteorder("<")
    written: dict[str, _Writer] = {}
    for name, documents in _documents(source).items():
        file = folder / f"{name}.ids"
        with file.open("wb") as opened:
            writer = written[name] = _Writer(opened, dtype, tokenizer, source.path)
            for document in with_progress(documents, None, f"tokens {name}"):
                writer.add(document)
            writer.flush()
        if not writer.count:
            raise InputError(f"{source.path} has no text for {name}.")
    notes = Notes(FORMAT, dtype.itemsize, _parts(source, written))
    write_json(folder / NOTES, notes.to_dict())


class _Writer:
    """Writes the ids of documents with the end token between them.

    Attributes:
      starts: the place of the first token of each document.
      count: tokens so far.
      invalid: bytes that were not valid UTF-8.
    """

    def __init__(
        self, file: BinaryIO, dtype: np.dtype, tokenizer: CheckpointTokens, path: Path
    ) -> None:
        self.file, self.dtype, self.tokenizer, self.path = file, dtype, tokenizer, path
        self.starts = array("q")
        self.count = 0
        self.invalid = 0
        self._waiting: list[_Piece] = []
        self._characters = 0

    def add(self, document: Iterable[str]) -> None:
        """Pack a document, of which the pieces are read as they are needed."""
        for number, piece in enumerate(document):
            self.invalid += sum(map(len, SURROGATES.findall(piece)))
            text = SURROGATES.sub("\ufffd", piece)
            self._waiting.append(_Piece(self.tokenizer.continued(text, number), number))
            self._characters += len(text)
            if self._characters >= TOGETHER:
                self.flush()

    def flush(self) -> None:
        """Write what waits."""
        encoded = self.tokenizer.encode_pieces([piece.text for piece in self._waiting])
        for piece, ids in zip(self._waiting, encoded, strict=True):
            if not piece.number:
                if self.starts:
                    self._put([self._end()])
                self.starts.append(self.count)
            self._put(ids)
        self._waiting, self._characters = [], 0

    def _put(self, ids: list[int]) -> None:
        self.file.write(np.array(ids, self.dtype).tobytes())
        self.count += len(ids)

    def _end(self) -> int:
        if self.tokenizer.end is None:
            raise InputError(
                f"{self.path} has several documents, and the checkpoint does not say which token "
                f"ends one. Set task.end to one of its tokens, such as '</s>'."
            )
        return self.tokenizer.end


def _documents(source: Source) -> dict[str, Iterator[Iterable[str]]]:
    """The documents of each part that the source has, each as its pieces."""
    documents: dict[str, Iterator[Iterable[str]]] = {}
    if not source.column:
        for name, files in text_files(source.path).items():
            documents[name] = map(_pieces_of_file, files)
        return documents
    names = [name for name in records.splits(source.path) if name in PARTS]
    for name in names:
        documents[name] = _rows(source, name)
    if not names:
        documents["train"] = _rows(source, "")
    if "train" not in documents:
        raise InputError(f"{source.path} has no split train; it has {', '.join(names)}.")
    return documents


def _pieces_of_file(file: Path) -> Iterator[str]:
    """The text of a file, in the same pieces as if it were read whole."""
    with opened_text(file, newline="") as opened:
        yield from pieces_of_parts(iter(partial(opened.read, READ), ""))


def _rows(source: Source, split: str) -> Iterator[Iterable[str]]:
    """The texts of a column of a table; rows without one are left out."""
    for number, row in enumerate(records.read(source.path, split), 1):
        if source.column not in row:
            raise InputError(
                f"{source.path}, row {number} has no column {brief(source.column)}; it has "
                f"{', '.join(map(brief, row))}."
            )
        text = row[source.column]
        if text is None or text == "":
            continue
        if not isinstance(text, str):
            raise InputError(
                f"{source.path}, row {number}: {source.column} is no text, but {brief(text)}."
            )
        yield pieces(text)


def _parts(source: Source, written: dict[str, _Writer]) -> dict[str, Stretch]:
    """Where each part is: in a file of its own, or at the end of that of train."""
    parts = {}
    for name, writer in written.items():
        parts[name] = _stretch(name, writer, 0, writer.count)
    train, stop = written["train"], written["train"].count
    absent = [name for name in ("test", "valid") if name not in written]
    for number, name in enumerate(absent):
        valid, test = source.fractions
        fraction = {"valid": valid, "test": test}[name]
        # Each earlier part needs a document of its own.
        start = _cut(train, stop, fraction, before=len(absent) - number)
        parts[name] = _stretch("train", train, start, stop)
        stop = start
    parts["train"] = _stretch("train", train, 0, stop)
    return parts


def _stretch(name: str, writer: _Writer, start: int, stop: int) -> Stretch:
    return Stretch(f"{name}.ids", start, stop, len(writer.starts), writer.invalid)


def _cut(writer: _Writer, stop: int, fraction: float, before: int) -> int:
    """Where the last part of the tokens before `stop` begins.

    Between two documents where there are enough for every part, and else anywhere."""
    cut = stop - round(fraction * writer.count)
    starts = np.array(writer.starts)
    starts = starts[starts < stop]
    if len(starts) <= before:
        return cut
    nearest = np.argmin(np.abs(starts[before:] - cut))
    return int(starts[before + nearest])
