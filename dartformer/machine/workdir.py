"""Files that are replaced whole, and folders that one process holds at a time."""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from dartformer.errors import InputError
from dartformer.machine import hosts, locks

CHECKSUM = "checksum"
"""The key of a file's own checksum."""

LARGEST, DEEPEST = 2**30, 100
"""Bytes and nesting of a JSON file that is read."""


class UnreadableFile(InputError):
    """The disk did not give a file, which may be whole."""


IMPOSSIBLE = (
    errno.EACCES,
    errno.EEXIST,  # a file in place of a folder
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
"""Errors of the system that another path or other permissions would solve."""


def write_text(path: Path, text: str) -> None:
    """Replace a file whole: after a crash it holds the old text or the new one, never a part.

    Of several processes the chief writes it, and the others go on when it is there. Raises
    `InputError` for a path that cannot be written, and `OSError` for a full disk."""

    def write() -> None:
        try:
            _replace(path, text)
        except OSError as error:
            if error.errno not in IMPOSSIBLE:
                raise
            raise InputError(f"cannot write {path}: {error.strerror}.") from None

    hosts.by_chief(write)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because only within one file system is a rename a single operation. Not
    # by `tempfile`, which lets only the user read: who may read is what the umask says.
    name = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with open(name, "x", encoding="utf-8") as file:
            file.write(text)
            # The text must reach the disk before the name does, or a crash leaves an empty file.
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: Path, data: object) -> None:
    """`write_text` of readable JSON; NaN and infinity, which JSON lacks, become null."""
    write_text(path, json.dumps(jsonable(data), indent=2) + "\n")


def write_checked_json(path: Path, data: Mapping[str, object]) -> None:
    """`write_json` of an object, with its checksum, which `read_json` compares."""
    plain = jsonable(data)
    write_json(path, {**plain, CHECKSUM: _checksum(plain)})


def _checksum(data: Mapping[str, object]) -> str:
    # Of the values, not of the bytes: other spaces or another order of the keys change nothing.
    text = json.dumps(_timeless(data), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _timeless(data: object) -> object:
    """Plain data without what is timed, which differs where two runs have the same results."""
    if isinstance(data, list):
        return list(map(_timeless, data))
    if not isinstance(data, dict):
        return data
    entries = {}
    for key, value in data.items():
        if "seconds" not in key and key != "throughput":
            entries[key] = _timeless(value)
    return entries


def read_text(path: Path) -> str:
    """The text in a file, which may come from a stranger; raises `InputError` that names it."""
    try:
        about = path.stat()
        # A pipe or a device would be read for ever.
        if not stat.S_ISREG(about.st_mode):
            raise InputError(f"{path} must be a file. Move what stands there.")
        if about.st_size > LARGEST:
            raise InputError(
                f"{path} is too large: {about.st_size:,} bytes of at most {LARGEST:,}."
            )
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"there is no {path}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: {error}.") from None
    except OSError as error:
        raise UnreadableFile(f"cannot read {path}: {error.strerror}.") from None


def read_json(path: Path) -> Any:
    """The JSON in a file, which may come from a stranger.

    Raises `InputError` that names the file where it is not JSON, too large, too deep, or changed
    since `write_checked_json`; `UnreadableFile` where the disk does not give it.
    """
    text = read_text(path)
    try:
        data = json.loads(text)
    except RecursionError:
        raise InputError(f"{path} is damaged: it is nested too deeply.") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}.") from None
    if _depth(data) > DEEPEST:
        raise InputError(f"{path} is damaged: it is nested too deeply.")
    if isinstance(data, dict) and CHECKSUM in data:
        checksum = data.pop(CHECKSUM)
        if checksum != _checksum(data):
            raise InputError(
                f"{path} is damaged or was edited: its checksum differs. Restore it, or delete it "
                f"and run the stage that writes it again."
            )
    return data


def _depth(data: object) -> int:
    """How many lists and objects stand in one another."""
    depth, level = 0, [data]
    while level:
        containers: list[object] = []
        for value in level:
            if isinstance(value, dict):
                value = list(value.values())
            if isinstance(value, list):
                containers.extend(item for item in value if isinstance(item, dict | list))
        depth, level = depth + 1, containers
        if depth > DEEPEST:
            break
    return depth


def crc32(file: Path) -> int:
    """CRC-32 of a file, a mebibyte at a time."""
    value = 0
    with open(file, "rb") as data:
        while block := data.read(2**20):
            value = zlib.crc32(block, value)
    return value


def jsonable(data: object) -> Any:
    """Plain data: arrays and NumPy scalars as numbers, non-finite numbers as None."""
    if isinstance(data, dict):
        entries = {}
        for key, value in data.items():
            entries[str(key)] = jsonable(value)
        return entries
    if isinstance(data, (list, tuple)):
        return list(map(jsonable, data))
    # By method and not by type, so that JAX's arrays count without importing JAX here.
    if hasattr(data, "tolist"):
        return jsonable(data.tolist())
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def differences(
    old: Mapping[str, object], new: Mapping[str, object], prefix: str = ""
) -> Iterator[str]:
    """Lines "name: old -> new" for every field in which two nested configurations differ."""
    # dict.fromkeys and not a set, so that the lines come in the order of the configs.
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name, "(absent)"), new.get(name, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield f"{prefix}{name}: {a!r} -> {b!r}"


class LockedFolder:
    """A folder that no other process can open while it is held; it is made where there is none.

    Processes of one run share the lock, which the chief holds. Raises `InputError` where the folder
    cannot be written or locked, or is in use.
    """

    NAME = ".lock"

    def __init__(self, path: Path):
        self._file: IO[str] | None = None
        hosts.by_chief(lambda: self._lock(path))

    def _lock(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = open(path / self.NAME, "a")  # noqa: SIM115 - held open as long as the folder
        except OSError as error:
            raise InputError(f"cannot write to the workdir {path}: {error.strerror}.") from None
        try:
            # The kernel drops the lock when the process ends, however it ends: a file that merely
            # exists would outlive a crash.
            locks.lock(self._file, wait=False)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"the workdir {path} is in use by another process.") from None
        except OSError as error:
            # Some network disks have no locks (ENOLCK, EOPNOTSUPP).
            self._file.close()
            raise InputError(
                f"cannot lock the workdir {path}: {error.strerror}. Use a folder on a local disk."
            ) from None

    def close(self) -> None:
        """Release the folder."""
        if self._file is not None:
            self._file.close()
