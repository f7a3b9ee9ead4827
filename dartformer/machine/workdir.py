"""A folder of one run: text a person can read, state a program can resume, one configuration, one
process at a time."""

import contextlib
import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dartformer.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Replace a file at once: after a crash there is the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def write_json(path: Path, data: Any) -> None:
    """`write_text` of readable JSON; NaN and infinity, which JSON lacks, become null."""
    write_text(path, json.dumps(jsonable(data), indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in a file; `InputError` names the file where it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no {path}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged: {error}.") from None


def jsonable(data: Any) -> Any:
    """Plain data: arrays and NumPy scalars as numbers, non-finite numbers as None."""
    if isinstance(data, dict):
        return {str(k): jsonable(v) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [jsonable(v) for v in data]
    if hasattr(data, "tolist"):
        return jsonable(data.tolist())
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Lines "name: old -> new" for every field in which two nested configurations differ."""
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name, "(absent)"), new.get(name, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield f"{prefix}{name}: {a!r} -> {b!r}"


class Workdir:
    """The folder of a run with one configuration.

    Opening makes the folder and writes `config.json`, or checks that the one there says the same.
    While it is held, no other process can open it. Raises `InputError` where the folder cannot be
    written, belongs to another configuration (the differences are named), or is in use."""

    def __init__(self, path: str | Path, config: dict[str, Any]):
        self.path = Path(path)
        config = jsonable(config)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115 - held open as long as the workdir
        except OSError as error:
            raise InputError(
                f"cannot write to the workdir {self.path}: {error.strerror}."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(f"the workdir {self.path} is in use by another process.") from None
        try:
            self._claim(config)
        except BaseException:
            self.close()
            raise

    def _claim(self, config: dict[str, Any]) -> None:
        file = self.path / "config.json"
        if not file.exists():
            others = [p.name for p in self.path.iterdir() if p.name != ".lock"]
            if others:
                raise InputError(
                    f"the workdir {self.path} holds other files ({', '.join(sorted(others)[:3])}) and no "
                    f"config.json: choose an empty or a new folder."
                )
            write_json(file, config)
            return
        found = list(differences(read_json(file), config))
        if found:
            raise InputError(
                f"the workdir {self.path} belongs to another config; it differs in "
                f"{'; '.join(found)}. Choose another workdir, or the config it was made with."
            )

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __truediv__(self, name: str) -> Path:
        return self.path / name
