"""A figure: a chart that stands alone, drawn by Vega-Lite without a browser or a network."""

import copy
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import vl_convert
from PIL import Image

from dartformer.errors import InputError
from dartformer.report.chart import Chart, Spec

VEGA_LITE = "https://vega.github.io/schema/vega-lite/v6.json"

KINDS = ("svg", "png", "pdf")
"""Endings of files that a figure can be saved to."""

SCALE = 2
"""Pixels of a PNG in each pixel of the SVG."""

SOFT, LINE = "#576070", "#d5dae1"

NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML does not allow, such as the tokens of bytes below 32. The converter of SVG
ends the whole process where it meets one."""

LOOKS: Spec = {
    "aria": False,  # attributes that viewers of files ignore
    "background": "white",
    "font": "sans-serif",
    "lineBreak": "\n",
    "view": {"stroke": None},
    "axis": {
        "labelColor": SOFT,
        "titleColor": SOFT,
        "gridColor": LINE,
        "domainColor": LINE,
        "tickColor": LINE,
        "titleFontWeight": 400,
    },
    "header": {"labelColor": SOFT, "labelFontSize": 11, "labelLimit": 0, "title": None},
    "legend": {"columns": 3, "labelColor": "#1b2430", "titleColor": SOFT},
}


@dataclass(frozen=True)
class Figure:
    """A picture, which a notebook shows and `save` writes.

    Attributes:
      svg: the picture as text.
    """

    svg: str

    def save(self, file: str | Path) -> None:
        """Write the figure in the format that the file's ending names; text stays text.

        Raises `InputError` for an ending that is not in `KINDS`, or a file that cannot be written.
        """
        path = Path(file)
        try:
            path.write_bytes(self.encoded(path.suffix.removeprefix(".").lower()))
        except OSError as error:
            raise InputError(f"cannot draw to {file}: {error.strerror}.") from None
        except KeyError:  # of `encoded`
            endings = ", ".join(f".{kind}" for kind in KINDS)
            raise InputError(f"cannot draw to {file}: its ending must be {endings}.") from None

    def encoded(self, kind: str) -> bytes:
        """The picture as a file of one of the `KINDS`; `KeyError` for others."""
        if kind == "svg":
            return self.svg.encode()
        if kind == "png":
            return vl_convert.svg_to_png(self.svg, scale=SCALE)
        if kind == "pdf":
            return vl_convert.svg_to_pdf(self.svg)
        raise KeyError(kind)

    def pixels(self) -> np.ndarray:
        """`[height, width, 3]` of uint8."""
        # Trackers take pictures without transparency.
        picture = Image.open(io.BytesIO(self.encoded("png"))).convert("RGB")
        return np.ascontiguousarray(picture)

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        # A notebook stores it beside the picture.
        return f"Figure({len(self.svg):,} characters of SVG)"


def figure(spec: Spec) -> Figure:
    """A figure of a complete Vega-Lite specification."""
    # No base URL is allowed, so that a specification cannot load anything from the network.
    complete = printable({"$schema": VEGA_LITE, **spec})
    return Figure(vl_convert.vegalite_to_svg(complete, config=LOOKS, allowed_base_urls=[]))


def printable(value: Any) -> Any:
    """Plain data with U+FFFD in place of what cannot be drawn."""
    if isinstance(value, str):
        return NOT_XML.sub("\ufffd", value)
    if isinstance(value, Mapping):
        clean = {}
        for key, item in value.items():
            clean[printable(key)] = printable(item)
        return clean
    if isinstance(value, list | tuple):
        return list(map(printable, value))
    return value


def alone(
    chart: Chart,
    chosen: Mapping[str, str] | None = None,
    *,
    width: int = 460,
    panels: str = "",
    columns: int = 4,
) -> Figure:
    """A chart without its controls.

    Args:
      chart: what to draw.
      chosen: for each column of `chart.choices` but `panels` the value to draw.
      width: of the chart, or of each panel.
      panels: a column with a panel for each of its values.
      columns: panels beside each other.
    """
    chosen = chosen or {}
    rows = []
    for values in chart.rows:
        row = dict(zip(chart.columns, values, strict=True))
        if chosen.items() <= row.items():
            rows.append(row)
    spec = copy.deepcopy(chart.spec)  # whose axes are given titles below
    # On the page the select box says what an axis shows; a file has none.
    for choice in chart.choices:
        if choice.axis and choice.column in chosen:
            _entitle(spec, choice.axis, chosen[choice.column])
    spec["width"] = width
    if not panels:
        return figure({"data": {"values": rows}, **spec})
    return figure(faceted(spec, rows, panels, columns))


def faceted(
    spec: Spec,
    rows: Sequence[Mapping[str, object]],
    column: str,
    columns: int,
    independent: Sequence[str] = (),
) -> Spec:
    """A panel of `spec` for each value of a column, in the order of the rows."""
    order: dict[object, None] = {}
    for row in rows:
        order[row[column]] = None
    return {
        "data": {"values": rows},
        "facet": {"field": column, "type": "nominal", "sort": list(order), "title": None},
        "columns": min(columns, len(order)),
        "spec": spec,
        "resolve": {"scale": dict.fromkeys(independent, "independent")},
    }


def _entitle(spec: Spec, axis: str, title: str) -> None:
    """Name an axis, in every layer of a specification."""
    for layer in spec.get("layer", [spec]):
        if axis in layer["encoding"]:
            layer["encoding"][axis]["title"] = title
