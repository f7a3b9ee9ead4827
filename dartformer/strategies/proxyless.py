"""ProxylessNAS (Cai et al. 2019, arXiv 1812.00332): binary gates, two paths for the alphas.

A step of the weights runs one path, drawn from p = softmax(a). A step of the alphas draws two, i
and j, gives them the probabilities q = softmax(a_i, a_j), opens the gate of one of the two drawn by
q, and uses

    dL/da_i = sum_j dL/dg_j q_j (delta_ij - q_i)          (eq. 4, over the two)

with dL/dg_j = <o_j, dL/dy> of both, the shut gate's included. Afterwards both alphas are shifted by
the same amount, so that the probabilities of all other candidates stay as they are.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.strategies.alternate import Alternating
from dartformer.strategies.base import Traits
from dartformer.strategies.relax import Alive, Relaxation, living, one_hot, softmax

AJAR = 1e-30
"""The weight of the pair's shut gate: not zero, so the supernet computes its path, which the gate's
gradient needs. Added to the other path it is lost in rounding."""


def draw_pair(alphas: Array, alive: Alive, key: Array) -> Array:
    """`[..., K]` bool: two candidates of each row, drawn from p without replacement (the largest of
    a + Gumbel)."""
    noisy = living(alphas, alive) + jax.random.gumbel(key, alphas.shape, alphas.dtype)
    _, chosen = jax.lax.top_k(noisy, 2)
    pair = one_hot(chosen, alphas).sum(-2) > 0
    if alive is None:
        return pair
    return pair & alive  # where only one candidate is alive, the second draw is of a dropped one


def path(alphas: Array, alive: Alive, key: Array, progress: Array) -> Array:
    """One path in each row, drawn from p."""
    return one_hot(jax.random.categorical(key, living(alphas, alive)), alphas)


def two_paths(alphas: Array, alive: Alive, key: Array, progress: Array) -> Array:
    """One gate of the pair open; differentiated as the softmax over the pair."""
    pair_key, gate_key = jax.random.split(key)
    pair = draw_pair(alphas, alive, pair_key)
    among = living(alphas, pair)
    open_gate = one_hot(jax.random.categorical(gate_key, among), alphas)
    # Exactly zero outside the pair, so that a step skips all other candidates.
    gates = jnp.where(pair, jnp.maximum(open_gate, AJAR), 0)
    # Zero in the forward pass, with the gradient of the softmax over the pair (eq. 4).
    q = jax.nn.softmax(among, -1)
    return gates + (q - jax.lax.stop_gradient(q))


def settle(before: Array, after: Array, alive: Alive, key: Array) -> Array:
    """Moves only the pair, and subtracts log(sum e^after / sum e^before) over it."""
    pair_key, _ = jax.random.split(key)  # as in `two_paths`, so that it is the same pair
    pair = draw_pair(before, alive, pair_key)
    # The pair keeps the sum of its e^a, and with it every other candidate its probability.
    new_sum = jax.nn.logsumexp(living(after, pair), -1, keepdims=True)
    old_sum = jax.nn.logsumexp(living(before, pair), -1, keepdims=True)
    return jnp.where(pair, after - (new_sum - old_sum), before)


@dataclass(frozen=True)
class Proxyless(Alternating):
    """Runs one sampled path for the weights, two for the alphas: at most two candidates in memory.

    Attributes:
      warmup, spread, extras: see `Alternating`.
    """

    traits: ClassVar[Traits] = Traits("arXiv 1812.00332", ("argmax", "masked_drop", "sample"))

    @property
    def sampled(self) -> bool:
        """See `StrategyOptions`."""
        return True

    def relaxation(self) -> Relaxation:
        """One path below, two above."""
        return Relaxation(softmax, path, two_paths, settle)
