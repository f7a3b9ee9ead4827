"""First tries on files that nobody prepared: `new --data` and `run` as written, nothing edited.

    python experiments/first_try.py --data=FOLDER --only=languages,spam --out=first_try.jsonl
    python experiments/first_try.py --summary=first_try.jsonl

Each set of `SETS` is a file or folder of FOLDER; README.md says where they come from. A line for each:
what the run took, the model's score on test, and those of the plain rules with the best of them. A set
that has a line already is passed over. `--summary` prints the table, and runs nothing.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trial import Lines

MODULE = (sys.executable, "-m", "dartformer")


class DataSet(NamedTuple):
    """A file or folder, and what a user would say of it.

    Attributes:
      path: in the folder of all.
      flags: of `new --data`.
    """

    path: str
    flags: tuple[str, ...] = ()


SETS = {
    "languages": DataSet("languages.csv"),
    "docstrings": DataSet("docstrings.csv"),
    "ratings": DataSet("ratings.csv", ("--kind=regression",)),
    "spam": DataSet("spam.csv"),
    "entities": DataSet("entities"),
    "power": DataSet("ItalyPowerDemand.csv"),
    "leaves": DataSet("OSULeaf.csv"),
    "vowels": DataSet("vowels.csv"),
    "digits": DataSet("digits"),
    "tinyshakespeare": DataSet("tinyshakespeare.txt"),
}


def run(arguments: Sequence[str], place: Path, output: Path) -> float:
    """Run a command in a folder; its seconds."""
    started = time.perf_counter()
    with output.open("w") as stdout:
        subprocess.run([*MODULE, *arguments], cwd=place, stdout=stdout, check=True)
    return time.perf_counter() - started


def first_try(name: str, data: DataSet, folder: Path, place: Path) -> dict[str, Any]:
    """Make a config, run it, and read what came out."""
    place.mkdir(parents=True, exist_ok=True)
    flags = [*data.flags, f"--data={folder.resolve() / data.path}"]
    seconds = run(["new", *flags], place, place / "space.py")
    seconds += run(["run", "--config=space.py", "--workdir=run"], place, place / "output.txt")
    results = json.loads((place / "run/results.json").read_text())
    metric = results["race"]["metric"]
    higher = metric not in ("bits_per_character", "loss", "mae", "rmse")
    rules = {}
    for rule, scores in results["baselines"].items():
        if "genotype" not in scores:
            rules[rule] = scores["test"][metric]
    best = sorted(rules, key=rules.__getitem__, reverse=higher)[0]
    per_seed = results["test"]["per_seed"]
    sizes = [file.stat().st_size for file in (place / "run").rglob("*") if file.is_file()]
    # Of the largest child so far, in KiB.
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "name": name,
        "minutes": seconds / 60,
        "metric": metric,
        "rows": results["test"]["examples"],
        "test": results["test"][metric],
        "higher": higher,
        "per_seed": per_seed,
        "genotype": results["genotype"]["layers"],
        "rules": rules,
        "best_rule": best,
        "headline": results["conclusion"]["headline"],
        "memory_mib": largest / 1024,
        "disk_mib": sum(sizes) / 2**20,
    }


def standard_error(row: dict[str, Any]) -> float:
    """Of a model's score: over the seeds or, of an accuracy, over the examples if that is more."""
    scores = row["per_seed"]
    error = statistics.stdev(scores) / math.sqrt(len(scores))
    if row["metric"] == "accuracy":
        error = max(error, math.sqrt(row["test"] * (1 - row["test"]) / row["rows"]))
    return error


def reaches(row: dict[str, Any]) -> bool:
    """Whether a first try is as good as the best rule, less one standard error."""
    lead = row["test"] - row["rules"][row["best_rule"]]
    if not row["higher"]:
        lead = -lead
    return lead >= -standard_error(row)


def summary(file: Path) -> None:
    """A table in Markdown."""
    print(
        "| set | metric | first try | best plain rule | as good | minutes | MiB of memory, disk |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in Lines(file, ("name",)).rows:
        as_good = "no"
        if reaches(row):
            as_good = "yes"
        cells = (
            row["name"],
            row["metric"],
            f"{row['test']:.3f} ± {standard_error(row):.3f}",
            f"{row['rules'][row['best_rule']]:.3f}, {row['best_rule']}",
            as_good,
            f"{row['minutes']:.1f}",
            f"{row['memory_mib']:.0f}, {row['disk_mib']:.0f}",
        )
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the folder of the sets")
    parser.add_argument("--only", default=",".join(SETS), help="names, with commas between them")
    parser.add_argument("--workdir", type=Path, default=Path("runs/first_try"))
    parser.add_argument("--out", type=Path, default=Path("first_try.jsonl"))
    parser.add_argument("--summary", type=Path, help="print the table of a file of lines")
    arguments = parser.parse_args()
    if arguments.summary:
        summary(arguments.summary)
        return
    lines = Lines(arguments.out, ("name",))
    for name in arguments.only.split(","):
        if lines.find(name=name) is None:
            row = first_try(name, SETS[name], arguments.data, arguments.workdir / name)
            lines.add(**row)


if __name__ == "__main__":
    main()
