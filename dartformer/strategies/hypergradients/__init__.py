"""Hypergradients: how the gradient of the alphas accounts for the weights' response."""

from dartformer.registry import Registry, is_dataclass_type
from dartformer.strategies.hypergradients.bilevel import Finite, First, Hypergradient, Second
from dartformer.strategies.hypergradients.implicit import ConjugateGradient, Neumann

__all__ = ["HYPERGRADIENTS", "Hypergradient"]

BUILT_IN: dict[str, type[Hypergradient]] = {
    "first": First,
    "second": Second,
    "finite": Finite,
    "neumann": Neumann,
    "conjugate_gradient": ConjugateGradient,
}


def _is_hypergradient(cls: type) -> bool:
    return is_dataclass_type(cls) and hasattr(cls, "order")


HYPERGRADIENTS: Registry[type[Hypergradient]] = Registry(
    "hypergradient",
    BUILT_IN,
    group="dartformer.hypergradient",
    requirement="a dataclass with an `order`",
    fits=_is_hypergradient,
)
"""Every hypergradient by name: the built-in ones, and those of other packages."""
