"""What a checkpoint on disk is and can do, from its config and the headers of its files alone."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dartformer.attention.full import Full
from dartformer.cost.analytic import attention_cost
from dartformer.errors import InputError, unknown
from dartformer.models.decode import can_generate
from dartformer.models.sizes import TransformerConfig
from dartformer.pretrained.base import Architecture, Family, Refused, Settings
from dartformer.pretrained.folder import OWN, config_of, obstacles, stored
from dartformer.pretrained.load import leaves_of, match, misfits, table_of, with_own_genotype
from dartformer.pretrained.texts import TOKENIZER, opened
from dartformer.space.genotype import Genotype

LENGTHS = (1024, 8192)
"""Tokens at which the cache is priced, beside the most that the model takes."""

DTYPE = "float32"
"""Of keys and values, unless the model is loaded with another one."""

ATTEMPTS = 100
"""Options that are left out in turn, so that all that are refused are listed."""


class Vocabulary(NamedTuple):
    """The tokens of a tokenizer.

    Attributes:
      size: how many there are.
      largest: the largest id.
    """

    size: int
    largest: int


class Files(NamedTuple):
    """The weights on disk.

    Attributes:
      number: of files.
      bytes: of all tensors.
      dtypes: of their numbers, as safetensors names them.
      parameters: numbers of the model; of all tensors where the model is unknown.
    """

    number: int
    bytes: int
    dtypes: tuple[str, ...]
    parameters: int


class Use(NamedTuple):
    """Something that a checkpoint could be used for.

    Attributes:
      name: "generate", "placement" or "encode".
      reason: why it does not work, in a sentence; empty where it does.
    """

    name: str
    reason: str = ""


@dataclass(frozen=True)
class Inspection:
    """A checkpoint, without its weights.

    Attributes:
      folder: of the checkpoint.
      model_type: what `config.json` names its family.
      family: the family in words; empty for an unknown one.
      config, genotype: sizes and attentions; None where `config.json` does not give them. Options
        that are refused have their defaults here.
      files: None where there are no weights that dartformer reads.
      vocabulary: of `tokenizer.json`; None without a readable one.
      kv_bytes: what the cache of one sequence takes in `DTYPE`, by its length; empty for an encoder.
      refused: why dartformer does not read it, each reason in one line; empty where it does.
      uses: what it could be used for; empty where it is refused.
    """

    folder: Path
    model_type: str
    family: str
    config: TransformerConfig | None
    genotype: Genotype | None
    files: Files | None
    vocabulary: Vocabulary | None
    kv_bytes: Mapping[int, int]
    refused: tuple[str, ...]
    uses: tuple[Use, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain data."""
        data: dict[str, object] = {
            "kind": "checkpoint",
            "folder": str(self.folder),
            "model_type": self.model_type,
            "family": self.family,
        }
        if self.config is not None and self.genotype is not None:
            data.update(_sizes(self.config, self.genotype))
        if self.files is not None:
            data["parameters"] = self.files.parameters
            data["bytes"] = self.files.bytes
            data["files"] = self.files.number
            data["dtypes"] = list(self.files.dtypes)
        data["tokenizer"] = None
        if self.vocabulary is not None:
            data["tokenizer"] = self.vocabulary._asdict()
        data["kv_dtype"] = DTYPE
        data["kv_bytes"] = dict(self.kv_bytes)
        data["refused"] = list(self.refused)
        uses = []
        for use in self.uses:
            uses.append({"name": use.name, "works": not use.reason, "reason": use.reason})
        data["uses"] = uses
        return data


def _sizes(config: TransformerConfig, genotype: Genotype) -> dict[str, object]:
    """Sizes and attentions as plain data."""
    attention = []
    for layer in range(config.layers):
        attention.append(genotype.describe_layer(layer))
    return {
        "causal": config.causal,
        "layers": config.layers,
        "heads": config.heads,
        "kv_heads": config.heads // config.sharing,
        "head_dim": config.head_dim,
        "model_dim": config.model_dim,
        "mlp_dim": config.mlp_dim,
        "vocabulary": config.vocabulary,
        "length": config.length,
        "positions": config.positions,
        "tie_embeddings": config.tie_embeddings,
        "attention": attention,
    }


