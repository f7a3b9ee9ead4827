"""The ids of a text's characters, bytes or tokens of a checkpoint, made piece by piece.

Neither the text nor its ids need fit into memory. The ids of a long text are written once, to files
that are mapped; those of a short one, which takes a second, are made at every start."""

import contextlib
import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dartformer.data.checkpoint_tokens import CheckpointTokens
from dartformer.data.compressed import is_compressed
from dartformer.data.growing import GrowingFile
from dartformer.data.locations import identity
from dartformer.data.packed import folder_of_ids
from dartformer.data.plain_text import pieces_of_file, text_files
from dartformer.data.prepare import with_progress, write_once
from dartformer.data.rows import PARTS
from dartformer.data.tokens import Bytes, Characters, Tokenizer, ranked
from dartformer.errors import InputError
from dartformer.machine.record import Record
from dartformer.machine.workdir import read_json, write_json

FORMAT = 1

LONG = 2**25
"""Bytes of a text's files above which its ids are written to files."""

COMPRESSION = 4
"""Bytes of a text, for each byte of a compressed file."""

CODES = 0x110000
"""Code points of Unicode."""

REPLACEMENT = 0xFFFD
"""What stands for bytes that are not valid UTF-8."""

NOTES = "notes.json"
FREQUENCIES = "frequencies.npy"

Codes = np.ndarray
"""`[T]` uint32 code points, none of them a surrogate."""


@dataclass(frozen=True)
class TextSource:
    """A text to read.

    Attributes:
      path: a file of plain text, or a folder of them.
      fractions: of train, that become "valid" and "test" where the folder has no files for them.
    """

    path: Path
    fractions: tuple[float, float]


@dataclass(frozen=True)
class Stretch(Record):
    """Where a part is in the text of some files.

    Attributes:
      files: the part that the files are of.
      start, stop: characters of their text.
      invalid: bytes of the files that are not valid UTF-8.
    """

    files: str
    start: int
    stop: int
    invalid: int

    @property
    def characters(self) -> int:
        """Of the part."""
        return self.stop - self.start


@dataclass(frozen=True)
class SurveyNotes(Record):
    """What is written of a survey.

    Attributes:
      format: 1.
      parts: by name.
    """

    format: int
    parts: dict[str, Stretch]


class Survey(NamedTuple):
    """What a text holds, before it has ids.

    Attributes:
      parts: where each of `PARTS` is.
      frequencies: `[CODES]` how often each code point is in train.
    """

    parts: dict[str, Stretch]
    frequencies: np.ndarray


@dataclass(frozen=True)
class PartNotes(Record):
    """What is written of a part.

    Attributes:
      tokens: ids in its file.
      characters: of its text.
      invalid: bytes of the files it is cut from that are not valid UTF-8.
      unknown: ids that stand for an unknown character.
    """

    tokens: int
    characters: int
    invalid: int
    unknown: int


@dataclass(frozen=True)
class Notes(Record):
    """What is written beside the files of ids.

    Attributes:
      format: 1.
      parts: by name.
    """

    format: int
    parts: dict[str, PartNotes]


class Part(NamedTuple):
    """The ids of a part `[T]`, what was counted, and the mapping of its file, if it has one."""

    ids: np.ndarray
    notes: PartNotes
    mapping: mmap.mmap | None = None


def survey(source: TextSource, data_dir: str | None) -> Survey:
    """Where each part is, and the characters of train.

    That of a long text is written under `data_dir` on first use. Raises `InputError` where a text
    cannot be read, is too short for three parts, or the file cannot be written."""
    version = _version(source.path)
    if not is_long(source.path):
        return surveyed(source, version)
    folder = folder_of_ids((FORMAT, "survey", source, version), data_dir)

    def write(unfinished: Path) -> None:
        result = surveyed(source, version)
        np.save(unfinished / FREQUENCIES, result.frequencies)
        write_json(unfinished / NOTES, SurveyNotes(FORMAT, result.parts).to_dict())

    with _writing(source, folder):
        write_once(folder, write)
        notes = SurveyNotes.from_dict(read_json(folder / NOTES), str(folder / NOTES))
        return Survey(notes.parts, np.load(folder / FREQUENCIES))


@lru_cache(maxsize=2)
def surveyed(source: TextSource, version: str) -> Survey:
    """`survey` without a file: the text is read twice. `version` changes with the files."""
    parts = _stretches(source)
    counts = np.zeros(CODES, np.int64)
    for codes in with_progress(_codes_of(source, parts["train"]), None, "characters of train"):
        fresh = np.bincount(codes)
        counts[: len(fresh)] += fresh
    return Survey(parts, counts)


