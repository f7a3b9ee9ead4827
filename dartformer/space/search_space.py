"""What is searched over: which attentions, how finely, and the step between alphas, mixtures and
genotypes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dartformer.attention.base import Attention
from dartformer.attention.parallel import Parallel
from dartformer.errors import InputError, unknown
from dartformer.space.genotype import Genotype

Granularity = Literal["model", "layer", "head"]
GRANULARITIES = ("model", "layer", "head")
ASPECTS = ("given", "constant_heads")


def shapes(layers: int, heads: int, aspect: str) -> tuple[tuple[int, int], ...]:
    """Layers and heads of every shape of a space, the deepest first: the given one, or with
    "constant_heads" all that have as many heads in all and a number of layers that divides L (Wide
    Attention, arXiv 2210.00640): of 6 x 8 also 3 x 16, 2 x 24 and 1 x 48."""
    if aspect not in ASPECTS:
        raise unknown("space.aspect", aspect, ASPECTS)
    fewer = range(layers, 0, -1) if aspect == "constant_heads" else (layers,)
    return tuple((n, layers * heads // n) for n in fewer if layers % n == 0)


@dataclass(frozen=True)
class SearchSpace:
    """K candidates for each place of an L x H grid, tied as `granularity` says.

    "model": one attention everywhere (homogeneous); "layer": one for each layer; "head": one for
    each head."""

    candidates: tuple[Attention, ...]
    layers: int
    heads: int
    granularity: Granularity = "layer"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise unknown("granularity", self.granularity, GRANULARITIES)
        if len(self.candidates) < 2:
            raise InputError(
                f"a search space needs at least two candidates, got {len(self.candidates)}."
            )

    @property
    def alphas_shape(self) -> tuple[int, int, int]:
        """`[1 or L, 1 or H, K]`: what broadcasts to a mixture [L, H, K] is the whole of
        granularity."""
        return (
            1 if self.granularity == "model" else self.layers,
            self.heads if self.granularity == "head" else 1,
            len(self.candidates),
        )

    @property
    def mixture_shape(self) -> tuple[int, int, int]:
        """`[L, H, K]`."""
        return self.layers, self.heads, len(self.candidates)

    @property
    def size(self) -> int:
        """How many genotypes there are."""
        rows, columns, candidates = self.alphas_shape
        return int(candidates) ** (rows * columns)

    def place_name(self, place: tuple[int, int]) -> str:
        """How a place `[1 or L, 1 or H]` of the alphas is called."""
        if self.granularity == "model":
            return "everywhere"
        return (
            f"layer {place[0]}"
            if self.granularity == "layer"
            else f"layer {place[0]}, head {place[1]}"
        )

    def genotype(self, choice: np.ndarray) -> Genotype:
        """The genotype of integer choices `[1 or L, 1 or H]` (or any array that broadcasts to [L,
        H])."""
        grid = np.broadcast_to(np.asarray(choice), (self.layers, self.heads))
        return Genotype(tuple(tuple(self.candidates[int(k)] for k in row) for row in grid))

    def choice(self, genotype: Genotype) -> np.ndarray:
        """`[L, H]` indices of a genotype's attentions among the candidates; raises if one is not
        among them."""
        self._require_size(genotype)
        return np.array([[self._index(a) for a in heads] for heads in genotype.layers])

    def mixture(self, genotype: Genotype) -> np.ndarray:
        """The mixture `[L, H, K]` of a genotype, float32: one-hot, or the shares where candidates
        are in parallel."""
        self._require_size(genotype)
        mixture = np.zeros(self.mixture_shape, np.float32)
        for l, heads in enumerate(genotype.layers):
            for h, one in enumerate(heads):
                members: tuple[tuple[Attention, float], ...] = ((one, 1.0),)
                if isinstance(one, Parallel) and one not in self.candidates:
                    members = one.weighted
                for member, share in members:
                    mixture[l, h, self._index(member)] = share
        return mixture

    def _require_size(self, genotype: Genotype) -> None:
        if (len(genotype.layers), genotype.heads) != (self.layers, self.heads):
            raise InputError(
                f"the genotype is {len(genotype.layers)}x{genotype.heads} (layers x heads), "
                f"the space is {self.layers}x{self.heads}."
            )

    def _index(self, one: Attention) -> int:
        if one not in self.candidates:
            raise InputError(f"{one!r} is not among the candidates {list(self.candidates)}.")
        return self.candidates.index(one)

    def homogeneous(self) -> tuple[Genotype, ...]:
        """The K genotypes with one attention everywhere."""
        return tuple(Genotype.homogeneous(a, self.layers, self.heads) for a in self.candidates)

    def mixed(self) -> Genotype:
        """All candidates in parallel, everywhere, with equal shares: the supernet's uniform mixture
        as a model."""
        shares: dict[Attention, float] = {}
        for one in self.candidates:
            for member, share in one.weighted if isinstance(one, Parallel) else ((one, 1.0),):
                shares[member] = shares.get(member, 0.0) + share
        equal = len(set(shares.values())) == 1
        return Genotype.homogeneous(
            Parallel(tuple(shares), () if equal else tuple(shares.values())),
            self.layers,
            self.heads,
        )

    def random(self, rng: np.random.Generator) -> Genotype:
        """A genotype drawn uniformly from the space."""
        rows, columns, candidates = self.alphas_shape
        return self.genotype(rng.integers(candidates, size=(rows, columns)))

    def mutate(self, genotype: Genotype, rng: np.random.Generator) -> Genotype:
        """A neighbour: one place of the space (a head, a layer, or all) changed to another
        candidate."""
        rows, columns, candidates = self.alphas_shape
        choice = self.choice(genotype)[:rows, :columns].copy()
        place = rng.integers(rows), rng.integers(columns)
        choice[place] = (choice[place] + rng.integers(1, candidates)) % candidates
        return self.genotype(choice)
