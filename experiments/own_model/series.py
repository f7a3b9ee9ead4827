"""A forecaster of time series in plain flax NNX with a search in it, on data that come as batches.

    python experiments/own_model/series.py

Prints JSON, the verdict last.
"""

import json

import jax.numpy as jnp
import numpy as np
from flax import nnx

import dartformer as df

PAST, AHEAD, WIDTH, HEADS, LAYERS, STEPS, BATCH = 32, 8, 24, 2, 2, 200, 32
CANDIDATES = ("full", "conv(width=5)", "uniform")


class Block(nnx.Module):
    def __init__(self, rngs):
        self.attention = df.nn.MixedAttention(
            CANDIDATES, WIDTH, HEADS, causal=True, dropout=0.1, rngs=rngs
        )
        self.norm = nnx.BatchNorm(WIDTH, rngs=rngs)
        self.feed = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(x)
        return x + nnx.silu(self.feed(self.norm(x)))


class Forecaster(nnx.Module):
    def __init__(self, rngs):
        self.read = nnx.Linear(2, WIDTH, rngs=rngs)  # the value and the time
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.write = nnx.Linear(WIDTH, AHEAD, rngs=rngs)

    def __call__(self, past):
        time = jnp.broadcast_to(jnp.linspace(-1, 1, PAST), past.shape)
        x = self.read(jnp.stack([past, time], -1))
        for block in self.blocks:
            x = block(x)
        return self.write(x[:, -1])


def loss(model, batch, rngs):
    past, future = batch
    return ((model(past) - future) ** 2).mean()


def batches(count, seed):
    """A season, a trend and noise; each batch as a loader would give it."""
    random = np.random.default_rng(seed)
    step = np.arange(PAST + AHEAD)
    for _ in range(count):
        period, phase, slope = (
            random.uniform(low, high, (BATCH, 1)) for low, high in ((6, 12), (0, 6), (-1, 1))
        )
        values = np.sin(2 * np.pi * step / period + phase) + slope * step / PAST
        values = (values + 0.1 * random.normal(size=values.shape)).astype(np.float32)
        yield values[:, :PAST], values[:, PAST:]


# Functions that return an iterator: each is called again when its batches are at an end.
data = {
    "weights": lambda: batches(60, 0),
    "alphas": lambda: batches(60, 1),
    "valid": lambda: batches(8, 2),
    "test": lambda: batches(8, 3),
}

if __name__ == "__main__":
    found = df.search(Forecaster(nnx.Rngs(0)), loss, data, steps=STEPS)
    genotype = df.derive(found)
    race = df.race(
        found, lambda genotype, seed: Forecaster(nnx.Rngs(seed)), seeds=(0, 1), finalists=2
    )

    past, _ = next(batches(1, 4))
    one_hot = found.at(genotype)
    gap = abs(one_hot(past) - df.replace(one_hot, genotype)(past)).max()
    print(json.dumps({"genotype": genotype.texts(), "gap": float(gap)}))
    print(json.dumps({"verdict": race.verdict}))
