"""How fast examples are prepared and fed, on one core: rows a minute, and how many times what the
quickstart consumes.

python experiments/benchmarks/input.py [--rows=20000]

Prints one JSON line for each measurement. Texts are made here, words of a seed; a row is 1,024
bytes."""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from dartformer import tasks
from dartformer.data.batches import batches
from dartformer.data.sources import IN_MEMORY_BYTES, from_source
from dartformer.data.splits import Split
from dartformer.tasks.files import Files

QUICKSTART = 32 * 60 / 0.0068
"""Examples a minute that the quickstart trains on: 32 in a step of 6.8 ms, see README.md."""

LENGTH, BATCH, STEPS = 1024, 32, 1000


def texts(rows: int) -> Path:
    """A JSONL file of texts of 400 to 1,600 bytes."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("abcdefghij"), n)) for n in rng.integers(2, 9, 2000)])
    path = Path(tempfile.mkdtemp()) / "a.jsonl"
    with open(path, "w") as file:
        for i in range(rows):
            text = f"{i} " + " ".join(words[rng.integers(0, 2000, rng.integers(70, 270))])
            file.write(json.dumps({"text": text, "label": "ab"[i % 2]}) + "\n")
    return path


def report(name: str, rows: int, seconds: float, **more: float) -> None:
    """One line."""
    minute = 60 * rows / seconds
    print(
        json.dumps(
            {
                "name": name,
                "rows": rows,
                "rows_a_minute": round(minute),
                "times_quickstart": round(minute / QUICKSTART, 1),
                **more,
            }
        ),
        flush=True,
    )


def padded_share(split: Split, buckets: int) -> float:
    """Share of the tokens of an epoch's batches that are padding."""
    stream = batches(split, BATCH, 0, buckets)
    valid = [next(stream)["valid"] for _ in range(len(split) // BATCH)]
    return 1 - sum(int(v.sum()) for v in valid) / sum(v.size for v in valid)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=20_000)
    rows = arguments.parse_args().rows
    path = texts(rows)
    for tokens in ("bytes", "words"):
        task = tasks.make(
            "files",
            {"path": str(path), "label_names": ("a", "b"), "tokens": tokens, "length": LENGTH},
        )
        assert isinstance(task, Files)
        started = time.process_time()
        found = task.load(str(path.parent))
        report(f"prepare {tokens}", rows, time.process_time() - started)
        source = task._prepared(str(path.parent)).splits["train"]
        for name, memory in (("memory", IN_MEMORY_BYTES), ("disk", 0)):
            started = time.process_time()
            split = from_source(source, LENGTH, task.vocabulary, memory)
            report(f"unpack {tokens} into {name}", len(split), time.process_time() - started)
            stream = batches(split, BATCH, 0)
            next(stream)
            started = time.process_time()
            for _ in range(STEPS):
                next(stream)
            report(f"feed {tokens} from {name}", STEPS * BATCH, time.process_time() - started)
    for name in ("recall", "planted"):
        stream = batches(tasks.make(name, {"endless": True}).load()["train"], BATCH, 0)
        next(stream)
        started = time.process_time()
        for _ in range(STEPS):
            next(stream)
        report(f"feed {name} as it is made", STEPS * BATCH, time.process_time() - started)
    for buckets in (1, 4, 8):
        print(
            json.dumps(
                {
                    "name": "padding",
                    "buckets": buckets,
                    "share": round(padded_share(found["train"], buckets), 3),
                }
            ),
            flush=True,
        )
    print(
        json.dumps(
            {
                "name": "peak memory",
                "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


if __name__ == "__main__":
    main()
