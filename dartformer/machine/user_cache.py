"""The user's cache folder: what can be made again, and takes a while."""

import os
from pathlib import Path


def folder() -> Path:
    """`~/.cache/dartformer`, or below `XDG_CACHE_HOME`; `RuntimeError` where there is no home
    folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dartformer"
