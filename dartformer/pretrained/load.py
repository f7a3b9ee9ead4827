"""From a folder to a model: every tensor is found, checked, read, converted and forgotten in turn."""

import dataclasses
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dartformer.errors import InputError, brief, unknown
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Network, Weights, transformer
from dartformer.pretrained.base import Family, Tensor
from dartformer.pretrained.folder import DTYPES, Stored, settings_of, stored
from dartformer.pretrained.texts import Texts, opened
from dartformer.space.genotype import Genotype
from dartformer.training.checkpoint import named_leaves

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_NAMED = 5
"""Tensors that an error names."""


class Described(NamedTuple):
    """What the `config.json` of a checkpoint describes, without its weights.

    Attributes:
      folder: of the checkpoint.
      family: its `model_type`.
      config: sizes and choices of the Transformer.
      genotype: its attentions.
    """

    folder: Path
    family: str
    config: TransformerConfig
    genotype: Genotype


@dataclass(frozen=True)
class Pretrained:
    """The model of a checkpoint.

    Attributes:
      folder: of the checkpoint.
      family: its `model_type`.
      config: sizes and choices of the Transformer.
      genotype: its attentions: full everywhere, or windows in some layers.
      weights: as those of `transformer(config, genotype)`.
      left_out: tensors of the checkpoint that are no part of the model, such as poolers.
    """

    folder: Path
    family: str
    config: TransformerConfig
    genotype: Genotype
    weights: Weights
    left_out: tuple[str, ...] = ()

    @property
    def described(self) -> Described:
        """The model without its weights."""
        return Described(self.folder, self.family, self.config, self.genotype)

    @cached_property
    def network(self) -> Network:
        """The network that the weights belong to."""
        return transformer(self.config, self.genotype)

    @cached_property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer beside the weights, as it stands; `InputError` where there is none."""
        return opened(self.folder)

    @cached_property
    def texts(self) -> Texts:
        """What `dartformer.generate` reads and writes."""
        return Texts(self.folder)

    @cached_property
    def _apply(self) -> Any:
        return jax.jit(self.network.apply)

    def __call__(self, tokens: ArrayLike, valid: ArrayLike | None = None) -> Array:
        """Logits `[B, N, C]` of ids `[B, N]`, or the last hidden states of a model without a head.

        Args:
          tokens: ids below `config.vocabulary`.
          valid: which of them are no padding `[B, N]`; by default all.
        """
        ids = np.asarray(tokens)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise InputError(f"tokens must be whole numbers [B, N], got {ids.dtype} {ids.shape}.")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.config.vocabulary:
            raise InputError(
                f"tokens must be from 0 to {self.config.vocabulary - 1}, got {ids.min()} to "
                f"{ids.max()}."
            )
        if valid is None:
            valid = np.ones(ids.shape, bool)
        if np.shape(valid) != ids.shape:
            raise InputError(f"valid must have the shape of tokens, {ids.shape}.")
        logits: Array = self._apply(self.weights, ids, jnp.asarray(valid, bool))
        return logits

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids `[B, N]` of texts, filled up at the end, and which of them are no padding."""
        encoded = self.tokenizer.encode_batch(list(texts))
        rows, masks = [], []
        for text in encoded:
            rows.append(text.ids)
            masks.append(text.attention_mask)
        longest = max(map(len, rows), default=0)
        tokens = np.zeros((len(rows), longest), np.int32)
        valid = np.zeros((len(rows), longest), bool)
        for row, (ids, mask) in enumerate(zip(rows, masks, strict=True)):
            tokens[row, : len(ids)] = ids
            valid[row, : len(mask)] = mask
        return tokens, valid


def describe(folder: str | Path, families: Mapping[str, Family], dtype: str) -> Described:
    """The architecture of a checkpoint, from its `config.json` alone."""
    folder = Path(folder)
    settings = settings_of(folder)
    name = settings.text("model_type", "")
    if name not in families:
        raise unknown(f"family of checkpoints (model_type of {settings.file})", name, families)
    config, genotype = families[name].architecture(settings, dtype)
    return Described(folder, name, config, genotype)


def load(folder: str | Path, families: Mapping[str, Family], dtype: str) -> Pretrained:
    """See `dartformer.pretrained.load_pretrained`; `families` by their `model_type`."""
    described = describe(folder, families, dtype)
    folder, config, family = described.folder, described.config, families[described.family]
    matched = match(stored(folder), folder, family, config)
    leaves = leaves_of(config, described.genotype)
    for error in misfits(folder, family, matched, leaves):
        raise error
    weights = _weights(matched, leaves)
    return Pretrained(*described, weights, tuple(matched.left_out))


