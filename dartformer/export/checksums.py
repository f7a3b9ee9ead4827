"""Checksums of an exported folder: noted when it is written, verified whenever it is read."""

import hashlib
import os
from pathlib import Path, PurePosixPath

from dartformer.errors import InputError
from dartformer.machine.workdir import UnreadableFile, read_json, write_json

CHECKSUMS = "checksums.json"

CARD = "README.md"
"""The model card, which is listed but may be edited: nothing that is loaded depends on it."""


def note(folder: Path) -> None:
    """Write `checksums.json`: the SHA-256 of every file of the folder, by its path in it."""
    digests = {}
    # Sorted, so that the same export has the same table on every file system.
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != CHECKSUMS:
            digests[file.relative_to(folder).as_posix()] = _sha256(file)
    write_json(folder / CHECKSUMS, digests)


def verify(folder: Path, needed: tuple[str, ...] = ()) -> dict[str, str]:
    """Compare every file with its checksum, save the card; returns the checksums by path.

    Raises `InputError`, in one line, where the folder is not an export, or a file is missing,
    damaged or changed.
    """
    table = folder / CHECKSUMS
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}.")
    if not os.path.lexists(table):
        raise InputError(f"{folder} is not an exported model: it has no {CHECKSUMS}.")
    noted = read_json(table)
    if not isinstance(noted, dict):
        raise InputError(f"{table} is damaged: it is not a table of files.")
    for name in needed:
        if name not in noted:
            raise InputError(f"{table} is damaged: it does not list {name}.")
    verified = {}
    for name, digest in noted.items():
        if name != CARD:
            _require_unchanged(folder, name, digest)
        elif not (folder / name).is_file():
            continue
        verified[name] = digest
    return verified


def _require_unchanged(folder: Path, name: str, digest: object) -> None:
    path = PurePosixPath(name)
    try:
        # A path that leaves the folder is not read, whatever the table says.
        inside = not path.is_absolute() and ".." not in path.parts
        if not inside or not (folder / path).is_file():
            raise InputError(f"the export {folder} lacks {name:.200}.")
        changed = _sha256(folder / path) != digest
    except OSError as error:
        raise UnreadableFile(
            f"cannot read {name:.200} of the export {folder}: {error.strerror}."
        ) from None
    if changed:
        raise InputError(
            f"{folder / path} is damaged: its checksum differs from the one noted at export."
        )


def _sha256(file: Path) -> str:
    with open(file, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
