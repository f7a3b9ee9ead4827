"""Places: what a config says of the machine that it was used on, which nobody else needs."""

import re
from collections.abc import Mapping
from pathlib import Path

PLACES = ("path", "valid", "test", "dir", "file", "folder", "table", "checkpoint", "start")
"""Fields that name a file or a folder, in any section: `task.path`, `data.dir`,
`search.budget.table`."""

OWN_FILES = ("files", "series", "pictures")
"""Tasks of your own files, which people know by the file."""

SCHEME = re.compile(r"[a-z]{2,}:[^/\\]")
"""The start of a name that is no path, such as `tfds:imdb_reviews/plain_text`. One letter is a drive
of Windows."""


def without_places(config: Mapping[str, object]) -> dict[str, object]:
    """A config for others to read: of each file and folder only its own name."""
    public: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            public[name] = without_places(value)
        elif isinstance(value, str) and (name in PLACES or _is_here(value)):
            public[name] = own_name(value)
        else:
            public[name] = value
    return public


def own_name(place: str) -> str:
    """The last part of a path of any system."""
    if SCHEME.match(place):
        return place
    parts = re.split(r"[/\\]", place.rstrip("/\\"))
    # The home folder's own name is the user's.
    if parts[-1] in ("~", "..", ".") or Path(place) == Path.home():
        return ""
    return parts[-1]


def task_title(section: Mapping[str, object]) -> str:
    """What people call the task of a config: your own file by its name, or the task's name."""
    name, path = str(section["name"]), section.get("path")
    file = ""
    if isinstance(path, str):
        file = own_name(path)
    if not file:
        return name
    if name in OWN_FILES:
        return file
    return f"{name}: {file}"


def _is_here(value: str) -> bool:
    """Whether a text of another field, of a task from elsewhere, is a path of this machine."""
    try:
        return Path(value).is_absolute() and Path(value).exists()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False
