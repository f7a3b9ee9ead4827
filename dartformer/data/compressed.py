"""Files that may be compressed, and tar archives, of which nothing is ever written to disk."""

import bz2
import contextlib
import gzip
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from dartformer.errors import InputError

OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}

ZIP = ".zip"

SHARD = re.compile(r"-\d+-of-\d+$")
"""What follows the suffix of one of several files, such as rows.array_record-00000-of-00002."""

DAMAGE = (
    EOFError,
    lzma.LZMAError,
    zlib.error,
    gzip.BadGzipFile,
    tarfile.TarError,
    zipfile.BadZipFile,
)
"""What the standard library raises for a compressed file that is cut short or altered."""


def suffix(path: Path) -> str:
    """The suffix that tells what a file holds, without its compression's and the shard's number."""
    last = path.suffix.lower()
    if last == ZIP and path.is_file():
        return Path(member_of(path)).suffix.lower()
    if last == ".tgz":
        return ".tar"
    if last in OPENERS:
        return Path(path.stem).suffix.lower()
    return SHARD.sub("", last)


def is_compressed(path: Path) -> bool:
    """Whether a file must be decompressed to be read."""
    return path.suffix.lower() in (ZIP, *OPENERS)


def member_of(path: Path) -> str:
    """The name of the only file in a zip archive; `InputError` for several, or for none."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not _is_clutter(name)]
    except DAMAGE as error:
        raise InputError(f"{path} is damaged or cut short: {error}.") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from None
    if len(names) != 1:
        raise InputError(
            f"{path} holds {len(names)} files, and an archive is read if it holds a single one. "
            f"Unpack it, and name a file or the folder."
        )
    return names[0]


def _is_clutter(name: str) -> bool:
    """Whether the name in an archive is that of a folder, or of what macOS adds."""
    return name.endswith("/") or name.startswith("__MACOSX/")


@contextlib.contextmanager
def opened_member(path: Path) -> Iterator[BinaryIO]:
    """The bytes of the only file in a zip archive."""
    name = member_of(path)
    with zipfile.ZipFile(path) as archive:
        try:
            file = archive.open(name)
        except RuntimeError:
            raise InputError(f"{path} needs a password. Unpack it, and name the file.") from None
        with file:
            yield cast(BinaryIO, file)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed; `InputError` names a file that is damaged or unreadable."""
    try:
        if path.suffix.lower() == ZIP:
            with opened_member(path) as file:
                yield file
            return
        open_file = OPENERS.get(path.suffix.lower(), open)
        with open_file(path, "rb") as file:
            yield file
    except DAMAGE as error:
        raise InputError(f"{path} is damaged or cut short: {error}.") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}.") from None


def members(archive: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Name and bytes of every plain file of a tar archive, in its order.

    Nothing is written to disk, so that no name in it, absolute, with `..`, or of a link, can touch
    anything."""
    if not archive.is_file():
        raise InputError(f"there is no file {archive}.")
    # As a stream ("r|"): a compressed archive cannot be searched without reading it again.
    with opened(archive) as file, tarfile.open(fileobj=file, mode="r|") as files:
        for member in files:
            if member.isfile():
                # None only for what is no plain file.
                data = cast(BinaryIO, files.extractfile(member))
                yield member.name.removeprefix("./"), data
