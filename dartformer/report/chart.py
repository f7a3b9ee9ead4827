"""A chart as plain data, Vega-Lite and rows of numbers: the one description for page and files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Spec = dict[str, Any]
"""A part of a Vega-Lite specification, which is JSON."""

Row = Sequence[str | float | bool | None]

# The palette of Okabe and Ito: told apart with every common color blindness, and in print. Its
# black, invisible on a dark page, is replaced by a violet; three colors of Tol's follow.
PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#999999",
    "#7A4FB5",
    "#882255",
    "#44AA99",
    "#DDCC77",
)
ACCENT = PALETTE[0]
ALERT = PALETTE[5]
NEUTRAL = "#7b8494"

DISTINCT = 9
"""Colors that are told apart best; lines beyond them are dashed."""

TOOLTIP = {"tooltip": {"content": "data"}}
COMPACT = {
    "labelExpr": "abs(datum.value) < 1e4 ? format(datum.value, ',~g') : format(datum.value, '~s')",
}
"""An axis of costs: 0.02, 1,434 and 20k."""

LEGEND = {"orient": "bottom", "labelLimit": 320, "title": None, "symbolOpacity": 1}


class Choice(NamedTuple):
    """A column of which one value is drawn at a time: the page has a select box for it.

    Attributes:
      column: its name, in the rows and as a parameter of the chart.
      label: of the select box.
      options: the values, the first being drawn at first.
      axis: "x" or "y" where the value is what that axis shows, so that a file can say so.
    """

    column: str
    label: str
    options: Sequence[str]
    axis: str = ""


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
      name: an identifier, which also names the CSV file.
      title: the heading.
      alt: what a person who cannot see it should know.
      spec: Vega-Lite without data, parameters of choices and their filters.
      columns: names of the numbers in a row.
      rows: the numbers that are drawn, which are those of the CSV file.
      note: what was left out, if anything.
      choices: columns of which one value is drawn at a time.
    """

    name: str
    title: str
    alt: str
    spec: Spec
    columns: tuple[str, ...]
    rows: Sequence[Row] = field(repr=False)
    note: str = ""
    choices: tuple[Choice, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """What the page's script reads: the specification has a select box for each choice."""
        spec = self.spec
        if self.choices:
            parameters = []
            filters = []
            # A parameter has the name of its column, so the filter compares the two.
            for choice in self.choices:
                parameters.append(_select(choice))
                filters.append({"filter": f"datum.{choice.column} == {choice.column}"})
            transform = filters + spec.get("transform", [])
            spec = spec | {"params": parameters, "transform": transform}
        return {"name": self.name, "spec": spec, "columns": self.columns, "rows": self.rows}


def _select(choice: Choice) -> Spec:
    """A parameter with a select box."""
    box = {"input": "select", "options": list(choice.options), "name": f"{choice.label}: "}
    return {"name": choice.column, "value": choice.options[0], "bind": box}


def color(index: int) -> str:
    """The color of candidate number `index`."""
    return PALETTE[index % len(PALETTE)]


def colors(names: Sequence[str]) -> Spec:
    """A scale that gives each name the color of its number."""
    return {"domain": list(names), "range": list(map(color, range(len(names))))}


def dashes(names: Sequence[str]) -> Spec:
    """A scale that gives each name a dash pattern: the most distinct colors, then again dashed."""
    patterns = ([1, 0], [6, 3], [2, 2])  # dash and gap in pixels; the first is solid
    cycle = [patterns[i // DISTINCT % len(patterns)] for i in range(len(names))]
    return {"domain": list(names), "range": cycle}


def quantity(column: str, title: str | None, **more: object) -> Spec:
    """An encoding of a number."""
    return {"field": column, "type": "quantitative", "title": title, **more}


def category(column: str, **more: object) -> Spec:
    """An encoding of a name."""
    return {"field": column, "type": "nominal", **more}


def place(column: str, **more: object) -> Spec:
    """An encoding of a layer, a head or a token, in their order."""
    return {"field": column, "type": "ordinal", **more}


def named_lines(column: str, names: Sequence[str]) -> Spec:
    """The encodings that tell lines apart by color and dash pattern, with a legend."""
    order = list(names)
    return {
        "strokeDash": category(column, sort=order, legend=LEGEND, scale=dashes(order)),
        "color": category(column, sort=order, legend=LEGEND, scale=colors(order)),
    }
