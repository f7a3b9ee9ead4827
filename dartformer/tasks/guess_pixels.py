"""A guess at tables with a pixel in each column: which columns they are."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dartformer.data.numbers import is_number, number
from dartformer.data.records import Record
from dartformer.tasks.columns import LABEL_NAMES, MOST_CLASSES, names_of
from dartformer.tasks.pictures import square
from dartformer.tasks.series import ColumnSpans

FEWEST_PIXELS = 49
"""Columns from which on they may be pixels: 7 x 7."""

BRIGHTEST = 255

EXAMINED = 200
"""Rows that say whether columns are pixels."""

PIXEL_NAME = re.compile(r".*pix.*|\d+x\d+", re.IGNORECASE)
"""Names such as pixel12 and 3x4."""

ROW_BELOW = 0.8
"""Below this, pixels that are one row apart differ so much less than those half a row apart that
the columns are those of pictures. In a series, values further apart differ more."""


class PixelColumns(NamedTuple):
    """Columns of a pixel each, row by row.

    Attributes:
      first: of the columns.
      last: of the columns.
      side: of a picture, in pixels.
      channels: 3 where a pixel is three columns, red, green and blue.
    """

    first: str
    last: str
    side: int
    channels: int

    def pictures(self, rows: Sequence[Record]) -> Iterator[np.ndarray]:
        """The pictures `[side, side, channels]` of rows."""
        columns = ColumnSpans((self.first, self.last))
        for row in rows:
            yield square(columns.steps(row, "a row"), self.channels)


def without_span(names: Sequence[str], first: str, last: str) -> list[str]:
    """Names without those from the first to the last of a span."""
    start, end = names.index(first), names.index(last)
    return [*names[:start], *names[end + 1 :]]


def pixel_columns(rows: Sequence[Record], label: str = "") -> PixelColumns | None:
    """The columns of the pixels of square pictures; None where there are none."""
    rows = rows[:EXAMINED]
    names = [name for name in names_of(rows) if name != label]
    longest = max(_runs(rows, names), key=len, default=[])
    for run in _without_label(rows, longest, others=len(names) > len(longest) or bool(label)):
        size = _size(len(run))
        if size is None:
            continue
        side, channels = size
        if not all(map(PIXEL_NAME.fullmatch, run)):
            values = np.array([[number(row.get(name)) for name in run] for row in rows])
            if not _has_rows(values.reshape(len(rows), side, side, channels)):
                continue
        return PixelColumns(run[0], run[-1], side, channels)
    return None


def _runs(rows: Sequence[Record], names: Sequence[str]) -> list[list[str]]:
    """Neighbouring columns of whole numbers from 0 to 255."""
    runs: list[list[str]] = [[]]
    for name in names:
        if all(_is_pixel(row.get(name)) for row in rows):
            runs[-1].append(name)
        else:
            runs.append([])
    return runs


def _is_pixel(value: object) -> bool:
    if isinstance(value, bool) or not is_number(value):
        return False
    brightness = number(value)
    return brightness.is_integer() and 0 <= brightness <= BRIGHTEST


def _without_label(rows: Sequence[Record], run: Sequence[str], others: bool) -> list[Sequence[str]]:
    """The run, or the run without the label at either end of it, the likelier first."""
    spans = []
    for place, span in ((0, run[1:]), (-1, run[:-1])):
        if not span:
            continue
        named = run[place].lower() in LABEL_NAMES
        values = {number(row[run[place]]) for row in rows}
        if named:
            return [span]
        if 1 < len(values) <= min(MOST_CLASSES, max(2, len(rows) // 2)):
            spans.append(span)
    # Pixels without a label would teach nothing.
    if others:
        spans.insert(0, run)
    return spans


def _size(columns: int) -> tuple[int, int] | None:
    """Side and channels of square pictures with so many numbers."""
    for channels in (1, 3):
        side = math.isqrt(columns // channels)
        if side**2 * channels == columns and side**2 >= FEWEST_PIXELS:
            return side, channels
    return None


def _has_rows(pictures: np.ndarray) -> bool:
    """Whether pixels of `[B, H, W, channels]` are more like those below than those further along."""
    flat = pictures.reshape(len(pictures), -1, pictures.shape[-1])
    side = pictures.shape[2]
    below = _difference(flat, side)
    along = _difference(flat, side // 2)
    return bool(below < ROW_BELOW * along)


def _difference(values: np.ndarray, distance: int) -> float:
    """Mean square of what values `[B, N, channels]` differ by at a distance."""
    return float(((values[:, distance:] - values[:, :-distance]) ** 2).mean())
