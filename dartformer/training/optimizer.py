"""Optimisers and schedules, for weights and for alphas, as optax chains."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from dartformer.errors import InputError, unknown

NAMES = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "constant", "rsqrt")

EPS_ROOT = 1e-16
"""Added to Adam's second moment under the root. The derivative of sqrt at 0 is infinite, so
differentiating an Adam step (exact second-order search) at a parameter whose gradient is zero would
give NaN; 1e-16 removes that and leaves the step as it was, sqrt(1e-16) being Adam's own eps."""

DEFAULTS: dict[str, Any] = {
    "name": "adamw",
    "learning_rate": 3e-3,
    "schedule": "cosine",
    "warmup": 0.05,
    "final": 0.05,
    "weight_decay": 1e-3,
    "clip": 1.0,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "momentum": 0.9,
}
"""What an optimiser section of a config holds. `warmup` and `final` are shares: of the steps, of
the peak rate."""


def schedule(section: Mapping[str, Any], steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then what `section.schedule` says.

    "cosine" falls to `final` times the peak at `steps`; "constant" stays; "rsqrt" is Long Range
    Arena's `rate * min(1, s/w) / sqrt(max(s, w))`, where `learning_rate` is the constant, not the
    peak."""
    rate, warmup = float(section["learning_rate"]), round(float(section["warmup"]) * steps)
    kind = section["schedule"]
    if kind == "cosine":
        if warmup == 0:
            return optax.cosine_decay_schedule(rate, max(steps, 1), alpha=float(section["final"]))
        return optax.warmup_cosine_decay_schedule(
            0.0, rate, warmup, max(steps, warmup + 1), end_value=rate * float(section["final"])
        )
    if kind == "constant":
        if warmup == 0:
            return optax.constant_schedule(rate)
        return optax.linear_schedule(0.0, rate, warmup)
    w = max(warmup, 1)
    return lambda s: rate * jnp.minimum(1.0, s / w) / jnp.sqrt(jnp.maximum(s, w))


def build(section: Mapping[str, Any], steps: int) -> optax.GradientTransformation:
    """The chain: clip by global norm, the optimiser, decoupled weight decay (coupled for "adam" and
    "sgd", as their authors have it), the schedule."""
    rate, decay = schedule(section, steps), float(section["weight_decay"])
    chain = [optax.clip_by_global_norm(float(section["clip"]))] if section["clip"] else []
    adam = dict(
        b1=float(section["b1"]),
        b2=float(section["b2"]),
        eps=float(section["eps"]),
        eps_root=EPS_ROOT,
    )
    if section["name"] == "adamw":
        chain += [optax.scale_by_adam(**adam), optax.add_decayed_weights(decay)]
    elif section["name"] == "adam":
        chain += [optax.add_decayed_weights(decay), optax.scale_by_adam(**adam)]
    else:
        chain += [optax.add_decayed_weights(decay), optax.trace(float(section["momentum"]))]
    return optax.chain(*chain, optax.scale_by_learning_rate(rate))


def validate(section: Mapping[str, Any], where: str) -> None:
    """Raise `InputError` for a value that cannot be an optimiser's; `where` is the section's dotted
    name."""
    if section["name"] not in NAMES:
        raise unknown(f"{where}.name", section["name"], NAMES)
    if section["schedule"] not in SCHEDULES:
        raise unknown(f"{where}.schedule", section["schedule"], SCHEDULES)
    limits = {
        "learning_rate": (0, None),
        "warmup": (0, 1),
        "final": (0, 1),
        "weight_decay": (0, None),
        "clip": (0, None),
        "b1": (0, 1),
        "b2": (0, 1),
        "eps": (0, None),
        "momentum": (0, 1),
    }
    for name, (low, high) in limits.items():
        value = section[name]
        if not low <= value or (high is not None and value > high):
            between = f"between {low} and {high}" if high is not None else f"at least {low}"
            raise InputError(f"{where}.{name} must be {between}, got {value!r}.")
