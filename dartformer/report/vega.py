"""The charting library of the report: Vega-Lite with its runtime, as one script to be inlined."""

import contextlib
import functools
from importlib.metadata import version

import vl_convert

from dartformer.machine import user_cache
from dartformer.machine.workdir import write_text


@functools.cache
def script() -> str:
    """The script that defines `vegaEmbed`, safe inside a `<script>` element.

    It comes from the package vl-convert-python. Bundling it takes seconds, so it is kept in the
    user's cache folder, by version, where that can be written.
    """
    file = user_cache.folder() / f"vega-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return file.read_text(encoding="utf-8")
    bundle: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # its stub lacks the default
    # Neither text may stand in a script element, and both occur in strings only.
    bundle = bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    with contextlib.suppress(OSError):
        write_text(file, bundle)
    return bundle
