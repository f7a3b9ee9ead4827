"""ProxylessNAS (Cai et al. 2019, arXiv 1812.00332): binary gates, and two paths at a time for the
alphas.

A step of the weights runs one path, drawn from p = softmax(a). A step of the alphas draws two, i
and j, gives them the probabilities q = softmax(a_i, a_j), opens the gate of one of the two drawn by
q, and uses

    dL/da_i = sum_j dL/dg_j q_j (delta_ij - q_i)          (eq. 4, over the two)

with dL/dg_j = <o_j, dL/dy> of both, the shut gate's included. Afterwards both alphas are shifted by
the same amount, so that the probabilities of all the others are what they were."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from dartformer.strategies.alternate import Alternating
from dartformer.strategies.base import Traits
from dartformer.strategies.relax import Alive, Relaxation, living, one_hot, softmax

AJAR = 1e-30
"""What a shut gate of the pair is open, so that the supernet computes its path, as a gradient for
the gate needs. It is lost in rounding when it is added to the other path."""


def draw_pair(alphas: Array, alive: Alive, key: Array) -> Array:
    """`[..., K]` bool: two candidates of each row, drawn from p without replacement (the largest of
    a + Gumbel)."""
    noisy = living(alphas, alive) + jax.random.gumbel(key, alphas.shape, alphas.dtype)
    _, chosen = jax.lax.top_k(noisy, 2)
    pair = one_hot(chosen, alphas).sum(-2) > 0
    return pair if alive is None else pair & alive  # where but one is alive, it is alone


def path(alphas: Array, alive: Alive, key: Array, progress: Array) -> Array:
    """One path in each row, drawn from p."""
    return one_hot(jax.random.categorical(key, living(alphas, alive)), alphas)


def two_paths(alphas: Array, alive: Alive, key: Array, progress: Array) -> Array:
    """One gate of the pair open; differentiated as the softmax over the pair."""
    pair_key, gate_key = jax.random.split(key)
    pair = draw_pair(alphas, alive, pair_key)
    among = living(alphas, pair)
    gates = jnp.where(
        pair, jnp.maximum(one_hot(jax.random.categorical(gate_key, among), alphas), AJAR), 0
    )
    q = jax.nn.softmax(among, -1)
    return gates + (q - jax.lax.stop_gradient(q))


def settle(before: Array, after: Array, alive: Alive, key: Array) -> Array:
    """Only the pair moves, and log(sum e^after / sum e^before) over it is taken off again."""
    pair = draw_pair(before, alive, jax.random.split(key)[0])
    shift = jax.nn.logsumexp(living(after, pair), -1, keepdims=True) - jax.nn.logsumexp(
        living(before, pair), -1, keepdims=True
    )
    return jnp.where(pair, after - shift, before)


@dataclass(frozen=True)
class Proxyless(Alternating):
    """One path at a time for the weights, two for the alphas: never more than two candidates in
    memory.

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
