"""From a folder to a model: every tensor is found, checked, read, converted and forgotten in turn."""

import dataclasses
import fnmatch
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

from dartformer.attention.base import Attention
from dartformer.errors import InputError, brief, unknown
from dartformer.machine.workdir import UnreadableFile, read_json
from dartformer.models.layerwise import apply_by_layer, repeats_layers
from dartformer.models.mixers import require_all
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Network, Weights, transformer
from dartformer.pretrained.base import Architecture, Axes, Described, Family, Tensor
from dartformer.pretrained.folder import DTYPES, GENOTYPE, OWN, Stored, settings_of, stored
from dartformer.pretrained.sentence import BATCH, embed
from dartformer.pretrained.texts import Texts, opened
from dartformer.space.genotype import Genotype

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OWN_TENSOR = "dartformer."
"""Stands before the names of tensors that no checkpoint of the family has."""

MOST_NAMED = 5
"""Tensors that an error names."""


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
      note: what was done to the weights, in a sentence for the card of a saved model.
    """

    folder: Path
    family: str
    config: TransformerConfig
    genotype: Genotype
    weights: Weights
    left_out: tuple[str, ...] = ()
    note: str = ""

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
        if repeats_layers(self.config, self.genotype):
            return apply_by_layer(self.config, self.genotype)
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

    def embed(self, texts: Sequence[str], *, length: int = 0, batch: int = BATCH) -> np.ndarray:
        """One vector for each text, `[T, E]`, as sentence-transformers makes it of an encoder.

        The folder's `modules.json` says how the last hidden states are pooled, and whether the
        vectors have the length 1. Without that file they are the mean over the tokens.

        Args:
          texts: any number of them.
          length: tokens after which a text is cut; by default what the folder says.
          batch: texts that are encoded at once.
        """
        return embed(self.described, self, texts, length=length, batch=batch)


def describe(folder: str | Path, families: Mapping[str, Family], dtype: str) -> Described:
    """The architecture of a checkpoint, from its `config.json` alone."""
    folder = Path(folder)
    settings = settings_of(folder)
    model_type = settings.text("model_type", "")
    name = model_type.removeprefix(OWN)
    if name not in families:
        raise unknown(f"family of checkpoints (model_type of {settings.file})", name, families)
    architecture = families[name].architecture(settings, dtype)
    if model_type != name:
        architecture = with_own_genotype(folder, architecture)
    return Described(folder, name, *architecture)


def with_own_genotype(folder: Path, architecture: Architecture) -> Architecture:
    """Sizes of a checkpoint with the attentions of its `genotype.json`."""
    file, config = folder / GENOTYPE, architecture.config
    try:
        genotype = Genotype.from_dict(read_json(file))
        require_shape(genotype, config)
        for layer in range(config.layers):
            require_all([attention for attention, _ in genotype.groups(layer)], config)
    except UnreadableFile:
        raise
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return Architecture(config, genotype)


def require_shape(genotype: Genotype, config: TransformerConfig) -> None:
    """Raise `InputError` for a genotype of another number of layers or heads."""
    layers, heads = len(genotype.layers), genotype.heads
    if (layers, heads) != (config.layers, config.heads):
        raise InputError(
            f"the genotype has {layers} layers of {heads} heads, and the model has "
            f"{config.layers} of {config.heads}."
        )


def load(folder: str | Path, families: Mapping[str, Family], dtype: str) -> Pretrained:
    """See `dartformer.pretrained.load_pretrained`; `families` by their `model_type`."""
    described = describe(folder, families, dtype)
    folder, config, family = described.folder, described.config, families[described.family]
    leaves = leaves_of(config, described.genotype)
    table = table_of(family, config, leaves)
    matched = match(stored(folder), folder, family, config, table)
    for error in misfits(folder, family, matched, leaves):
        raise error
    weights = _weights(matched, leaves)
    return Pretrained(*described, weights, tuple(matched.left_out))


class Leaf(NamedTuple):
    """An array of our weights.

    Attributes:
      path: of keys.
      shape, dtype: of the array.
    """

    path: tuple[str | int, ...]
    shape: Axes
    dtype: np.dtype

    @property
    def name(self) -> str:
        """The path as `named_leaves` writes it."""
        return "/".join(map(str, self.path))


class Matched(NamedTuple):
    """The tensors of a folder beside the table of its family.

    Attributes:
      table: of all tensors that the model needs.
      tensors: of the folder, by their names without a prefix.
      names: with their prefix, by those without.
      missing: names that the table has, and the folder lacks.
      left_out: names of tensors that are no part of the model.
      left_over: names that neither the table nor the family has.
    """

    table: Sequence[Tensor]
    tensors: Mapping[str, Stored]
    names: Mapping[str, str]
    missing: Sequence[str]
    left_out: Sequence[str]
    left_over: Sequence[str]

    @property
    def parameters(self) -> int:
        """How many numbers the model has, those that are stored."""
        names = {entry.theirs for entry in self.table}
        return sum(tensor.size for name, tensor in self.tensors.items() if name in names)


def match(
    by_name: Mapping[str, Stored],
    folder: Path,
    family: Family,
    config: TransformerConfig,
    table: Sequence[Tensor],
) -> Matched:
    """The tensors of a folder beside the table; `InputError` for one that it has twice."""
    tensors: dict[str, Stored] = {}
    names: dict[str, str] = {}
    for full, tensor in by_name.items():
        name = _without_prefix(full, family.prefixes)
        if name in tensors:
            raise InputError(f"{folder} has the tensor {name} twice, once with a prefix.")
        tensors[name], names[name] = tensor, full
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
    return Matched(table, tensors, names, missing, left_out, left_over)


def misfits(
    folder: Path, family: Family, matched: Matched, leaves: Mapping[str, Leaf]
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
        expected = entry.layout.shape(leaves[entry.ours].shape)
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


def by_source(table: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The entries of a table by the tensor of the checkpoint: several may share one."""
    sources: dict[str, list[Tensor]] = {}
    for entry in table:
        sources.setdefault(entry.theirs, []).append(entry)
    return sources


