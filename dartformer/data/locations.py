"""Where data are, and whether they have changed."""

from pathlib import Path

from dartformer.data import folders, hub, tfds
from dartformer.errors import InputError

TFDS = "tfds:"
"""The start of a path that names a data set of TFDS."""


def located(path: str, data_dir: str | None) -> Path:
    """The file or folder of `path`, or of the data set of `tfds:NAME` or `hf:NAME`.

    Raises `InputError` where there is none."""
    if path.startswith(TFDS):
        return tfds.newest(path.removeprefix(TFDS), data_dir)
    if path.startswith(hub.HUB):
        return hub.cached(path.removeprefix(hub.HUB))
    try:
        file = Path(path).expanduser()
        exists = file.exists()
    # No such user's home, a name that is too long, a folder that may not be searched.
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot read {path}: {error}.") from None
    if not exists:
        raise InputError(f"there is no file or folder {path} (looked in {file.absolute()}).")
    if not file.is_file() and not file.is_dir():
        raise InputError(f"{path} is neither a file nor a folder.")
    return file


def identity(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a file, or of every file of a folder that may hold data.

    Another data set is prepared when one of them changes."""
    files = [path]
    if path.is_dir():
        files = folders.files_below(path)
    identities = []
    for file in files:
        stat = file.stat()
        identities.append((str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns))
    return identities
