"""The terminal: rich's console, on which a text from a file can only be read."""

from collections.abc import Iterable

from rich import console
from rich.segment import Segment

from dartformer.machine.printable import printable


class Console(console.Console):
    """A console that prints the hidden characters of texts as escapes.

    Its own control codes, for colors and for the bars of a progress, stay as they are.
    """

    def __init__(self, stderr: bool = False):
        # rich would color every number in a sentence, and draw a picture for ":cat:".
        super().__init__(stderr=stderr, highlight=False, emoji=False)

    def render(
        self, renderable: console.RenderableType, options: console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """See `rich.console.Console.render`, through which all text goes."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)
