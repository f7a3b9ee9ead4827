"""A small vision Transformer in plain flax NNX, as somebody may have it: digits of 8 x 8 pixels.

    python experiments/own_model/vit_plain.py

`vit.py` is this file with a search in it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

WIDTH, HEADS, LAYERS, STEPS, BATCH = 32, 4, 2, 200, 32


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm1, self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs), nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
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


@nnx.jit
def train_step(model, optimizer, batch):
    value, gradient = nnx.value_and_grad(loss)(model, batch, None)
    optimizer.update(model, gradient)
    return value


digits = load_digits()
images, labels = digits.images[..., None].astype(np.float32) / 16, digits.target
order = np.random.default_rng(0).permutation(len(images))
parts = dict(zip(("train", "valid", "test"), np.split(order, [1000, 1400]), strict=True))
data = {name: (images[rows], labels[rows]) for name, rows in parts.items()}

if __name__ == "__main__":
    model = ViT(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)
    for step in range(STEPS):
        rows = np.random.default_rng(step).choice(parts["train"], BATCH)
        train_step(model, optimizer, (images[rows], labels[rows]))
    test_images, test_labels = data["test"]
    print(f"test accuracy {(jnp.argmax(model(test_images), -1) == test_labels).mean():.3f}")