def _weights(matched: Matched, leaves: Mapping[str, Leaf]) -> Weights:
    """Our weights, converted one by one; the checkpoint's tensors are forgotten in turn."""
    weights: Weights = {}
    for source, entries in by_source(matched.table).items():
        array = matched.tensors[source].read()
        for entry in entries:
            leaf = leaves[entry.ours]
            ours = entry.layout.convert(array, leaf.shape)
            _put(weights, leaf.path, jnp.asarray(np.ascontiguousarray(ours, leaf.dtype)))
    return weights


def leaves_of(config: TransformerConfig, genotype: Genotype) -> dict[str, Leaf]:
    """All arrays of our weights, by name."""
    # Tracing thirty layers takes as long as reading them, and equal layers have the same arrays.
    layouts: dict[tuple[Attention, ...], list[Leaf]] = {}
    leaves = {}
    for layer, row in enumerate(genotype.layers):
        if row not in layouts:
            layouts[row] = _of_one_layer(config, row)
        for leaf in layouts[row]:
            if leaf.path[0] == "blocks":
                leaf = leaf._replace(path=("blocks", layer, *leaf.path[2:]))
            leaves[leaf.name] = leaf
    return leaves


def _of_one_layer(config: TransformerConfig, row: tuple[Attention, ...]) -> list[Leaf]:
    """The arrays of a model with that layer alone."""
    one = dataclasses.replace(config, layers=1, nope_layers=())
    net = transformer(one, Genotype((row,)))
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    leaves = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        keys = tuple(entry.key for entry in path)
        leaves.append(Leaf(keys, leaf.shape, leaf.dtype))
    return leaves


def table_of(family: Family, config: TransformerConfig, leaves: Mapping[str, Leaf]) -> list[Tensor]:
    """The table of a family, with the parameters that attentions have of their own."""
    table = family.tensors(config)
    for name, leaf in leaves.items():
        if "own" in leaf.path:
            table.append(Tensor(name, f"{OWN_TENSOR}{name}"))
    return table


def nested(leaves: Mapping[str, Leaf], arrays: Mapping[str, Array]) -> Weights:
    """Our weights, from arrays by the names of `leaves_of`."""
    weights: Weights = {}
    for name, leaf in leaves.items():
        _put(weights, leaf.path, arrays[name])
    return weights


def _put(weights: Weights, path: tuple[str | int, ...], array: Array) -> None:
    """Set a leaf by its path."""
    inner: Any = weights
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
    inner[path[-1]] = array
