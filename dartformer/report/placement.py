"""The page of a placement: which places of a checkpoint are kept, and what that is worth."""

from pathlib import Path


def refresh(path: str | Path) -> None:
    """Refresh."""
