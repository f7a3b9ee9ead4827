"""From a model back to a folder as Hugging Face writes it: the table of a family the other way.

Layers with full attention and with one sliding window are a class of transformers. Where it has no
class for a genotype, the folder holds the same tensors and a `genotype.json`, and dartformer alone
reads it: a folder that transformers read as the checkpoint itself would be another model."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dartformer._version import __version__
from dartformer.attention import to_text
from dartformer.attention.full import Full
from dartformer.attention.local import Local
from dartformer.errors import InputError
from dartformer.machine.folders import replaced, require_space
from dartformer.machine.workdir import read_json, read_text, write_json, write_text
from dartformer.models.sizes import TransformerConfig
from dartformer.pretrained import sentence
from dartformer.pretrained.base import Axes, Family, Settings, Tensor, Windowed
from dartformer.pretrained.folder import (
    DTYPES,
    GENOTYPE,
    INDEX,
    OWN,
    SINGLE,
    Stored,
    settings_of,
    stored,
)
from dartformer.pretrained.load import (
    Pretrained,
    by_source,
    leaves_of,
    match,
    require_shape,
    table_of,
)
from dartformer.space.genotype import Genotype
from dartformer.training.checkpoint import named_leaves

SHARD_BYTES = 5 * 10**9
"""Bytes of tensors in one file at most, unless one tensor has more."""

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    sentence.MODULES,
    sentence.CONFIG,
    sentence.LENGTHS,
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Files that describe the texts and the terms of a checkpoint, which no weight changes."""

WRITER = "dartformer_version"
"""The key of `config.json` by which a folder that this package wrote is recognized."""

OWN_CLASS = "Dartformer"
"""Stands before the names in `architectures` that transformers does not have."""

HEADROOM = 2**20
"""Bytes for what is small: configs, indices, headers."""


class Saved(NamedTuple):
    """A folder that was written.

    Attributes:
      folder: where.
      model_type: of its `config.json`: a class of transformers, or "dartformer-..." for one that
        dartformer alone reads.
      reason: why transformers has no class for it, in a sentence; empty where it has one.
    """

    folder: Path
    model_type: str
    reason: str


class Source(NamedTuple):
    """A tensor to write.

    Attributes:
      name: in the file.
      dtype: as safetensors names it.
      shape: of the tensor.
      bytes: how many it takes.
      entries: the arrays of ours that it is made of; empty where it is copied.
      copied: the tensor to copy, where no array of ours holds it.
    """

    name: str
    dtype: str
    shape: Axes
    bytes: int
    entries: Sequence[Tensor] = ()
    copied: Stored | None = None

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return self.bytes // max(1, math.prod(self.shape))


