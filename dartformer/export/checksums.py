"""Checksums of an exported folder: noted when it is written, verified whenever it is read."""

import hashlib
from pathlib import Path, PurePosixPath
from typing import Any

from dartformer.errors import InputError
from dartformer.machine.workdir import read_json, write_json

CHECKSUMS = "checksums.json"


def note(folder: Path) -> None:
    """Write `checksums.json`: the SHA-256 of every file of the folder, by its path in it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    write_json(folder / CHECKSUMS, {p.relative_to(folder).as_posix(): _sha256(p) for p in files})


def verify(folder: Path, needed: tuple[str, ...] = ()) -> dict[str, Any]:
    """Compare every file with its checksum; returns them by path.

    Raises `InputError`, one line, where the folder is no export, or a file is missing, damaged or
    changed."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}.")
    if not (folder / CHECKSUMS).is_file():
        raise InputError(f"{folder} is not an exported model: it has no {CHECKSUMS}.")
    noted = read_json(folder / CHECKSUMS)
    if not isinstance(noted, dict):
        raise InputError(f"{folder / CHECKSUMS} is damaged: it is not a table of files.")
    for name in needed:
        if name not in noted:
            raise InputError(f"{folder / CHECKSUMS} is damaged: it does not list {name}.")
    for name, digest in noted.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not (folder / path).is_file():
            raise InputError(f"the export {folder} lacks {name}.")
        if _sha256(folder / path) != digest:
            raise InputError(
                f"{folder / path} is damaged: its checksum is not the one noted at export."
            )
    return noted


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
