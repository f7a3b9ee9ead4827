"""Extras: what can be put on top of a strategy that learns alphas."""

from dartformer.registry import Registry, is_dataclass_type
from dartformer.strategies.extras.base import Extra
from dartformer.strategies.extras.beta_decay import BetaDecay
from dartformer.strategies.extras.drop import Drop
from dartformer.strategies.extras.early_stop import EarlyStop
from dartformer.strategies.extras.entropy import Entropy
from dartformer.strategies.extras.perturb import Adversarial, Smoothing

__all__ = ["EXTRAS", "Extra"]

BUILT_IN: dict[str, type[Extra]] = {
    "beta_decay": BetaDecay,
    "entropy": Entropy,
    "smoothing": Smoothing,
    "adversarial": Adversarial,
    "drop": Drop,
    "early_stop": EarlyStop,
}


def _is_extra(cls: type) -> bool:
    return is_dataclass_type(cls) and issubclass(cls, Extra) and hasattr(cls, "name")


EXTRAS: Registry[type[Extra]] = Registry(
    "extra",
    BUILT_IN,
    group="dartformer.extra",
    requirement="a dataclass derived from `Extra`, with a `name`",
    fits=_is_extra,
)
"""Every extra by name: the built-in ones, and those of other packages."""
