"""The placements of a finished run as a Markdown table, and what the run took.

    python experiments/checkpoint/table.py WORKDIR

WORKDIR is what `dartformer run` wrote for a checkpoint. The columns are those of README.md: NLL and
KL divergence on text, and NLL on a passage that comes again."""

import argparse
from pathlib import Path

from dartformer.placement.records import PlacementResults
from dartformer.placement.study import PlacementFolder


def rows(results: PlacementResults) -> list[str]:
    """A line for each placement but those of other budgets."""
    lines = ["| places that keep full attention | text | KL | `again` |", "|---|---|---|---|"]
    for placed in results.placements:
        if placed.role == "front":
            continue
        numbers = (placed.loss("text"), placed.divergence("text"), placed.loss("again"))
        cells = " | ".join(f"{number:.3f}" for number in numbers)
        lines.append(f"| {placed.title} | {cells} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", help="of a finished run")
    folder = PlacementFolder(Path(parser.parse_args().workdir))
    results = folder.read(PlacementResults, folder.results)
    if results is None:
        raise SystemExit(f"{folder.path} is not evaluated yet.")
    print("\n".join(rows(results)))
    print()
    for line in (*results.verdict, *results.warnings):
        print(f"* {line}")
    for row in results.additivity:
        print(f"* {row.kind}: the scores add up to {row.sum:.4f} of {row.total:.4f}.")
    for stage, seconds in results.processor_seconds.items():
        print(f"* {stage}: {seconds:.0f} processor seconds, {results.seconds[stage]:.0f} seconds.")


if __name__ == "__main__":
    main()
