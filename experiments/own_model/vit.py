"""The vision Transformer of `vit_plain.py` with a search in it: which attention in which layer?

    python experiments/own_model/vit.py

Prints JSON, the verdict last.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import dartformer as df

WIDTH, HEADS, LAYERS, STEPS, BATCH = 32, 4, 2, 200, 32
CANDIDATES = ("full", "local(window=2)", "uniform")


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = df.nn.MixedAttention(CANDIDATES, WIDTH, HEADS, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class ViT(nnx.Module):
    def __init__(self, rngs):
        self.patches = nnx.Conv(1, WIDTH, (2, 2), strides=2, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (16, WIDTH)))
        self.blocks = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images)  # [B, 4, 4, E]
        x = x.reshape(len(x), 16, WIDTH) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def loss(model, batch, rngs):
    images, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


digits = load_digits()
images, labels = digits.images[..., None].astype(np.float32) / 16, digits.target
order = np.random.default_rng(0).permutation(len(images))
parts = dict(zip(("train", "valid", "test"), np.split(order, [1000, 1400]), strict=True))
data = {name: (images[rows], labels[rows]) for name, rows in parts.items()}

if __name__ == "__main__":
    found = df.search(ViT(nnx.Rngs(0)), loss, data, steps=STEPS, batch_size=BATCH)
    genotype = df.derive(found)
    race = df.race(found, lambda genotype, seed: ViT(nnx.Rngs(seed)), seeds=(0, 1), finalists=2)
    test_images, test_labels = data["test"]
    accuracy = (jnp.argmax(race.model(test_images), -1) == test_labels).mean()
    one_hot = found.at(genotype)
    gap = float(abs(one_hot(images[:9]) - df.replace(one_hot, genotype)(images[:9])).max())
    print(json.dumps({"genotype": genotype.texts(), "gap": gap, "accuracy": float(accuracy)}))
    print(json.dumps({"verdict": race.verdict}))
