"""Results of searches in a user's module that show themselves."""

from pathlib import Path
from typing import ClassVar, Protocol


class Display(Protocol):
    """How results are shown."""

    def notebook(self, result: "Shown") -> str:
        """What a notebook shows of a result, as HTML."""

    def write(self, result: "Shown", path: str | Path | None) -> Path:
        """Write the page of a result."""


class Shown:
    """A result that a notebook shows, and that writes a page."""

    # Pages are made above this package, so `dartformer.api` puts theirs here.
    display: ClassVar[Display]

    def report(self, path: str | Path | None = None) -> Path:
        """Write one self-contained HTML page and return its path.

        Args:
          path: of the page, or of a folder to put `report.html` in. None for the workdir.
        """
        return self.display.write(self, path)

    def _repr_html_(self) -> str:
        return self.display.notebook(self)
