"""What differs between two runs of one config on one machine: times, dates, and names drawn from them.

Everything else of a workdir is equal byte for byte, whatever PYTHONHASHSEED is and however often a
run was killed and continued.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

SHAPE = re.compile("^shapes/[^/]+/")
"""Each shape of a search over shapes has a workdir of its own."""


class Varying(NamedTuple):
    """What differs in a file.

    Attributes:
      file: its path in the workdir; `*` stands for any characters.
      keys: paths of JSON keys, with `/` between them, where `*` stands for any key or place in a
        list. None where the file is not JSON.
      reason: what differs, in words.
    """

    file: str
    keys: tuple[str, ...] | None
    reason: str


VARYING = (
    Varying(
        "results.json",
        ("seconds", "race/seconds", "race/share"),
        "seconds of training and compiling",
    ),
    Varying("search/*alphas.json", ("seconds", "compile_seconds"), "seconds of the search"),
    Varying(
        "profile.json",
        (
            "models/*/latency_seconds",
            "models/*/throughput",
            "layers/*/latency_seconds",
            "layers/*/throughput",
            "attentions/*/latency_seconds",
            "attentions/*/throughput",
            "sweep/*/latency_seconds",
            "sweep/*/throughput",
        ),
        "measured latencies",
    ),
    Varying(
        "provenance.json",
        ("runs", "checksum"),
        "commands, dates and seconds; one entry for each command",
    ),
    Varying("export/README.md", None, "the sentence that says how many seconds the run took"),
    Varying("export/checksums.json", ("README.md",), "the checksum of that text"),
    Varying("report.html", None, "the values above, which the page shows"),
    Varying(
        "*/tensorboard/*",
        None,
        "dates in the events, date and host in the names of their files; numbers and steps are equal",
    ),
    Varying(
        "*/wandb*", None, "the id of the run, which is drawn at random, and the client's own files"
    ),
    Varying("*/mlflow.id", None, "the id of the run, which the server gives"),
    Varying(
        "*/checkpoints/*",
        None,
        "dates, and names that Orbax draws at random; the arrays are equal",
    ),
)
"""Everything that differs. A search with a measured budget (`latency_ms`) also depends on what was
measured: `search/prices.json` keeps that."""


def varying(file: str) -> Varying | None:
    """What differs in the file at that path of a workdir; None where it is equal byte for byte."""
    file = SHAPE.sub("", file)
    for entry in VARYING:
        if fnmatchcase(file, entry.file):
            return entry
    return None


def without_times(file: str, data: object) -> object:
    """The content of a JSON file with blanks, of the same types, for what differs."""
    entry = varying(file)
    if entry is not None:
        for keys in entry.keys or ():
            data = _blanked(data, keys.split("/"))
    return data


def _blanked(data: object, keys: Sequence[str]) -> object:
    if not keys:
        return _blank(data)
    key, *following = keys
    if isinstance(data, list) and key == "*":
        return [_blanked(item, following) for item in data]
    if not isinstance(data, dict):
        return data
    blanked = {}
    for name, value in data.items():
        if key in (name, "*"):
            value = _blanked(value, following)
        blanked[name] = value
    return blanked


def _blank(value: object) -> object:
    """Nothing, of the type of the value."""
    if isinstance(value, dict):
        return {name: _blank(item) for name, item in value.items()}
    if isinstance(value, list):
        return []
    if isinstance(value, str):
        return ""
    if isinstance(value, int | float):
        return 0
    return value
