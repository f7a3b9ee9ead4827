"""What `df.search` adds to a user's own loop over the same compiled step.

    python experiments/own_model/overhead.py

Prints JSON: processor seconds of a step in both after the first 300, and the ratio.
"""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import dartformer as df
from dartformer.modules.functions import Functions
from dartformer.modules.search import chain_of, strategy_of
from dartformer.strategies import Problem
from dartformer.training.optimizer import Optimizer

FIRST, STEPS, ROUNDS, WIDTH = 300, 600, 3, 32
OPTIMIZER = Optimizer()


class Model(nnx.Module):
    def __init__(self, rngs):
        self.read = nnx.Linear(4, WIDTH, rngs=rngs)
        self.attention = df.nn.MixedAttention(("full", "uniform", "linear"), WIDTH, 2, rngs=rngs)
        self.write = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        x = self.read(x)
        return self.write((x + self.attention(x)).mean(1))


def loss(model, batch, rngs):
    x, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()


random = np.random.default_rng(0)
batches = []
for _ in range(20):
    x = random.normal(size=(64, 32, 4)).astype(np.float32)
    batches.append((x, (x[:, :, 0].mean(1) > 0).astype(np.int32)))


def searched():
    """Processor seconds of a step in `df.search`."""
    clock = []

    def on_step(moment):
        if moment.step in (FIRST, FIRST + STEPS):
            clock.append(time.process_time())

    total = FIRST + STEPS
    data = {"weights": batches, "alphas": batches, "valid": batches[:1]}
    df.search(
        Model(nnx.Rngs(0)),
        loss,
        data,
        steps=total,
        eval_every=total,
        weights_optimizer=OPTIMIZER,
        alphas_optimizer=OPTIMIZER,
        on_step=on_step,
    )
    return (clock[1] - clock[0]) / STEPS


def looped():
    """Processor seconds of the same step in a plain loop."""
    functions = Functions(Model(nnx.Rngs(0)), loss)
    total = FIRST + STEPS
    chain = chain_of(OPTIMIZER, total)
    problem = Problem(functions.loss, (1, 1, 3), (1, 2, 3), chain, chain, total)
    strategy = strategy_of("darts")(problem)
    step = jax.jit(strategy.step, donate_argnums=0)
    state = strategy.init(jax.random.key(0), jax.tree.map(jnp.copy, functions.weights))
    for number in range(total):
        if number == FIRST:
            started = time.process_time()
        batch = batches[number % len(batches)]
        state, metrics = step(state, batch, batch)
        if number % 20 == 0:
            float(metrics["loss"])  # as anybody would print it
    jax.block_until_ready(state)
    return (time.process_time() - started) / STEPS


ours, theirs = [], []
for _ in range(ROUNDS):
    ours.append(searched())
    theirs.append(looped())
# Of runs one after the other: what else the machine does changes more slowly.
ratio = np.median(np.array(ours) / np.array(theirs))
print(json.dumps({"search": ours, "loop": theirs, "ratio": float(ratio)}))
