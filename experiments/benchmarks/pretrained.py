"""What it takes to import a checkpoint, and how far its logits are from those of transformers.

    python tests/pretrained/smollm2.py build/smollm2
    python experiments/benchmarks/pretrained.py build/smollm2

Memory is the peak of the process above what it had before, over the size of the weights. The
logits are compared with those in `tests/pretrained/smollm2.npz`, which transformers computed."""

import argparse
import resource
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from measure import machine, say

import dartformer as df

EXPECTED = Path(__file__).parents[2] / "tests/pretrained/smollm2.npz"


def peak() -> int:
    """Bytes of memory that the process had at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder", help="SmolLM2-135M-Instruct, as tests/pretrained/smollm2.py makes it"
    )
    folder = parser.parse_args().folder
    machine()
    # What JAX takes before it has any weights is not the import's.
    jnp.zeros(1).block_until_ready()
    before, wall, processor = peak(), time.perf_counter(), time.process_time()
    model = jax.block_until_ready(df.load_pretrained(folder))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(model.weights))
    say(
        name="import",
        seconds=time.perf_counter() - wall,
        processor_seconds=time.process_time() - processor,
        weights_bytes=size,
        peak_over_weights=(peak() - before) / size,
    )
    want = np.load(EXPECTED)
    logits = np.asarray(model(want["ids"]))[0]
    difference = np.abs(logits[:, want["columns"]] - want["logits"]).max()
    say(
        name="logits",
        largest_difference=float(difference),
        largest=float(np.abs(want["largest"]).max()),
        same_best=float((logits.argmax(-1) == want["best"]).mean()),
    )


if __name__ == "__main__":
    main()
