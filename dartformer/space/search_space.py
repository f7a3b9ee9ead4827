"""The search space: its candidates, its granularity, and its alphas, mixtures and genotypes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dartformer.attention.base import Attention
from dartformer.attention.parallel import Parallel
from dartformer.errors import InputError, unknown
from dartformer.space.genotype import Genotype

Granularity = Literal["model", "layer", "kv_group", "head"]
GRANULARITIES = ("model", "layer", "kv_group", "head")
ASPECTS = ("given", "constant_heads")


def shapes(layers: int, heads: int, aspect: str) -> tuple[tuple[int, int], ...]:
    """Layers and heads of the shapes of a space, the deepest first.

    "given" is the one shape L x H. "constant_heads" adds all shapes with the same total of heads
    and a number of layers that divides L (Wide Attention, arXiv 2210.00640): 6 x 8 brings 3 x 16,
    2 x 24 and 1 x 48."""
    if aspect not in ASPECTS:
        raise unknown("space.aspect", aspect, ASPECTS)
    if aspect == "given":
        return ((layers, heads),)
    total = layers * heads
    pairs = []
    for n in range(layers, 0, -1):
        if layers % n == 0:
            pairs.append((n, total // n))
    return tuple(pairs)


def everywhere(rows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """`[R, C, ...]` -> `[L, H, ...]`: each row for all layers and heads that share it."""
    for axis, size in enumerate(shape):
        rows = np.repeat(rows, size // rows.shape[axis], axis)
    return rows


@dataclass(frozen=True)
class SearchSpace:
    """K candidates for each place of an L x H grid, tied as `granularity` says.

    "model": one attention everywhere (homogeneous); "layer": one for each layer; "kv_group": one
    for the heads that share keys and values; "head": one for each head.

    Attributes:
      candidates: K attentions.
      layers, heads: L and H.
      granularity: what chooses.
      kv_heads: heads of keys and values in a layer, each shared by neighbouring heads; 0: H.
    """

    candidates: tuple[Attention, ...]
    layers: int
    heads: int
    granularity: Granularity = "layer"
    kv_heads: int = 0

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise unknown("granularity", self.granularity, GRANULARITIES)
        if len(self.candidates) < 2:
            raise InputError(
                f"a search space needs at least two candidates, got {len(self.candidates)}."
            )

    @property
    def alphas_shape(self) -> tuple[int, int, int]:
        """`[R, C, K]`: R is 1 or L, and C is 1, the heads of keys and values, or H.

        Granularity means nothing more than this shape."""
        rows, columns = self.layers, 1  # "layer": the heads of a layer share one row
        if self.granularity == "model":
            rows = 1
        if self.granularity == "kv_group":
            columns = self.kv_heads or self.heads
        if self.granularity == "head":
            columns = self.heads
        return rows, columns, len(self.candidates)

    def cells(self, place: tuple[int, int]) -> tuple[slice, slice]:
        """The layers and heads that a place `[R, C]` of the alphas stands for."""
        rows, columns, _ = self.alphas_shape
        layers, heads = self.layers // rows, self.heads // columns
        row, column = place
        return (
            slice(row * layers, (row + 1) * layers),
            slice(column * heads, (column + 1) * heads),
        )

    def free(self, grid: np.ndarray) -> np.ndarray:
        """`[L, H, ...]` -> `[R, C, ...]`: the first of all places that share alphas."""
        rows, columns, _ = self.alphas_shape
        return grid[:: self.layers // rows, :: self.heads // columns]

    @property
    def mixture_shape(self) -> tuple[int, int, int]:
        """`[L, H, K]`."""
        return self.layers, self.heads, len(self.candidates)

    @property
    def size(self) -> int:
        """How many genotypes there are."""
        rows, columns, candidates = self.alphas_shape
        # Python's integers do not overflow: 8 candidates in 6 x 8 heads are 2^144 genotypes.
        return int(candidates) ** (rows * columns)

    def place_name(self, place: tuple[int, int]) -> str:
        """The name of a place `[1 or L, 1 or H]` of the alphas."""
        layer, head = place
        if self.granularity == "model":
            return "everywhere"
        if self.granularity == "layer":
            return f"layer {layer}"
        if self.granularity == "kv_group":
            return f"layer {layer}, KV group {head}"
        return f"layer {layer}, head {head}"

    def genotype(self, choice: np.ndarray) -> Genotype:
        """The genotype of integer choices `[R, C]`, or `[L, H]`."""
        grid = everywhere(np.asarray(choice), (self.layers, self.heads))
        layers = []
        for row in grid:
            heads = [self.candidates[int(k)] for k in row]
            layers.append(tuple(heads))
        return Genotype(tuple(layers))

    def choice(self, genotype: Genotype) -> np.ndarray:
        """`[L, H]`: the index of each attention of a genotype among the candidates.

        Raises `InputError` for an attention that is no candidate."""
        self._require_size(genotype)
        # An index for every place. Of a tied space, the copies are left in.
        rows = []
        for heads in genotype.layers:
            rows.append(list(map(self._index, heads)))
        return np.array(rows)

    def holds(self, genotype: Genotype) -> bool:
        """Whether a genotype has a mixture over the candidates."""
        try:
            self.mixture(genotype)
        except InputError:
            return False
        return True

    def mixture(self, genotype: Genotype) -> np.ndarray:
        """The mixture `[L, H, K]` of a genotype, float32: one-hot, or the shares of a parallel one."""
        self._require_size(genotype)
        mixture = np.zeros(self.mixture_shape, np.float32)
        for l, heads in enumerate(genotype.layers):
            for h, attention in enumerate(heads):
                # A parallel attention can be a candidate itself. Only where it is none does it stand
                # for the mixture of its members.
                members = [(attention, 1.0)]
                if attention not in self.candidates:
                    members = _members(attention)
                for member, share in members:
                    mixture[l, h, self._index(member)] = share
        return mixture

    def _require_size(self, genotype: Genotype) -> None:
        if (len(genotype.layers), genotype.heads) != (self.layers, self.heads):
            raise InputError(
                f"the genotype is {len(genotype.layers)}x{genotype.heads} (layers x heads), "
                f"the space is {self.layers}x{self.heads}."
            )

    def _index(self, attention: Attention) -> int:
        if attention not in self.candidates:
            raise InputError(f"{attention!r} is not among the candidates {list(self.candidates)}.")
        return self.candidates.index(attention)

    def homogeneous(self) -> tuple[Genotype, ...]:
        """The K genotypes with one attention everywhere."""
        genotypes = []
        for candidate in self.candidates:
            genotypes.append(Genotype.homogeneous(candidate, self.layers, self.heads))
        return tuple(genotypes)

    def mixed(self) -> Genotype:
        """All candidates in parallel, everywhere: the supernet's uniform mixture as a model."""
        shares: dict[Attention, float] = {}
        for candidate in self.candidates:
            # A parallel candidate cannot be a member itself, so its members are.
            for member, share in _members(candidate):
                shares[member] = shares.get(member, 0.0) + share
        values = tuple(shares.values())
        # Without shares the members count equally, and the text is shorter.
        if len(set(values)) == 1:
            values = ()
        parallel = Parallel(tuple(shares), values)
        return Genotype.homogeneous(parallel, self.layers, self.heads)

    def random(self, rng: np.random.Generator) -> Genotype:
        """A genotype drawn uniformly from the space."""
        rows, columns, candidates = self.alphas_shape
        # Drawn at the shape of the alphas, so that tied places get the same attention.
        return self.genotype(rng.integers(candidates, size=(rows, columns)))


def _members(attention: Attention) -> list[tuple[Attention, float]]:
    """The members of a parallel attention with their shares; any other attention itself."""
    if isinstance(attention, Parallel):
        return list(attention.weighted)
    return [(attention, 1.0)]