def save(
    model: Pretrained,
    folder: str | Path,
    families: Mapping[str, Family],
    genotype: Genotype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Saved:
    """See `dartformer.pretrained.save_pretrained`; `families` by their `model_type`."""
    folder = Path(folder)
    if genotype is None:
        genotype = model.genotype
    require_shape(genotype, model.config)
    _require_writable(folder, model.folder)
    family, settings = families[model.family], settings_of(model.folder)
    plain = Settings(settings.file, _plain(settings.values))
    windowed, reason = None, ""
    if family.architecture(plain, model.config.dtype).genotype != genotype:
        windowed, reason = _class(family, model.config, genotype)
    values = _config(plain.values, model, genotype, windowed, reason)
    sources = list(_sources(model, family, genotype))
    copies = list(_copies(model.folder))
    total = sum(source.bytes for source in sources)
    total += sum(file.stat().st_size for file in copies)
    require_space(folder, total + HEADROOM)
    with replaced(folder) as partial:
        _write_tensors(partial, sources, dict(named_leaves(model.weights)), shard_bytes)
        for file in copies:
            shutil.copyfile(file, partial / file.name)
        _copy_modules(model.folder, partial)
        write_json(partial / "config.json", values)
        if reason:
            write_text(partial / GENOTYPE, genotype.to_json())
        if genotype != family.architecture(plain, model.config.dtype).genotype:
            _describe(partial / "README.md", model, genotype, reason)
    return Saved(folder, str(values["model_type"]), reason)


def _require_writable(folder: Path, source: Path) -> None:
    """Raise `InputError` for a folder that holds anything but an earlier export."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file. Export to a new folder.")
    if source.exists() and folder.samefile(source):
        raise InputError(f"{folder} is the checkpoint itself. Export to another folder.")
    if not any(folder.iterdir()):
        return
    config = folder / "config.json"
    if not config.is_file() or WRITER not in read_json(config):
        raise InputError(f"{folder} holds other files. Export to a new or an empty folder.")


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    """`config.json` as it was before a genotype without a class of transformers was written."""
    plain = dict(values)
    plain["model_type"] = str(plain["model_type"]).removeprefix(OWN)
    classes = plain.get("architectures")
    if isinstance(classes, list):
        plain["architectures"] = [str(name).removeprefix(OWN_CLASS) for name in classes]
    return plain


def _class(
    family: Family, config: TransformerConfig, genotype: Genotype
) -> tuple[Windowed | None, str]:
    """The class of transformers for a genotype, or the reason why there is none."""
    windows: list[int] = []
    for layer in range(config.layers):
        attention, *others = dict(genotype.groups(layer))
        if others:
            return None, (
                f"transformers has no class whose heads differ within a layer, as in layer {layer} "
                f"({genotype.describe_layer(layer)})."
            )
        if isinstance(attention, Local):
            windows.append(attention.window)
        elif attention != Full():
            return None, f"transformers has no class with {to_text(attention)}."
    if family.windowed is None:
        return None, f"transformers has no {family.name} with windows in some layers."
    if len(set(windows)) > 1:
        listed = ", ".join(map(str, sorted(set(windows))))
        return None, f"transformers has one window for all layers, and these have {listed}."
    if 0 in windows:
        return None, "transformers has no window of the token alone."
    return family.windowed(config), ""


def _config(
    plain: Mapping[str, object],
    model: Pretrained,
    genotype: Genotype,
    windowed: Windowed | None,
    reason: str,
) -> dict[str, object]:
    """`config.json` for a genotype."""
    values = dict(plain)
    values[WRITER] = __version__
    if reason:
        values["model_type"] = f"{OWN}{model.family}"
        classes = values.get("architectures")
        if isinstance(classes, list):
            values["architectures"] = [f"{OWN_CLASS}{name}" for name in classes]
    if windowed is None:
        return values
    if windowed.model_type != model.family:
        values = {**windowed.defaults, **values}
        values["architectures"] = [f"{windowed.prefix}ForCausalLM"]
    values.update(windowed.options)
    values["model_type"] = windowed.model_type
    kinds = []
    for attention, *_ in genotype.layers:
        kind = "full_attention"
        if isinstance(attention, Local):
            kind = "sliding_attention"
            # Theirs counts the token itself.
            values["sliding_window"] = attention.window + 1
        kinds.append(kind)
    values["layer_types"] = kinds
    return values


def _sources(model: Pretrained, family: Family, genotype: Genotype) -> Iterator[Source]:
    """All tensors to write, in the order of their names."""
    before = leaves_of(model.config, model.genotype)
    matched = match(
        stored(model.folder),
        model.folder,
        family,
        model.config,
        table_of(family, model.config, before),
    )
    leaves = leaves_of(model.config, genotype)
    sources = []
    for name, entries in by_source(table_of(family, model.config, leaves)).items():
        shape = entries[0].layout.shape(leaves[entries[0].ours].shape)
        dtype, full = "F32", name
        if name in matched.tensors:
            dtype, full = matched.tensors[name].dtype, matched.names[name]
        size = math.prod(shape) * DTYPES[dtype].itemsize
        sources.append(Source(full, dtype, shape, size, entries))
    for name in matched.left_out:
        # A tied head that was stored all the same would differ from new embeddings.
        if not (model.config.tie_embeddings and name == "lm_head.weight"):
            tensor = matched.tensors[name]
            copy = Source(matched.names[name], tensor.dtype, tensor.shape, tensor.bytes, (), tensor)
            sources.append(copy)
    yield from sorted(sources, key=lambda source: source.name)


def _copies(folder: Path) -> Iterator[Path]:
    """The files that are copied."""
    for pattern in COPIED:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                yield file


def _copy_modules(source: Path, folder: Path) -> None:
    """The modules of sentence-transformers that come after an encoder, such as its pooling."""
    for path in sentence.module_folders(source):
        # Some have no files, and an archive of the checkpoint may lack their folders.
        (folder / path).mkdir(parents=True, exist_ok=True)
        for pattern in sentence.MODULE_FILES:
            for file in sorted((source / path).glob(pattern)):
                shutil.copyfile(file, folder / path / file.name)


def _write_tensors(
    folder: Path, sources: Sequence[Source], weights: Mapping[str, jax.Array], shard_bytes: int
) -> None:
    """One file, or several and their index."""
    shards = _shards(sources, shard_bytes)
    if len(shards) == 1:
        _write_file(folder / SINGLE, shards[0], weights)
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_file(folder / name, shard, weights)
        for source in shard:
            places[source.name] = name
    total = sum(source.bytes for source in sources)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})


def _shards(sources: Sequence[Source], shard_bytes: int) -> list[list[Source]]:
    """The tensors of each file."""
    shards: list[list[Source]] = [[]]
    size = 0
    for source in sources:
        if shards[-1] and size + source.bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(source)
        size += source.bytes
    return shards


def _write_file(file: Path, sources: Sequence[Source], weights: Mapping[str, jax.Array]) -> None:
    """A safetensors file, one tensor after the other, so that no second copy is in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    # The widest first, so that each tensor begins at a multiple of its numbers' bytes.
    ordered = sorted(sources, key=lambda source: source.itemsize, reverse=True)
    begin = 0
    for source in ordered:
        end = begin + source.bytes
        entry = {"dtype": source.dtype, "shape": source.shape, "data_offsets": [begin, end]}
        header[source.name], begin = entry, end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little"))
        opened.write(text)
        for source in ordered:
            opened.write(_content(source, weights).data)
        opened.flush()
        os.fsync(opened.fileno())


def _content(source: Source, weights: Mapping[str, jax.Array]) -> np.ndarray:
    """The numbers of a tensor, as they are in a file."""
    if source.copied is not None:
        return source.copied.content()
    array = np.empty(source.shape, DTYPES[source.dtype])
    for entry in source.entries:
        if entry.ours not in weights:
            raise InputError(f"the weights lack {entry.ours}, which the genotype needs.")
        ours = np.asarray(weights[entry.ours])
        if entry.layout.shape(ours.shape) != source.shape:
            raise InputError(f"the weights of {entry.ours} have the shape {ours.shape}.")
        view = entry.layout.convert(array, ours.shape)
        if not np.may_share_memory(view, array):
            raise InputError(
                f"{source.name} cannot be written, because the layout of {entry.ours} copies. Use "
                f"reshape, transpose and indices alone."
            )
        try:
            with np.errstate(over="raise"):
                view[...] = ours
        except FloatingPointError:
            raise InputError(
                f"{source.name} has numbers too large for float16, in which the checkpoint stores "
                f"it. Start from a copy in float32 or bfloat16."
            ) from None
    return array.reshape(-1).view(np.uint8)


def _describe(card: Path, model: Pretrained, genotype: Genotype, reason: str) -> None:
    """Say in the model card what differs from the checkpoint."""
    text = ""
    if card.is_file():
        text = read_text(card).rstrip() + "\n\n"
    rows = []
    for layer in range(model.config.layers):
        rows.append(f"| {layer} | {genotype.describe_layer(layer)} |")
    table = "\n".join(["| layer | attention |", "|---|---|", *rows])
    usage = "`transformers` loads it without code of its own."
    if reason:
        readers = "`dartformer generate` and `dartformer.load_pretrained` read it."
        if sentence.is_encoder(model.described):
            readers = "`dartformer.load_pretrained` reads it, and `embed` embeds texts."
        usage = f"{reason[0].upper()}{reason[1:]} {readers}"
    if model.note:
        usage = f"{model.note} {usage}"
    name = model.folder.resolve().name
    write_text(
        card,
        f"{text}## Attention\n\nMade from {name} by dartformer {__version__}. {usage}\n\n{table}\n",
    )
