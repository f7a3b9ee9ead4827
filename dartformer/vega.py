"""The charting library of the report, Vega-Lite with its runtime, as one script to be inlined."""

import contextlib
import functools
import os
from importlib.metadata import version
from pathlib import Path

import vl_convert

from dartformer.workdir import write_text


@functools.cache
def script() -> str:
    """The script that defines `vegaEmbed`, from the package vl-convert-python; safe inside a `<script>` element.

    Putting it together takes seconds, so it is kept in the user's cache folder, where that can be written, by version.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    file = base / "dartformer" / f"vega-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="utf-8")
    made: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # its stub lacks the default
    made = made.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    with contextlib.suppress(OSError):
        write_text(file, made)
    return made
