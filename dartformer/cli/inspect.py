"""The verb inspect: what a checkpoint is, and what dartformer can do with it."""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

from dartformer.cli.grammar import FAILED_CHECK
from dartformer.cli.output import print_json
from dartformer.export.checksums import CHECKSUMS
from dartformer.machine.memory import in_units
from dartformer.machine.printable import printable
from dartformer.models.sizes import TransformerConfig
from dartformer.placement.study import is_placement
from dartformer.pretrained import FAMILIES
from dartformer.pretrained.folder import is_checkpoint
from dartformer.pretrained.inspection import DTYPE, Inspection, Use, inspect
from dartformer.space.genotype import Genotype
from dartformer.stages.layout import Layout
from dartformer.stages.profile import read_genotype

WORKS = {
    "generate": "continues texts (dartformer generate)",
    "placement": "finds the layers that must keep full attention (docs/pretrained.md)",
    "encode": "embeds texts (df.load_pretrained(FOLDER).embed)",
}
"""What each use is."""

FAILS = {
    "generate": "does not continue texts",
    "placement": "does not find the layers that must keep full attention",
    "encode": "does not encode texts",
}
"""The same where it does not work."""


def command(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Print what a folder is; 1 if dartformer refuses something in it."""
    folder = Path(arguments.folder)
    kind = _own(folder)
    if kind:
        _show_own(folder, kind, arguments.json)
        return 0
    inspection = inspect(folder, FAMILIES)
    if arguments.json:
        print_json(inspection.to_dict())
    else:
        for line in lines(inspection):
            print(printable(line))
    if inspection.refused:
        return FAILED_CHECK
    return 0


def _own(folder: Path) -> str:
    """What this package made of a folder: "export" or "workdir"; empty for any other folder."""
    if is_checkpoint(folder):
        return ""
    if (folder / CHECKSUMS).is_file():
        return "export"
    if is_placement(folder):
        return "workdir"
    layout = Layout(folder)
    if layout.config.is_file() and (layout.results.is_file() or layout.search.is_dir()):
        return "workdir"
    return ""


def _show_own(folder: Path, kind: str, as_json: bool) -> None:
    """One line on an export or a workdir, with its genotype where it has one."""
    file, genotype = folder / "genotype.json", None
    if file.is_file():
        genotype = str(read_genotype(file))
    if as_json:
        print_json({"kind": kind, "folder": str(folder), "genotype": genotype})
        return
    about = f"{folder} is an export of dartformer"
    usage = f"Use it: dartformer predict {folder}"
    if kind == "workdir":
        about = f"{folder} is the workdir of a run of dartformer"
        usage = f"See it: dartformer report {folder}"
    print(printable(f"{about}, with {genotype or 'no genotype yet'}. {usage}"))


def lines(inspection: Inspection) -> Iterator[str]:
    """An inspection as text."""
    family = inspection.family or "unknown family"
    yield f"{inspection.folder}: {family} ({inspection.model_type or 'no model_type'})"
    for title, text in _rows(inspection):
        yield f"  {title:<11} {text}"
    for use in inspection.uses:
        yield f"  {'use':<11} {_in_words(use)}"
    for reason in inspection.refused:
        yield f"  {'refused':<11} {reason}"


def _rows(inspection: Inspection) -> Iterator[tuple[str, str]]:
    """What is known of the checkpoint, by title."""
    config, genotype = inspection.config, inspection.genotype
    if config is not None and genotype is not None:
        yield from _sizes(config, genotype)
    files = inspection.files
    if files is not None:
        number = "1 file"
        if files.number > 1:
            number = f"{files.number} files"
        dtypes = ", ".join(files.dtypes)
        amount = f"{in_units(files.bytes)} of {dtypes}"
        yield "weights", f"{files.parameters:,} parameters; {amount} in {number}"
    vocabulary = inspection.vocabulary
    text = "no tokenizer.json"
    if vocabulary is not None:
        text = f"{vocabulary.size:,} tokens, ids up to {vocabulary.largest:,}"
    yield "tokenizer", text
    if inspection.kv_bytes:
        prices = []
        for length, size in inspection.kv_bytes.items():
            prices.append(f"{in_units(size)} at {length:,} tokens")
        yield "KV cache", f"{', '.join(prices)} ({DTYPE}; half in bfloat16)"


def _sizes(config: TransformerConfig, genotype: Genotype) -> Iterator[tuple[str, str]]:
    """The sizes of the model, by title."""
    heads = f"{config.heads} heads of {config.head_dim}"
    if config.sharing > 1:
        heads += f" in {config.heads // config.sharing} KV groups"
    yield "layers", f"{config.layers} of width {config.model_dim}, {heads}, MLP {config.mlp_dim}"
    yield "attention", _attention(genotype)
    head = "a head of its own"
    if config.tie_embeddings:
        head = "a tied head"
    if config.classifier == "none":
        head = "no head"
    yield "vocabulary", f"{config.vocabulary:,} tokens, {head}"
    yield "positions", f"{config.positions}, up to {config.length:,} tokens"


def _attention(genotype: Genotype) -> str:
    """The attentions with the layers that have them: "full (0-3, 7), local(window=2) (4-6)"."""
    layers: dict[str, list[int]] = {}
    for layer in range(len(genotype.layers)):
        layers.setdefault(genotype.describe_layer(layer), []).append(layer)
    if len(layers) == 1:
        return f"{next(iter(layers))} in all layers"
    parts = []
    for text, numbers in layers.items():
        parts.append(f"{text} in {_ranges(numbers)}")
    return ", ".join(parts)


def _ranges(numbers: list[int]) -> str:
    """Rising numbers in short: "0-3 7"."""
    parts = []
    # Within a run of consecutive numbers, number minus place is the same.
    runs = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    for _, pairs in runs:
        run = [number for _, number in pairs]
        text = str(run[0])
        if len(run) > 1:
            text = f"{run[0]}-{run[-1]}"
        parts.append(text)
    return " ".join(parts)


def _in_words(use: Use) -> str:
    """What the checkpoint can be used for, or why it cannot."""
    if not use.reason:
        return WORKS[use.name]
    return f"{FAILS[use.name]}: {use.reason}"