def _stretches(source: TextSource) -> dict[str, Stretch]:
    whole = {}
    for name, files in text_files(source.path).items():
        characters = invalid = 0
        for codes, damaged in with_progress(_read(files), None, f"counting {name}"):
            characters += len(codes)
            invalid += damaged
        whole[name] = Stretch(name, 0, characters, invalid)
    parts = divided(whole, source.fractions)
    for name in PARTS:
        if parts[name].characters < 2:
            count = sum(part.characters for part in parts.values())
            raise InputError(f"{source.path} has {count} characters: too few for a {name} part.")
    return parts


def divided(whole: Mapping[str, Stretch], fractions: tuple[float, float]) -> dict[str, Stretch]:
    """The stretch of each part, from those that have files; the others are the end of train."""
    parts = dict(whole)
    train = whole["train"]
    stop = train.stop
    # The end of the text is test, and what is before it valid.
    for name, fraction in zip(("test", "valid"), reversed(fractions), strict=True):
        if name not in parts:
            start = max(0, stop - round(fraction * train.stop))
            parts[name] = Stretch("train", start, stop, train.invalid)
            stop = start
    parts["train"] = Stretch("train", 0, stop, train.invalid)
    return parts


def characters(frequencies: np.ndarray, size: int) -> Characters:
    """The tokenizer of at most `size` ids: the characters of train, the most frequent first."""
    counts = {}
    for code in np.flatnonzero(frequencies):
        counts[chr(code)] = int(frequencies[code])
    return Characters(ranked(counts, size))


