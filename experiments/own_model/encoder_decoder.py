"""An encoder-decoder in plain flax NNX with a search in it: a sequence is written backwards.

    python experiments/own_model/encoder_decoder.py

All three kinds of layers are searched: the encoder reads in both directions, the decoder forward
only, and between them queries of one sequence read keys of another. Prints JSON, the verdict last.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import dartformer as df

LENGTH, LETTERS, WIDTH, HEADS, STEPS, BATCH = 8, 10, 32, 2, 200, 32
CANDIDATES = ("full", "linear", "uniform")  # the types that read another sequence, too
BEGIN = LETTERS


class Feed(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.gelu(self.up(self.norm(x))))


class Seq2Seq(nnx.Module):
    def __init__(self, rngs):
        def mixed(causal=False):
            return df.nn.MixedAttention(CANDIDATES, WIDTH, HEADS, causal=causal, rngs=rngs)

        self.embed = nnx.Embed(LETTERS + 1, WIDTH, rngs=rngs)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (LENGTH, WIDTH)))
        self.encoder, self.decoder, self.cross = mixed(), mixed(causal=True), mixed()
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(4)])
        self.feeds = nnx.List([Feed(rngs) for _ in range(2)])
        self.head = nnx.Linear(WIDTH, LETTERS, rngs=rngs)

    def __call__(self, source, target):
        before, between, across, last = self.norms
        memory = self.embed(source) + self.positions
        memory = self.feeds[0](memory + self.encoder(before(memory)))
        y = self.embed(target) + self.positions
        y = y + self.decoder(between(y))
        y = self.feeds[1](y + self.cross(across(y), memory))
        return self.head(last(y))


def loss(model, batch, rngs):
    source, answer = batch
    shifted = jnp.pad(answer[:, :-1], ((0, 0), (1, 0)), constant_values=BEGIN)
    logits = model(source, shifted)
    return optax.softmax_cross_entropy_with_integer_labels(logits, answer).mean()


def pairs(count, seed):
    source = np.random.default_rng(seed).integers(LETTERS, size=(count, LENGTH))
    return source, source[:, ::-1]


data = {"train": pairs(2000, 0), "valid": pairs(300, 1), "test": pairs(300, 2)}

if __name__ == "__main__":
    found = df.search(Seq2Seq(nnx.Rngs(0)), loss, data, steps=STEPS, batch_size=BATCH)
    genotype = df.derive(found)
    race = df.race(found, lambda genotype, seed: Seq2Seq(nnx.Rngs(seed)), seeds=(0, 1), finalists=2)

    source, answer = pairs(9, 3)
    one_hot = found.at(genotype)
    gap = abs(one_hot(source, answer) - df.replace(one_hot, genotype)(source, answer)).max()
    chosen = dict(zip(found.places, genotype.texts(), strict=True))
    print(json.dumps({"genotype": chosen, "gap": float(gap)}))
    print(json.dumps({"verdict": race.verdict}))
