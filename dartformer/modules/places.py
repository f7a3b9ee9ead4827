"""Where the mixed layers of a module are, and what a genotype puts in their places."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from dartformer.attention.base import Attention as AttentionType
from dartformer.attention.base import require
from dartformer.errors import InputError
from dartformer.nn import MixedAttention
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import Granularity, SearchSpace

Path = tuple[str | int, ...]


class Place(NamedTuple):
    """A mixed layer of a module, and the attributes and numbers that lead to it."""

    path: Path
    layer: MixedAttention

    @property
    def name(self) -> str:
        """Such as "blocks.0.attention"."""
        return ".".join(map(str, self.path))


def _children(node: Any) -> Iterator[tuple[str | int, Any]]:
    """What a node holds: items by number, attributes by name, as NNX sorts them in a copy."""
    if isinstance(node, (list, tuple, nnx.List)):
        yield from enumerate(node)
    elif isinstance(node, Mapping):
        yield from sorted(node.items())
    elif isinstance(node, nnx.Module):
        for name, value in sorted(vars(node).items()):
            if not name.startswith("_"):
                yield name, value


def _walk(node: Any, path: Path, above: frozenset[int]) -> Iterator[Place]:
    if isinstance(node, MixedAttention):
        yield Place(path, node)
        return
    if id(node) in above:  # a module may hold the one that holds it
        return
    for name, child in _children(node):
        yield from _walk(child, (*path, name), above | {id(node)})


def places_of(model: nnx.Module) -> tuple[Place, ...]:
    """The mixed layers of a module, its attributes sorted by name: layer l of a mixture is the lth.

    Raises `InputError` for a module without any, with some that share parameters, or whose
    candidates differ.
    """
    places = tuple(_walk(model, (), frozenset()))
    if not places:
        raise InputError(
            f"{type(model).__name__} has no mixed layer. Put df.nn.MixedAttention where the search "
            f"is to choose."
        )
    _require_own_parameters(places)
    first = places[0]
    for place in places:
        if place.layer.mixture.ndim != 2:
            raise InputError(
                f"the mixed layer at {place.name} is a stack of {place.layer.mixture.shape[0]} "
                f"layers, made by vmap or scan. Make the layers in a loop."
            )
        if place.layer.candidates != first.layer.candidates:
            raise InputError(
                f"all mixed layers must have the same candidates: {first.name} has "
                f"{list(first.layer.candidates)}, {place.name} has {list(place.layer.candidates)}."
            )
    return places


def _require_own_parameters(places: tuple[Place, ...]) -> None:
    owners: dict[int, str] = {}
    for place in places:
        variables = nnx.state(place.layer, nnx.Param)
        for leaf in jax.tree.leaves(variables, is_leaf=_is_variable):
            owner = owners.setdefault(id(leaf.get_raw_value()), place.name)
            if owner != place.name:
                raise InputError(
                    f"the mixed layers at {owner} and {place.name} share parameters. Give each its "
                    f"own."
                )


def _is_variable(leaf: object) -> bool:
    return isinstance(leaf, nnx.Variable)


def space_of(places: tuple[Place, ...], granularity: Granularity) -> SearchSpace:
    """The search space of the layers, whose mixture is `[L, H, K]`.

    Where layers differ in heads, H is their greatest common divisor, and each row of the mixture is
    of several neighbouring heads in the larger ones. Rows that only some layers have would be
    trained by nobody there, and look undecided.
    """
    counts, shared = set(), set()
    for place in places:
        counts.add(place.layer.config.heads)
        shared.add(place.layer.config.sharing)
    kv_heads = 0
    if granularity == "kv_group":
        if len(counts) > 1 or len(shared) > 1:
            raise InputError(
                "space='kv_group' needs layers with equal heads and kv_heads. Use 'layer'."
            )
        kv_heads = counts.copy().pop() // shared.pop()
    candidates = places[0].layer.candidates
    return SearchSpace(candidates, len(places), math.gcd(*counts), granularity, kv_heads)


def require_order(places: tuple[Place, ...], order: int) -> None:
    """Raise `InputError` for a candidate that cannot be differentiated `order` times."""
    for place in places:
        config = place.layer.config
        for candidate in place.layer.candidates:
            require(candidate, causal=config.causal, length=config.tokens, order=order)


def at(model: nnx.Module, path: Path) -> Any:
    """What a path leads to."""
    node: Any = model
    for name in path:
        node = _child(node, name)
    return node


def _child(node: Any, name: str | int) -> Any:
    if isinstance(name, int) or isinstance(node, Mapping):
        return node[name]
    return getattr(node, name)


def set_mixture(layer: MixedAttention, rows: Array) -> None:
    """Give a layer of `[H', K]` its rows `[H, K]`, each for `H' / H` neighbouring heads."""
    heads = layer.config.heads
    layer.mixture[...] = jnp.repeat(rows, heads // rows.shape[0], axis=0)


def set_mixtures(model: nnx.Module, mixture: Array | np.ndarray) -> None:
    """Set the mixture `[L, H, K]` of all mixed layers of a module."""
    for place, rows in zip(places_of(model), jnp.asarray(mixture), strict=True):
        set_mixture(place.layer, rows)


def replace(model: nnx.Module, genotype: Genotype) -> nnx.Module:
    """A copy of a module with plain layers in the places of its mixed ones.

    Weights are cut out of the mixed layers, so outputs are those at the one-hot mixture. All other
    state, such as the statistics of a batch norm, stays as it is.

    Args:
      model: with mixed layers.
      genotype: an attention for each head; or for several neighbouring heads, where layers have
        more heads than it.

    Raises:
      InputError: the genotype has other sizes, or an attention that is no candidate.
    """
    copy = nnx.clone(model)
    places = places_of(copy)
    if len(genotype.layers) != len(places):
        raise InputError(
            f"the genotype has {len(genotype.layers)} layers, and the module {len(places)} mixed "
            f"layers."
        )
    for place, heads in zip(places, genotype.layers, strict=True):
        plain = place.layer.plain(row_for(place, heads))
        parent, name = at(copy, place.path[:-1]), place.path[-1]
        if isinstance(name, int) or isinstance(parent, dict):
            parent[name] = plain
        else:
            setattr(parent, name, plain)
    return copy


def row_for(place: Place, heads: tuple[AttentionType, ...]) -> tuple[AttentionType, ...]:
    """The attention of each head of a layer, of a genotype with as many heads or a divisor."""
    count = place.layer.config.heads
    if count % len(heads):
        raise InputError(
            f"the genotype has {len(heads)} heads, and the layer at {place.name} {count}. Use a "
            f"genotype whose heads divide it."
        )
    row: list[AttentionType] = []
    for attention in heads:
        row += [attention] * (count // len(heads))
    return tuple(row)