class Matched(NamedTuple):
    """The tensors of a folder beside the table of its family.

    Attributes:
      table: of all tensors that the model needs.
      tensors: of the folder, by their names without a prefix.
      missing: names that the table has, and the folder lacks.
      left_out: names of tensors that are no part of the model.
      left_over: names that neither the table nor the family has.
    """

    table: Sequence[Tensor]
    tensors: Mapping[str, Stored]
    missing: Sequence[str]
    left_out: Sequence[str]
    left_over: Sequence[str]

    @property
    def parameters(self) -> int:
        """How many numbers the model has, those that are stored."""
        names = {entry.theirs for entry in self.table}
        return sum(tensor.size for name, tensor in self.tensors.items() if name in names)


def match(
    by_name: Mapping[str, Stored], folder: Path, family: Family, config: TransformerConfig
) -> Matched:
    """The tensors of a folder beside the table; `InputError` for one that it has twice."""
    table = family.tensors(config)
    tensors: dict[str, Stored] = {}
    for full, tensor in by_name.items():
        name = _without_prefix(full, family.prefixes)
        if name in tensors:
            raise InputError(f"{folder} has the tensor {name} twice, once with a prefix.")
        tensors[name] = tensor
    needed = {entry.theirs for entry in table}
    missing = sorted(needed - tensors.keys())
    ignored = [*family.ignored]
    if config.tie_embeddings:
        ignored.append("lm_head.weight")
    left_out, left_over = [], []
    for name in sorted(tensors.keys() - needed):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored):
            left_out.append(name)
        else:
            left_over.append(name)
    return Matched(table, tensors, missing, left_out, left_over)


def misfits(
    folder: Path, family: Family, matched: Matched, leaves: Mapping[str, Array]
) -> Iterator[InputError]:
    """What is wrong with the tensors of a folder, whose leaves are those of `leaves_of`."""
    if matched.missing:
        yield InputError(f"{folder} lacks {_listed(matched.missing)}, which {family.name} has.")
    if matched.left_over:
        listed = _listed(matched.left_over)
        yield InputError(
            f"{folder} has {listed}, which dartformer's {family.name} has no place for."
        )
    misshapen: dict[str, str] = {}
    types: dict[str, Path] = {}
    for entry in matched.table:
        tensor = matched.tensors.get(entry.theirs)
        if tensor is None:
            continue
        expected = entry.layout.shape(leaves[_in_first(entry.ours)].shape)
        if tensor.shape != expected:
            misshapen.setdefault(
                entry.theirs,
                f"{tensor.file}: {entry.theirs} has shape {tensor.shape}, and config.json needs "
                f"{expected}",
            )
        if tensor.dtype not in DTYPES:
            types.setdefault(tensor.dtype, tensor.file)
    if misshapen:
        first, *more = misshapen.values()
        if more:
            first += f". Of {len(more)} more tensors the shape differs, too"
        yield InputError(f"{first}.")
    for dtype, file in types.items():
        yield InputError(
            f"{file} has tensors of the type {dtype}, and dartformer reads {', '.join(DTYPES)}."
        )


def _without_prefix(name: str, prefixes: Iterable[str]) -> str:
    """A name without the first of the prefixes that it begins with."""
    for prefix in filter(None, prefixes):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name


def _listed(names: Sequence[str]) -> str:
    """The first of some names of tensors, and how many more there are."""
    shown = ", ".join(map(brief, names[:MOST_NAMED]))
    more = len(names) - MOST_NAMED
    if more > 0:
        return f"{len(names)} tensors: {shown} and {more} more"
    noun = "the tensor"
    if len(names) > 1:
        noun = f"{len(names)} tensors:"
    return f"{noun} {shown}"


def _weights(matched: Matched, leaves: Mapping[str, Array]) -> Weights:
    """Our weights, converted one by one; the checkpoint's tensors are forgotten in turn."""
    by_source: dict[str, list[Tensor]] = {}
    for entry in matched.table:
        by_source.setdefault(entry.theirs, []).append(entry)
    weights: Weights = {}
    for source, entries in by_source.items():
        array = matched.tensors[source].read()
        for entry in entries:
            leaf = leaves[_in_first(entry.ours)]
            ours = entry.layout.convert(array, leaf.shape)
            _put(weights, entry.ours, jnp.asarray(np.ascontiguousarray(ours, leaf.dtype)))
    return weights


def leaves_of(config: TransformerConfig, genotype: Genotype) -> dict[str, Array]:
    """Shapes of our weights by name, with those of the first layer for all layers."""
    # Tracing thirty layers takes as long as reading them.
    first = dataclasses.replace(config, layers=1, nope_layers=())
    net = transformer(first, Genotype(genotype.layers[:1]))
    return dict(named_leaves(jax.eval_shape(net.init, jax.random.key(0))))


def _in_first(name: str) -> str:
    """The name of the same array in the first layer."""
    return re.sub(r"^blocks/\d+/", "blocks/0/", name)


def _put(weights: Weights, name: str, array: Array) -> None:
    """Set a leaf by its name, in whose path numbers are keys of their own kind."""
    inner: Any = weights
    *path, last = name.split("/")
    for part in path:
        key: str | int = part
        if part.isdigit():  # a layer, or a set of projections
            key = int(part)
        inner = inner.setdefault(key, {})
    inner[last] = array
