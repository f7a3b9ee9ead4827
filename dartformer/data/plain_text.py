"""Plain text without rows or labels: a file of it, or a folder of such files."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from dartformer.data import folders, tables
from dartformer.data.compressed import opened, suffix
from dartformer.data.text_rows import form_of
from dartformer.errors import InputError

SUFFIXES = (".txt", ".text", ".md", ".rst", ".tex", ".tokens")
"""The suffixes of files of plain text."""

READ = 2**20
"""Bytes of a file that are read at once."""


def is_plain_text(path: Path) -> bool:
    """Whether a file, or every file of a folder without folders, is plain text."""
    files = [path]
    if path.is_dir():
        files = folders.entries(path)
    if not files or not all(file.is_file() and suffix(file) in SUFFIXES for file in files):
        return False
    # Only .txt is also the suffix of tables, and of words with tags.
    return suffix(files[0]) != ".txt" or form_of(files[0]) == "plain"


def text_files(path: Path) -> dict[str, list[Path]]:
    """The files of the text, as "train", or of each part that a folder names.

    Raises `InputError` for a folder without text files."""
    if path.is_file():
        return {"train": [path]}
    files = folders.split_files(path, SUFFIXES)
    if "train" in files:
        return files
    files = {"train": [file for file in folders.entries(path) if suffix(file) in SUFFIXES]}
    if not files["train"]:
        raise InputError(
            f"{path} holds no plain text. Put files such as book.txt into it, or name a file."
        )
    return files


def text_of_file(file: Path) -> str:
    """The text of a file, in which bytes that are not valid UTF-8 become surrogates."""
    with opened(file) as data:
        content = data.read()
    try:
        return tables.decoded(content)
    except UnicodeError as error:
        raise InputError(f"{file} cannot be read as text: {error}.") from None


def pieces_of_file(file: Path) -> Iterator[str]:
    """The text of `text_of_file` in pieces, of which one is in memory."""
    with opened(file) as data:
        name = tables.encoding(data.read(4))
        data.seek(0)
        # Decodes a character whose bytes are in two pieces as one.
        decoder = codecs.getincrementaldecoder(name)("surrogateescape")
        try:
            while content := data.read(READ):
                yield decoder.decode(content)
            yield decoder.decode(b"", final=True)
        except UnicodeError as error:
            raise InputError(f"{file} cannot be read as text: {error}.") from None
