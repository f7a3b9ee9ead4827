"""Make what docs/attention.md shows of the types: the table, and the picture of their weight
matrices.

    python docs/make.py

To be run after a type was added or changed, or measured anew.
"""

import json
from pathlib import Path
from typing import Any

from dartformer.attention import ATTENTIONS, parse
from dartformer.cli import listing
from dartformer.report import plots

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "experiments/benchmarks/results/attention_cpu2.jsonl"
BEGIN, END = "<!-- made by docs/make.py -->\n", "<!-- until here -->\n"

DRAWN = {
    "local": "local(window=3)",
    "strided": "strided(stride=4)",
    "block": "block(size=8)",
    "sparse": "sparse(stride=6)",
    "longformer": "longformer(window=2)",
    "bigbird": "bigbird(block=3, randoms=1)",
    "sink": "sink(window=3, sinks=2)",
    "linformer": "linformer(rank=8)",
    "nystrom": "nystrom(landmarks=6)",
    "sinkhorn": "sinkhorn(block=6)",
    "reformer": "reformer(buckets=4, hashes=2, chunk=6)",
    "parallel": "parallel(members=(local(window=2), uniform))",
}
"""Options small enough for the small input; others have their own."""


def crossings() -> dict[str, str]:
    """By name, from which length on a type is faster than `full`, where that was measured."""
    found = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        row = json.loads(line)
        if "crossover" in row and row["name"] == "attention":
            sign = {"at most": "≤ ", "above": "> ", "about": ""}[row["crossover_is"]]
            found.setdefault(row["spec"].split("(")[0], f"{sign}{row['crossover']:,}")
    return found


def table() -> str:
    """The types, in Markdown."""

    def cells(row: dict[str, Any]) -> list[str]:
        paper = "" if row["paper"] == "none" else row["paper"]
        ways = " and ".join(
            w for w, able in (("both", row["bidirectional"]), ("causal", row["causal"])) if able
        )
        return [
            f"`{row['spec']}`",
            row["summary"],
            ways,
            f"N^{row['growth']:g}",
            "fixed" if row["fixed_length"] else "any",
            ", ".join(row["positions"]) or "-",
            row["dropout"] or "-",
            crossing.get(row["name"], "-"),
            paper,
        ]

    crossing = crossings()
    head = [
        "spec, with its defaults",
        "what it is",
        "ways",
        "growth",
        "length",
        "positions",
        "dropout",
        "faster from",
        "paper",
    ]
    rows = [
        head,
        ["---"] * len(head),
        *(cells(row) for row in listing.rows("attentions") if row["name"] in ATTENTIONS),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(text: str) -> str:
    """The page with the table made anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    file = FOLDER / "attention.md"
    file.write_text(page(file.read_text()))
    figure = plots.matrices([parse(DRAWN.get(name, name)) for name in ATTENTIONS])
    figure.savefig(FOLDER / "attention_matrices.png", dpi=90)