def sample(source: TextSource, train: Stretch, length: int, count: int) -> list[str]:
    """About `count` pieces of `length` characters, evenly spaced in the text of train."""
    pieces = -(-train.characters // length)
    spacing = max(1, pieces // count)
    texts = []
    rest = np.zeros(0, np.uint32)
    number = 0
    for codes in _codes_of(source, train):
        rest = np.concatenate([rest, codes])
        complete = len(rest) // length
        for i in range(complete):
            if (number + i) % spacing == 0:
                texts.append(_text(rest[i * length : (i + 1) * length]))
        number += complete
        rest = rest[complete * length :]
    if len(rest) and number % spacing == 0:
        texts.append(_text(rest))
    return texts


def text_ids(
    source: TextSource, tokenizer: Tokenizer, vocabulary: int, data_dir: str | None
) -> dict[str, Part]:
    """The ids of every part, in the smallest type that holds `vocabulary` of them.

    Those of a long text are written under `data_dir` on first use, and mapped.

    Args:
      source: the text.
      tokenizer: `Bytes`, `Characters` or `CheckpointTokens`.
      vocabulary: ids that the model knows.
      data_dir: for prepared data; None for where TFDS keeps data.

    Raises:
      InputError: the text cannot be read, or the files cannot be written.
    """
    version = _version(source.path)
    encoding = _Encoding(tokenizer, vocabulary)
    if not is_long(source.path):
        return _in_memory(source, version, encoding)
    stretches = survey(source, data_dir).parts
    folder = folder_of_ids((FORMAT, encoding.key, source, version), data_dir)
    with _writing(source, folder):
        write_once(folder, partial(_write, source, stretches, encoding))
        return _opened(folder)


def is_long(path: Path) -> bool:
    """Whether the ids of a text are written to files."""
    size = 0
    for files in text_files(path).values():
        for file in files:
            weight = 1
            if is_compressed(file):
                weight = COMPRESSION
            size += weight * file.stat().st_size
    return size > LONG


def _version(path: Path) -> str:
    return json.dumps(identity(path))


# Reading.


def _read(files: Sequence[Path]) -> Iterator[tuple[Codes, int]]:
    """The text of files, with a line break between two, in pieces.

    Each piece comes with the bytes in it that are not valid UTF-8, of which U+FFFD stands for each
    run."""
    for number, file in enumerate(files):
        if number:
            yield np.array([ord("\n")], np.uint32), 0
        # A run may begin in one piece and end in the next.
        inside = False
        for text in pieces_of_file(file):
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
            damaged = (codes >= 0xD800) & (codes <= 0xDFFF)
            invalid = int(np.count_nonzero(damaged))
            if invalid:
                before = np.concatenate([[inside], damaged[:-1]])
                codes = np.where(damaged, REPLACEMENT, codes)[~(damaged & before)]
            if len(damaged):
                inside = bool(damaged[-1])
            yield codes, invalid


def _codes_of(source: TextSource, stretch: Stretch) -> Iterator[Codes]:
    """The text of a part, in pieces."""
    position = 0
    for codes, _ in _read(text_files(source.path)[stretch.files]):
        start = max(0, stretch.start - position)
        stop = stretch.stop - position
        if stop <= 0:
            return
        if start < len(codes):
            yield codes[start:stop]
        position += len(codes)


def _text(codes: Codes) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le")


class _Encoding:
    """From code points to ids; equal where `key` is.

    Attributes:
      dtype: of the ids, little-endian.
      key: the tokenizer and the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self.dtype = np.dtype(np.min_scalar_type(vocabulary - 1)).newbyteorder("<")
        self.key = json.dumps(tokenizer.state(), sort_keys=True), vocabulary
        self._tokenizer = tokenizer
        if not isinstance(tokenizer, Characters):
            return
        # A table of all code points: a look-up for each character is thirty times slower.
        self._ids = np.ones(CODES, self.dtype)
        known = np.frombuffer(tokenizer.characters.encode("utf-32-le"), "<u4")
        self._ids[known] = np.arange(2, 2 + len(known))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Encoding) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def ids(self, pieces: Iterable[Codes]) -> Iterator[np.ndarray]:
        """The ids of a text that comes in pieces, `[T]` each."""
        if isinstance(self._tokenizer, CheckpointTokens):
            # A token may be in two pieces, which the tokenizer joins.
            for ids in self._tokenizer.encode_parts(map(_text, pieces)):
                yield np.array(ids, self.dtype)
            return
        for codes in pieces:
            if isinstance(self._tokenizer, Bytes):
                yield self._tokenizer.arrays([_text(codes)])[0].astype(self.dtype, copy=False)
            else:
                yield self._ids[codes]

    def unknown(self, ids: np.ndarray) -> int:
        """How many ids stand for an unknown character."""
        if not isinstance(self._tokenizer, Characters):
            return 0  # bytes spell every text: id 1 is a NUL, or a token
        return int(np.count_nonzero(ids == 1))


def _encode(
    source: TextSource,
    part: str,
    stretch: Stretch,
    encoding: _Encoding,
    write: Callable[[np.ndarray], object],
) -> PartNotes:
    """Give the ids of a part to `write`, piece by piece; returns what was counted."""
    tokens = unknown = 0
    pieces = encoding.ids(_codes_of(source, stretch))
    for ids in with_progress(pieces, None, f"tokens {part}"):
        write(ids)
        tokens += len(ids)
        unknown += encoding.unknown(ids)
    return PartNotes(tokens, stretch.characters, stretch.invalid, unknown)


@lru_cache(maxsize=1)
def _in_memory(source: TextSource, version: str, encoding: _Encoding) -> dict[str, Part]:
    parts = {}
    for part, stretch in surveyed(source, version).parts.items():
        pieces: list[np.ndarray] = []
        notes = _encode(source, part, stretch, encoding, pieces.append)
        parts[part] = Part(np.concatenate(pieces), notes)
    return parts


# Files.


@contextlib.contextmanager
def _writing(source: TextSource, folder: Path) -> Iterator[None]:
    """`InputError` where a folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write the tokens of {source.path} to {folder}: {error}. Set data.dir to a "
            f"folder with room for them."
        ) from None


def _write(
    source: TextSource, stretches: Mapping[str, Stretch], encoding: _Encoding, folder: Path
) -> None:
    """Write a file of ids for each part, and the notes."""
    before = _version(source.path)
    parts = {}
    for part, stretch in stretches.items():
        with GrowingFile(folder / f"{part}.npy", encoding.dtype) as file:
            parts[part] = _encode(source, part, stretch, encoding, file.append)
    if _version(source.path) != before:
        raise InputError(
            f"{source.path} changed while it was read. Wait until it is complete and run again."
        )
    write_json(folder / NOTES, Notes(FORMAT, parts).to_dict())


def _opened(folder: Path) -> dict[str, Part]:
    file = folder / NOTES
    notes = Notes.from_dict(read_json(file), str(file))
    parts = {}
    for part, of_part in notes.parts.items():
        parts[part] = _open(folder, part, of_part)
    return parts


def _open(folder: Path, part: str, notes: PartNotes) -> Part:
    """Map the ids of a part; `InputError` where its file is not as it was written."""
    damaged = InputError(f"{folder} is not as it was written. Delete it and run again.")
    try:
        with (folder / f"{part}.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            (count,), _, dtype = np.lib.format.read_array_header_1_0(file)
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            ids = np.frombuffer(mapping, dtype, count, file.tell())
    except ValueError:
        raise damaged from None
    if count != notes.tokens:
        raise damaged
    return Part(ids, notes, mapping)
