"""The user's cache folder, for results that can be computed again."""

import os
from pathlib import Path


def folder() -> Path:
    """`~/.cache/dartformer`, or below `XDG_CACHE_HOME`; `RuntimeError` without a home folder."""
    parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(parent) / "dartformer"
