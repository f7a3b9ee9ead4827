"""What preparing IMDb costs, over another checkout of this repository.

python experiments/benchmarks/preparation.py PATH --against=CHECKOUT [--rounds=3]

PATH is what `task.path` of the IMDb tasks may be. The checkouts take turns, each time in a process
of its own with an empty data folder. Prints one JSON line for each measurement, and the ratios of
the medians of processor and of wall time."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TASKS = {"imdb_bytes": {"length": 1000}, "imdb_tokens": {"length": 256}}

HERE = Path(__file__).resolve().parents[2]


def measure(name: str, path: str) -> dict[str, float]:
    """Seconds of preparing a task in this process."""
    from dartformer import tasks

    task = tasks.make(name, {"path": path, **TASKS[name]})
    with tempfile.TemporaryDirectory() as folder:
        wall, processor = time.perf_counter(), time.process_time()
        splits = task.load(folder)
        seconds = time.perf_counter() - wall
        return {
            "processor_s": round(time.process_time() - processor, 2),
            "wall_s": round(seconds, 2),
            "rows": sum(map(len, splits.values())),
        }


def in_checkout(checkout: Path, name: str, path: str) -> dict[str, float]:
    """Seconds of preparing a task with the code of a checkout."""
    command = [sys.executable, __file__, path, f"--measure={name}"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return numbers


def compare(path: str, against: Path, rounds: int) -> None:
    """Print what each checkout takes for each task."""
    for name in TASKS:
        seconds: dict[str, list[dict[str, float]]] = {"this": [], "other": []}
        for _ in range(rounds):
            for side, checkout in (("this", HERE), ("other", against)):
                numbers = in_checkout(checkout, name, path)
                seconds[side].append(numbers)
                print(json.dumps({"name": name, "checkout": side, **numbers}), flush=True)
        ratios = {}
        for measured in ("processor_s", "wall_s"):
            medians = {}
            for side, rows in seconds.items():
                medians[side] = statistics.median(row[measured] for row in rows)
            ratios[measured] = round(medians["this"] / medians["other"], 3)
        print(json.dumps({"name": f"{name} ratio", **ratios}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=TASKS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.path)))
        return
    if arguments.against is None:
        parser.error("--against is needed")
    compare(arguments.path, arguments.against, arguments.rounds)


if __name__ == "__main__":
    main()
