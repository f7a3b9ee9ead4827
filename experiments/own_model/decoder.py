"""A small decoder in plain flax NNX with a search over heads in it: a text that repeats itself.

    python experiments/own_model/decoder.py

The winner then continues a text token by token, from the caches of its layers. Prints JSON, the
verdict last.
"""

import json

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import dartformer as df

PERIOD, LENGTH, LETTERS, WIDTH, HEADS, LAYERS, STEPS, BATCH = 6, 18, 8, 32, 2, 2, 200, 32
CANDIDATES = ("full", "local(window=3)", "linear")


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = df.nn.MixedAttention(CANDIDATES, WIDTH, HEADS, causal=True, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def feed(self, x):
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))

    def __call__(self, x):
        return self.feed(x + self.attention(self.norm1(x)))

    def step(self, x, cache):
        y, cache = self.attention.step(self.norm1(x), cache)
        return self.feed(x + y), cache


class Decoder(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(LETTERS, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.norm(x))

    def step(self, token, n, caches):
        x = self.embed(token) + self.positions(jnp.full_like(token, n))
        after = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block.step(x, cache)
            after.append(cache)
        return self.embed.attend(self.norm(x)), after


def loss(model, tokens, rngs):
    logits = model(tokens[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return losses[:, PERIOD:].mean()  # before it, nothing is foreseeable


def texts(count, seed):
    period = np.random.default_rng(seed).integers(LETTERS, size=(count, PERIOD))
    return np.tile(period, LENGTH // PERIOD)


def continued(model, start):
    """Greedy continuation of texts `[B, n]` to `LENGTH` tokens."""
    caches = [block.attention.init_cache(len(start), LENGTH) for block in model.blocks]
    step = nnx.jit(Decoder.step)
    tokens = [start[:, n : n + 1] for n in range(start.shape[1])]
    for n in range(LENGTH - 1):
        logits, caches = step(model, tokens[n], jnp.asarray(n), caches)
        if n + 1 == len(tokens):
            tokens.append(jnp.argmax(logits, -1))
    return jnp.concatenate(tokens, 1)


data = {"train": texts(2000, 0), "valid": texts(300, 1), "test": texts(300, 2)}

if __name__ == "__main__":
    found = df.search(Decoder(nnx.Rngs(0)), loss, data, space="head", steps=STEPS, batch_size=BATCH)
    genotype = df.derive(found)
    race = df.race(
        found,
        lambda genotype, seed: Decoder(nnx.Rngs(seed)),
        seeds=(0, 1),
        finalists=2,
        neighbours=2,
    )

    tokens = texts(50, 3)
    one_hot = found.at(genotype)
    gap = abs(one_hot(tokens) - df.replace(one_hot, genotype)(tokens)).max()
    right = (continued(race.model, tokens[:, : PERIOD + 2]) == tokens).mean()
    print(json.dumps({"genotype": genotype.texts(), "gap": float(gap), "continued": float(right)}))
    print(json.dumps({"verdict": race.verdict}))
