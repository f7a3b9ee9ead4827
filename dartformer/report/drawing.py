"""The drawing of a genotype, layers by heads, as the shapes of an SVG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dartformer.report import markup
from dartformer.report.chart import color
from dartformer.report.reading import describe

LETTERED = 400
"""A drawing with more cells than this has neither letters nor titles in them."""

LARGE, SMALL = 34, 10
"""Widths of a cell with and without a letter."""

LEFT, BOTTOM = 44, 24
"""Room for the numbers of the layers and of the heads."""

LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in the lightness of a color, by WCAG 2."""


@dataclass(frozen=True)
class Entry:
    """An attention in the legend, and its cells.

    Attributes:
      name: of the attention.
      letter: that stands for it.
      fill: color of its cells.
      ink: of the letters in them.
      path: all of its cells as one SVG path.
      count: of its heads.
    """

    name: str
    letter: str
    fill: str
    ink: str
    path: str
    count: int


@dataclass(frozen=True)
class Drawing:
    """A genotype to draw; letters and titles let it be read without colors.

    Attributes:
      layers: attentions as texts, layers of heads.
      legend: the attentions that occur.
    """

    layers: Sequence[Sequence[str]]
    legend: tuple[Entry, ...]

    @property
    def rows(self) -> int:
        """L, the number of layers."""
        return len(self.layers)

    @property
    def columns(self) -> int:
        """H, the number of heads."""
        return len(self.layers[0])

    @property
    def heads(self) -> int:
        """The number of heads in all layers."""
        return self.rows * self.columns

    @property
    def lettered(self) -> bool:
        """Whether the cells have letters."""
        return self.heads <= LETTERED

    @property
    def size(self) -> int:
        """The width of a cell."""
        return LARGE if self.lettered else SMALL

    @property
    def row_step(self) -> int:
        """Every so many layers have their number beside them."""
        return 1 if self.lettered else max(1, self.rows // 20)

    @property
    def column_step(self) -> int:
        """Every so many heads have their number below them."""
        return 1 if self.lettered else 4

    @property
    def width(self) -> int:
        """Of the drawing, without a legend."""
        return self.columns * self.size + LEFT

    @property
    def height(self) -> int:
        """Of the drawing."""
        return self.rows * self.size + BOTTOM

    @property
    def text(self) -> str:
        """The same in words."""
        return describe(self.layers)

    def entry(self, attention: str) -> Entry:
        """The entry of the legend for an attention."""
        for entry in self.legend:
            if entry.name == attention:
                return entry
        raise KeyError(attention)


def draw(layers: Sequence[Sequence[str]], candidates: Sequence[str] = ()) -> Drawing:
    """A genotype with the colors and letters that its attentions have among the candidates."""
    names = list(dict.fromkeys(candidates))
    for heads in layers:
        for name in heads:
            if name not in names:
                names.append(name)
    cells = len(layers) * len(layers[0])
    size = SMALL
    if cells <= LETTERED:
        size = LARGE
    legend = []
    for number, name in enumerate(names):
        places = list(_places(layers, name))
        if not places:
            continue
        fill = color(number)
        # One path for all cells of an attention: a genotype may have thousands.
        squares = [_square(row, column, size) for row, column in places]
        path = "".join(squares)
        legend.append(Entry(name, letter(number), fill, ink(fill), path, len(places)))
    return Drawing(layers, tuple(legend))


def svg(drawing: Drawing) -> str:
    """The drawing with its legend as a file of its own."""
    longest = max(len(entry.name) for entry in drawing.legend)
    return markup.fill(
        "genotype.svg",
        g=drawing,
        width=drawing.width + 60 + 8 * longest,
        height=max(drawing.height, 24 * len(drawing.legend) + 8),
    )


def letter(number: int) -> str:
    """A, B, ... for the first 26 candidates, numbers for the rest."""
    if number < 26:
        return chr(ord("A") + number)
    return str(number)


def ink(fill: str) -> str:
    """Black or white, whichever has the larger contrast with a color (WCAG 2)."""
    lightness = 0.0
    for share, start in zip(LUMINANCE, (1, 3, 5), strict=True):
        value = int(fill[start : start + 2], 16) / 255
        linear = value / 12.92  # sRGB is linear near black, and a power above
        if value > 0.04045:
            linear = ((value + 0.055) / 1.055) ** 2.4
        lightness += share * linear
    # Contrast is (L1 + 0.05) / (L2 + 0.05), L1 being the lighter; white has L = 1, black 0.
    on_black = (lightness + 0.05) / 0.05
    on_white = 1.05 / (lightness + 0.05)
    if on_black > on_white:
        return "#000000"
    return "#ffffff"


def _places(layers: Sequence[Sequence[str]], name: str) -> Iterator[tuple[int, int]]:
    """The layers and heads of an attention."""
    for row, heads in enumerate(layers):
        for column, attention in enumerate(heads):
            if attention == name:
                yield row, column


def _square(row: int, column: int, size: int) -> str:
    """A cell as part of an SVG path, a pixel smaller on each side."""
    side = size - 2
    return f"M{column * size + 1} {row * size + 1}h{side}v{side}h-{side}z"
