"""Pack the lines that `train.py` wrote into the one file that `dartformer.load_table` reads.

    python experiments/tables/pack.py --raw=runs/tables

A table enters with the seeds with which all of its genotypes are trained.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from spaces import NINTHS, SPACES

from dartformer.space.genotype import Genotype
from dartformer.statistics import paired
from dartformer.tables import CHECKED_IN, Provenance, Table, space_of, write_tables
from dartformer.training.metric import find


class Line(NamedTuple):
    """One training, as `train.py` writes it; `examples` is `[9, S]`."""

    genotype: Genotype
    seed: int
    valid: list[float]
    valid_loss: list[float]
    test: float
    test_loss: float
    seconds: float
    examples: np.ndarray


def line_of(data: dict[str, object]) -> Line:
    """One training, from its JSON."""
    genotype = Genotype.from_dict({"format": 1, "layers": data.pop("genotype")})
    examples = np.array(data.pop("examples"), np.float64)
    return Line(genotype=genotype, examples=examples, **data)


def table_of(name: str, file: Path) -> Table | None:
    """The table of a file of lines; None where no seed is complete."""
    headers, lines = [], {}
    for text in file.read_text().splitlines():
        data = json.loads(text)
        if "table" in data:
            headers.append(data)
        else:
            line = line_of(data)
            lines[line.genotype, line.seed] = line
    header = headers[0]
    config = header["config"]
    # The folder of the data sets is none of the table's business.
    if config["task"].get("path"):
        config["task"]["path"] = Path(config["task"]["path"]).name
    genotypes = list(dict.fromkeys(genotype for genotype, _ in lines))
    space = space_of(config)
    if len(genotypes) < space.size:
        return None
    seeds = []
    for seed in sorted({seed for _, seed in lines}):
        if all((genotype, seed) in lines for genotype in genotypes):
            seeds.append(seed)
    grid = [[lines[genotype, seed] for seed in seeds] for genotype in genotypes]
    steps = config["retrain"]["steps"]
    return Table(
        name=name,
        config=config,
        space=space,
        metric=header["metric"],
        genotypes=tuple(genotypes),
        steps=tuple(round(steps * i / NINTHS) for i in range(1, NINTHS + 1)),
        seeds=tuple(seeds),
        valid=column(grid, "valid"),
        valid_loss=column(grid, "valid_loss"),
        test=column(grid, "test"),
        test_loss=column(grid, "test_loss"),
        seconds=column(grid, "seconds"),
        noise=noise_of(grid, header["metric"]),
        provenance=Provenance(
            **header["versions"],
            cpu=header["cpu"],
            date=header["date"],
            # Later starts read the program from the compile cache.
            compile_seconds=max(header["compile_seconds"] for header in headers),
            valid_examples=header["examples"]["valid"],
            test_examples=header["examples"]["test"],
        ),
    )


def column(grid: list[list[Line]], name: str) -> np.ndarray:
    """`[M, S]` or `[M, S, 9]`: one field of all trainings."""
    rows = []
    for lines in grid:
        rows.append([getattr(line, name) for line in lines])
    return np.array(rows, np.float32)


def noise_of(grid: list[list[Line]], metric: str) -> np.ndarray:
    """`[S, 9, M (M - 1) / 2]`: of each pair of models, in units of the metric."""
    unit = 1.0
    if not find(metric).percent:
        unit = np.log(2)  # the examples' losses are in nats, and the scores in bits
    models, seeds = len(grid), len(grid[0])
    pairs = list(itertools.combinations(range(models), 2))
    noise = np.empty((seeds, NINTHS, len(pairs)), np.float16)
    for seed, look in np.ndindex(seeds, NINTHS):
        for i, (a, b) in enumerate(pairs):
            ours = grid[a][seed].examples[look]
            theirs = grid[b][seed].examples[look]
            noise[seed, look, i] = paired(ours, theirs)[1] / unit
    return noise


def main(raw: Path, file: Path) -> None:
    """Pack what is complete, and say what is not."""
    tables = []
    for name in SPACES:
        lines = raw / f"{name}.jsonl"
        table = None
        if lines.exists():
            table = table_of(name, lines)
        if table is None:
            print(f"{name}: left out, because no seed is complete")
            continue
        tables.append(table)
        print(f"{name}: {len(table.genotypes)} models, {len(table.seeds)} seeds")
    write_tables(file, tables)
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--raw", type=Path, default=Path("runs/tables"), help="where the lines are")
    parser.add_argument("--file", type=Path, default=CHECKED_IN, help="what to write")
    arguments = parser.parse_args()
    main(arguments.raw, arguments.file)
