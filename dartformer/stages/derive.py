"""Derive: from a mixture to a genotype, ties named."""

from dartformer import diagnostics
from dartformer.genotype import Genotype
from dartformer.stages.search import SearchResult


def argmax(result: SearchResult) -> Genotype:
    """The candidate with the largest weight in each free row; of equals, the first in the list."""
    return result.space.genotype(diagnostics.rows(result.mixture, result.space)["winner"])


def derive(result: SearchResult) -> tuple[Genotype, list[str]]:
    """The genotype, and a line for each choice that was closer than the config's tie margin."""
    return argmax(result), diagnostics.ties(result.mixture, result.space, result.tie_margin)