def inspect(folder: str | Path, families: Mapping[str, Family]) -> Inspection:
    """What a checkpoint is, and everything that keeps dartformer from reading it.

    Raises `InputError` for a folder without a `config.json` that can be read.
    """
    folder = Path(folder)
    settings = config_of(folder)
    model_type = settings.text("model_type", "")
    refused = list(map(str, obstacles(folder, settings)))
    plain = model_type.removeprefix(OWN)
    family, name, architecture = families.get(plain), "", None
    if family is None:
        kind = f"family of checkpoints (model_type of {settings.file})"
        refused.append(str(unknown(kind, model_type, families)))
    else:
        name = family.name
        architecture, reasons = _architecture(family, settings)
        refused += reasons
        if architecture is not None and model_type != plain:
            try:
                architecture = with_own_genotype(folder, architecture)
            except InputError as error:
                refused.append(str(error))
    files, reasons = _files(folder, family, architecture)
    refused += reasons
    vocabulary, no_texts = _vocabulary(folder, architecture)
    config = genotype = None
    if architecture is not None:
        config, genotype = architecture
    return Inspection(
        folder,
        model_type,
        name,
        config,
        genotype,
        files,
        vocabulary,
        _kv_bytes(architecture),
        tuple(refused),
        _uses(architecture, bool(refused), no_texts),
    )


def _architecture(family: Family, settings: Settings) -> tuple[Architecture | None, list[str]]:
    """Sizes and attentions, and all options that are refused, which are left out one by one."""
    # Copied, because what is refused is deleted, so that the options behind it are read too.
    rest = Settings(settings.file, copy.deepcopy(dict(settings.values)))
    reasons: list[str] = []
    for _ in range(ATTEMPTS):
        try:
            return family.architecture(rest, DTYPE), reasons
        except Refused as error:
            reasons.append(str(error))
            values = error.values
            if not isinstance(values, dict) or error.name not in values:
                break
            del values[error.name]
        except InputError as error:
            reasons.append(str(error))
            break
    return None, reasons


def _files(
    folder: Path, family: Family | None, architecture: Architecture | None
) -> tuple[Files | None, list[str]]:
    """The weights on disk, and what is wrong with them."""
    try:
        tensors = stored(folder)
    except InputError as error:
        return None, [str(error)]
    files, dtypes, size, parameters = set(), set(), 0, 0
    for tensor in tensors.values():
        files.add(tensor.file)
        dtypes.add(tensor.dtype)
        size += tensor.bytes
        parameters += tensor.size
    reasons: list[str] = []
    if family is not None and architecture is not None:
        try:
            leaves = leaves_of(*architecture)
            table = table_of(family, architecture.config, leaves)
            matched = match(tensors, folder, family, architecture.config, table)
        except InputError as error:
            reasons.append(str(error))
        else:
            parameters = matched.parameters
            reasons += map(str, misfits(folder, family, matched, leaves))
    return Files(len(files), size, tuple(sorted(dtypes)), parameters), reasons


def _vocabulary(folder: Path, architecture: Architecture | None) -> tuple[Vocabulary | None, str]:
    """The tokens of the tokenizer, and why texts cannot be read with it."""
    if not (folder / TOKENIZER).is_file():
        return None, f"it has no {TOKENIZER}."
    try:
        ids = opened(folder).get_vocab().values()
    except InputError as error:
        return None, str(error)
    vocabulary = Vocabulary(len(ids), max(ids, default=-1))
    if architecture is None or vocabulary.largest < architecture.config.vocabulary:
        return vocabulary, ""
    return vocabulary, (
        f"its {TOKENIZER} has ids up to {vocabulary.largest}, and its vocabulary ends at "
        f"{architecture.config.vocabulary - 1}."
    )


def _kv_bytes(architecture: Architecture | None) -> dict[int, int]:
    """Bytes of the cache of one sequence, by its length."""
    if architecture is None or not can_generate(*architecture):
        return {}
    config, genotype = architecture
    lengths = [length for length in LENGTHS if length < config.length]
    prices = {}
    for length in [*lengths, config.length]:
        total = 0.0
        for layer in range(config.layers):
            total += attention_cost(config, genotype, layer, length=length).state_bytes
        prices[length] = int(total)
    return prices


def _uses(architecture: Architecture | None, refused: bool, no_texts: str) -> tuple[Use, ...]:
    """What the checkpoint could be used for; nothing where it is refused."""
    if architecture is None or refused:
        return ()
    config, genotype = architecture
    generate, placement = no_texts, ""
    if not can_generate(config, genotype):
        generate = "some of its attentions do not run token by token."
    if genotype != Genotype.homogeneous(Full(), config.layers, config.heads):
        placement = "some of its layers have no full attention."
    if config.classifier == "none":
        generate = "it is an encoder."
        return Use("generate", generate), Use("placement", placement), Use("encode", no_texts)
    encode = "it is a decoder, whose outputs are logits."
    return Use("generate", generate), Use("placement", placement), Use("encode", encode)
