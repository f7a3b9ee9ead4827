"""Where data are, and whether they have changed."""

from pathlib import Path

from dartformer.data import tfds
from dartformer.errors import InputError

TFDS = "tfds:"
"""The start of a path that names a data set of TFDS."""


def located(path: str, data_dir: str | None) -> Path:
    """The file or folder of `path`, or of the data set of `tfds:NAME`.

    Raises `InputError` where there is none."""
    if path.startswith(TFDS):
        return tfds.newest(path.removeprefix(TFDS), data_dir)
    file = Path(path).expanduser()
    if not file.exists():
        raise InputError(f"there is no file or folder {path} (looked in {file.absolute()}).")
    return file


def identity(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a file, or of every file of a folder.

    Another data set is prepared when one of them changes."""
    files = [path]
    if path.is_dir():
        files = sorted(filter(Path.is_file, path.rglob("*")))
    identities = []
    for file in files:
        stat = file.stat()
        identities.append((str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns))
    return identities
