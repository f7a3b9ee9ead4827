"""Data sets of the Hugging Face hub, by the library `datasets`: Arrow files, which are mapped."""

from functools import lru_cache
from pathlib import Path

from dartformer.errors import InputError, brief

HUB = "hf:"
"""The start of a path that names a data set of the hub."""


@lru_cache(maxsize=8)
def cached(name: str) -> Path:
    """The folder with the Arrow files of the data set `OWNER/NAME`, or `OWNER/NAME:CONFIGURATION`.

    The library downloads it on first use, whole, into its own cache. Raises `InputError` where the
    library is not installed, or finds no such set."""
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"task.path = {HUB + name!r} needs the package datasets. Install it with "
            f"`pip install 'dartformer[datasets]'`."
        ) from None
    repository, _, configuration = name.partition(":")
    if not repository:
        raise InputError(f"task.path = {HUB + name!r} names no data set. Use hf:OWNER/NAME.")
    try:
        splits = datasets.load_dataset(repository, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise InputError(f"cannot load {HUB}{name}: {reason}.") from None
    files = []
    for split in splits.values():
        files += [Path(file["filename"]) for file in split.cache_files]
    if not files:
        raise InputError(f"the library datasets keeps no file of {brief(HUB + name)}.")
    return files[0].parent
