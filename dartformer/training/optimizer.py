"""Optimizers and schedules, for the weights and for the architecture weights, as optax chains."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from dartformer.fields import at_least, between, check_types, one_of

NAMES = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "constant", "rsqrt")

EPS_ROOT = 1e-16
"""Added to Adam's second moment under the root. The derivative of sqrt at 0 is infinite, so
differentiating an Adam step (exact second-order search) at a parameter whose gradient is zero would
give NaN; 1e-16 removes that and leaves the step as it was, sqrt(1e-16) being Adam's own eps."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer with its learning-rate schedule.

    Attributes:
      name: the update rule: "adamw", "adam" or "sgd" (with momentum).
      learning_rate: the peak of the schedule; for "rsqrt" its constant.
      schedule: after the warmup: "cosine", "constant" or "rsqrt".
      warmup: share of the steps in which the rate rises linearly to the peak.
      final: where "cosine" ends, as a share of the peak.
      weight_decay: decoupled for "adamw", added to the gradient for "adam" and "sgd".
      clip: largest global norm of a gradient; 0 does not clip.
      b1: Adam's decay of the first moment.
      b2: Adam's decay of the second moment.
      eps: added to the root of Adam's second moment.
      momentum: of "sgd".
    """

    name: str = "adamw"
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup: float = 0.05
    final: float = 0.05
    weight_decay: float = 1e-3
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_types(self)
        one_of(self, "name", NAMES)
        one_of(self, "schedule", SCHEDULES)
        at_least(self, 0, "learning_rate", "weight_decay", "clip", "eps")
        between(self, 0, 1, "warmup", "final", "b1", "b2", "momentum")


FINE_TUNE_RATE = 0.1
"""Of the search's learning rate, falling to zero along a cosine: DARTS-PT fine-tunes so (arXiv
2108.04392)."""


def fine_tuning(search: Optimizer) -> Optimizer:
    """The optimizer that trains a supernet further after a search."""
    rate = FINE_TUNE_RATE * search.learning_rate
    return replace(search, learning_rate=rate, schedule="cosine", warmup=0.0, final=0.0)


def schedule(options: Optimizer, steps: int) -> optax.Schedule:
    """Learning rate by step, from 0: linear warmup, then what `options.schedule` says.

    A warmup of W steps takes 1/W of the peak in its first step and all of it in its last. "cosine"
    falls to `final` times the peak at `steps`; "constant" stays; "rsqrt" is Long Range Arena's
    `rate * min(1, s/w) / sqrt(max(s, w))`, where s counts the steps from 1 and `learning_rate` is
    the constant, not the peak."""
    rate, warmup = options.learning_rate, round(options.warmup * steps)
    w = max(warmup, 1)

    # The step under way counts: from 0 the rise would begin with a step that changes nothing.
    def rise(step: ArrayLike) -> Array:
        return jnp.minimum(1.0, (jnp.asarray(step) + 1) / w)

    if options.schedule == "cosine":
        fall = optax.cosine_decay_schedule(1.0, max(steps - warmup, 1), alpha=options.final)
        return lambda step: rate * rise(step) * fall(jnp.maximum(jnp.asarray(step) - warmup, 0))
    if options.schedule == "constant":
        return lambda step: rate * rise(step)
    return lambda step: rate * rise(step) / jnp.sqrt(jnp.maximum(jnp.asarray(step) + 1, w))


def scale_by_schedule(rate: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Updates times minus the learning rate, of the step `at` or else of the transformation's own.

    Whoever rests for a part of the training says with `at` where on the schedule a step stands."""

    def init(params: optax.Params) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: optax.Updates,
        state: optax.ScaleByScheduleState,
        params: optax.Params | None = None,
        *,
        at: Array | None = None,
        **_: object,
    ) -> tuple[optax.Updates, optax.ScaleByScheduleState]:
        if at is None:
            at = state.count
        factor = -rate(at)
        scaled = jax.tree.map(lambda leaf: jnp.asarray(factor, leaf.dtype) * leaf, updates)
        count = optax.safe_increment(state.count)
        return scaled, optax.ScaleByScheduleState(count=count)

    return optax.GradientTransformationExtraArgs(init, update)


def build(options: Optimizer, steps: int) -> optax.GradientTransformation:
    """The chain: clipping by global norm, the update rule with weight decay, the schedule."""
    # Clipping comes first, so that it sees the gradient of the loss without the decay.
    chain = []
    if options.clip:
        chain.append(optax.clip_by_global_norm(options.clip))
    decay = optax.add_decayed_weights(options.weight_decay)
    adam = optax.scale_by_adam(options.b1, options.b2, options.eps, EPS_ROOT)
    # "adamw" decays the weights beside the update (Loshchilov and Hutter, arXiv 1711.05101). For
    # "adam" and "sgd" the decay is part of the gradient, as in their papers.
    if options.name == "adamw":
        chain += [adam, decay]
    elif options.name == "adam":
        chain += [decay, adam]
    else:
        chain += [decay, optax.trace(options.momentum)]
    return optax.chain(*chain, scale_by_schedule(schedule(options, steps)))
