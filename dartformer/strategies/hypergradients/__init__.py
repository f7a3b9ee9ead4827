"""How the weights' answer to the alphas is accounted for. The table below is the whole list."""

from dartformer.strategies.hypergradients.bilevel import Finite, First, Hypergradient, Second
from dartformer.strategies.hypergradients.implicit import ConjugateGradient, Neumann

HYPERGRADIENTS: dict[str, type[Hypergradient]] = {
    "first": First,
    "second": Second,
    "finite": Finite,
    "neumann": Neumann,
    "conjugate_gradient": ConjugateGradient,
}
