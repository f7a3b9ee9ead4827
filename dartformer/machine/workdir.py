"""Files that are replaced whole, and folders that one process holds at a time."""

import contextlib
import errno
import fcntl
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dartformer.errors import InputError

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
"""Errors of the system that another path or other permissions would mend."""


def write_text(path: Path, text: str) -> None:
    """Replace a file whole: after a crash it holds the old text or the new one, never a part.

    Raises `InputError` for a path that cannot be written, and `OSError` for a full disk."""
    try:
        _replace(path, text)
    except OSError as error:
        if error.errno not in IMPOSSIBLE:
            raise
        raise InputError(f"cannot write {path}: {error.strerror}.") from None


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


def read_json(path: Path) -> Any:
    """The JSON in a file; `InputError` names the file where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no {path}.") from None
    except (ValueError, RecursionError) as error:  # of bytes that are no UTF-8, too
        raise InputError(f"{path} is damaged: {error}.") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None


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

    Raises `InputError` where it cannot be written or locked, or is in use.
    """

    NAME = ".lock"

    def __init__(self, path: Path):
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = open(path / self.NAME, "a")  # noqa: SIM115 - held open as long as the folder
        except OSError as error:
            raise InputError(f"cannot write to the workdir {path}: {error.strerror}.") from None
        try:
            # The kernel drops the lock when the process ends, however it ends: a file that merely
            # exists would outlive a crash.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
        self._file.close()
