"""Every attention, forward and backward, by the compilers for a TPU v5e and an H100; neither is needed.

    pip install 'dartformer[aot]'
    python experiments/benchmarks/accelerators.py > accelerators.jsonl
    python experiments/benchmarks/accelerators.py --device=h100 full "local(window=64)"
    python experiments/benchmarks/accelerators.py --folded --device=tpu-v5e gated_linear
    python experiments/benchmarks/accelerators.py --table before.jsonl after.jsonl
    python experiments/benchmarks/accelerators.py --ceilings after.jsonl

With a mask, 8 examples of 2,048 tokens, 8 heads of 64 numbers, in bfloat16. These are facts of
compilers, and no times but the roofline: the least time at the device's FLOP/s and bandwidth.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path

from measure import say

from dartformer.accelerators.attention import gradient
from dartformer.accelerators.compile import GaveUp, TooLarge, environment, estimate
from dartformer.accelerators.devices import DEVICES, Device, require_compiler
from dartformer.attention import names, parse
from dartformer.attention.base import Shape

SHAPE = Shape(length=2048, heads=8, head_dim=64, model_dim=512, batch=8, itemsize=2)


def measure(device: Device, text: str, folded: bool) -> None:
    """Print one line: what the compiler says of an attention."""
    call = gradient(parse(text), SHAPE, device.target, folded=folded)
    try:
        found = estimate(device, call.function, *call.arguments)
    except (TooLarge, GaveUp) as error:
        say(attention=text, device=device.name, error=str(error)[:300])
        return
    ends = found.argument_bytes + found.output_bytes
    say(
        attention=text,
        device=device.name,
        temp_mb=found.temp_bytes / 1e6,
        times_ends=found.temp_bytes / ends,
        gflop=found.flops / 1e9,
        moved_gb=found.moved_bytes / 1e9,
        roofline_ms=found.roofline_ms,
        bound=found.bound,
        # Of the bytes moved, those that no kernel could save: inputs and outputs once.
        floor_share=ends / found.moved_bytes,
        largest_mb=found.largest_bytes / 1e6,
        largest=found.largest_array,
        operations=found.operations,
        compile_s=found.compile_seconds,
    )


def table(files: list[str]) -> None:
    """Print a table of Markdown a device: the first file before, the last one after."""
    rows: list[dict[tuple[str, str], dict]] = []
    for file in files:
        lines = map(json.loads, Path(file).read_text().splitlines())
        rows.append({(row["device"], row["attention"]): row for row in lines})
    old, new = rows[0], rows[-1]
    for device in DEVICES:
        print(f"\n{device}\n")
        heads = ("type", "MB before", "MB", "x in+out", "largest, MB", "GFLOP", "GB moved before")
        heads += ("GB moved", "floor, %", "ms", "s")
        print(f"| {' | '.join(heads)} |")
        print("|" + "---|" * len(heads))
        for (where, name), row in new.items():
            if where != device:
                continue
            before = old.get((where, name), {})
            cells = [
                name,
                f"{before['temp_mb']:,.0f}" if before else "-",
                f"{row['temp_mb']:,.0f}",
                f"{row['times_ends']:.1f}",
                f"{row['largest_mb']:.0f}",
                f"{row['gflop']:.0f}",
                f"{before['moved_gb']:.1f}" if before else "-",
                f"{row['moved_gb']:.1f}",
                f"{100 * row['floor_share']:.1f}",
                f"{row['roofline_ms']:.1f}",
                f"{row['compile_s']:.0f}",
            ]
            print(f"| {' | '.join(cells)} |")


def ceilings(file: str) -> None:
    """Print the table of tests/accelerators/test_compiled.py: 12% above what a file has."""
    rows: dict[str, list[str]] = {}
    for line in Path(file).read_text().splitlines():
        row = json.loads(line)
        operations = row["operations"]
        cells = [math.ceil(1.12 * row["temp_mb"]), math.ceil(1.12 * row["largest_mb"])]
        cells += [operations[name] for name in ("gather", "sort", "while")]
        rows.setdefault(row["attention"], []).append(" ".join(f"{cell:5}" for cell in cells))
    for name, cells in rows.items():
        print(f"{name:15}{' |'.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attentions", nargs="*", help="default: all")
    parser.add_argument("--device", action="append", choices=list(DEVICES))
    parser.add_argument("--folded", action="store_true", help="q, k and v are [B, N, H D]")
    parser.add_argument("--table", nargs="+", metavar="FILE")
    parser.add_argument("--ceilings", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.ceilings:
        ceilings(arguments.ceilings)
        return
    if arguments.table:
        table(arguments.table)
        return
    for name in arguments.device or DEVICES:
        device = DEVICES[name]
        require_compiler(device)
        variables = environment(device)
        if any(os.environ.get(key) != value for key, value in variables.items()):
            # They must be set before JAX is imported.
            words = [*arguments.attentions, f"--device={name}"]
            words += ["--folded"] * arguments.folded
            subprocess.run([sys.executable, __file__, *words], env=variables, check=True)
            continue
        for text in arguments.attentions or names():
            measure(device, text, arguments.folded)


if __name__ == "__main__":
    main()
