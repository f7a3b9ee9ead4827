"""Sentence encoders: one vector for each text, as sentence-transformers makes it.

Reimers and Gurevych 2019, arXiv:1908.10084. `modules.json` lists what comes after the encoder: a
pooling of its last hidden states, and perhaps a division by their length."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.errors import InputError, brief
from dartformer.machine.workdir import read_json
from dartformer.models.transformer import pool
from dartformer.pretrained.base import Described, Settings
from dartformer.pretrained.texts import Texts

MODULES = "modules.json"

CONFIG = "config_sentence_transformers.json"

LENGTHS = "sentence_*_config.json"
"""The file with the most tokens of a text; its name has the family of the encoder."""

MODULE_FILES = ("*.json", "*.safetensors")
"""The files in the folder of a module."""

BATCH = 32
"""Texts that are encoded at once."""

SHORTEST = 16
"""Texts are filled up to this many tokens, or twice as many, and so on: each length is a program."""

POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
"""Our names of the poolings, by the switches of `1_Pooling/config.json`."""


class Sentence(NamedTuple):
    """How an encoder makes one vector of a text.

    Attributes:
      pooling: of the last hidden states: "mean" of all tokens, the first one ("cls"), or the
        largest number of each dimension ("max").
      normalized: whether the vector is divided by its length.
      length: the most tokens of a text.
      prompt: what is put before each text.
      lower: whether texts are written in lower case first.
    """

    pooling: str = "mean"
    normalized: bool = False
    length: int = 0
    prompt: str = ""
    lower: bool = False


def is_encoder(described: Described) -> bool:
    """Whether a checkpoint reads texts in both directions, and has no head."""
    return not described.config.causal and described.config.classifier == "none"


def require_encoder(described: Described) -> None:
    """Raise `InputError` for a checkpoint that makes no vectors of texts."""
    if not is_encoder(described):
        raise InputError(
            f"{described.folder} does not embed texts because it is a decoder, whose outputs are "
            f"logits. Use an encoder, such as a BERT."
        )


def sentence_of(described: Described) -> Sentence:
    """What the folder of an encoder says; without a `modules.json` the mean of all tokens.

    Raises `InputError` for a decoder, and for a module or a pooling that dartformer lacks.
    """
    require_encoder(described)
    folder, most = described.folder, described.config.length
    length, lower = _limits(folder)
    if length:
        most = min(length, most)
    plain = Sentence(length=most, lower=lower)
    if not (folder / MODULES).is_file():
        return plain
    pooling, normalized = "", False
    for kind, path in _modules(folder):
        if kind == "Pooling" and not pooling:
            pooling = _pooling(_settings(folder / path / "config.json"), described)
        elif kind == "Normalize" and pooling:
            normalized = True
        elif kind != "Transformer" or pooling:
            raise InputError(
                f"{folder / MODULES} lists the module {brief(kind)}, which does not work here, "
                f"because an embedding is pooled and at most normalized. Use such an encoder."
            )
    if not pooling:
        raise InputError(f"{folder / MODULES} lists no module Pooling. Add it, or delete the file.")
    return plain._replace(pooling=pooling, normalized=normalized, prompt=_prompt(folder))


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    """The kind and the folder of each module, in order."""
    file = folder / MODULES
    listed = read_json(file)
    if not isinstance(listed, list):
        raise InputError(f"{file} must be a list of modules.")
    for entry in listed:
        values = Settings(str(file), {})
        if isinstance(entry, dict):
            values = Settings(str(file), entry)
        path = values.text("path", "")
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or "\\" in path:
            raise InputError(f"{file} lists the path {brief(path)}, which is not in {folder}.")
        yield values.text("type", "").rpartition(".")[2], path


def module_folders(folder: Path) -> list[str]:
    """The folders of the modules that come after the encoder; empty without a `modules.json`."""
    if not (folder / MODULES).is_file():
        return []
    return [path for _, path in _modules(folder) if path]


def _settings(file: Path) -> Settings:
    """The object in a file; empty where there is no file."""
    if not file.is_file():
        return Settings(str(file), {})
    values = read_json(file)
    if not isinstance(values, dict):
        raise InputError(f"{file} must be an object.")
    return Settings(str(file), values)


def _pooling(settings: Settings, described: Described) -> str:
    """Our name of a pooling."""
    width = settings.count("word_embedding_dimension", described.config.model_dim)
    if width != described.config.model_dim:
        raise InputError(
            f"{settings.file}: word_embedding_dimension is {width}, and the encoder has "
            f"{described.config.model_dim}."
        )
    if not settings.flag("include_prompt", True):
        raise settings.refuse("include_prompt", False, "all tokens of a text are pooled")
    chosen = []
    for name, value in settings.values.items():
        # Later versions name the pooling in place of a switch for each.
        if name == "pooling_mode":
            chosen.append(str(value))
        elif name.startswith("pooling_mode_") and value:
            chosen.append(POOLINGS.get(name, name))
    if not chosen:
        return "mean"
    if len(chosen) > 1 or chosen[0] not in POOLINGS.values():
        choices = ", ".join(POOLINGS.values())
        raise InputError(
            f"{settings.file} pools by {' and '.join(chosen)}, and dartformer has one of {choices}."
        )
    return chosen[0]


def _limits(folder: Path) -> tuple[int, bool]:
    """The most tokens of a text, 0 for all that the model takes, and whether it is lowered."""
    for file in sorted(folder.glob(LENGTHS)):
        settings = _settings(file)
        return settings.count("max_seq_length", 0, least=0), settings.flag("do_lower_case", False)
    # A tokenizer without a limit has a huge number here, or none.
    longest = _settings(folder / "tokenizer_config.json").values.get("model_max_length")
    if isinstance(longest, int) and longest > 0:
        return longest, False
    return 0, False


def _prompt(folder: Path) -> str:
    """What is put before each text; empty unless a prompt is the default."""
    settings = _settings(folder / CONFIG)
    name = settings.text("default_prompt_name", "")
    if not name:
        return ""
    return settings.section("prompts").text(name, "")


def pooled(states: Array, valid: Array, how: str) -> Array:
    """Hidden states `[B, N, E]` to a vector for each text, `[B, E]`."""
    if how == "max":
        return jnp.max(jnp.where(valid[..., None], states, -jnp.inf), 1)
    return pool(states, valid, how)


def unit(vectors: Array) -> Array:
    """Vectors `[..., E]` of length 1; zero stays zero."""
    length = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(length, 1e-12)


class Rows:
    """Texts as rows of token ids, cut and with the tokens that the tokenizer puts around them."""

    def __init__(self, folder: Path, sentence: Sentence, length: int = 0):
        self.sentence = sentence
        self._tokenizer = Texts(folder).tokenizer
        length = length or sentence.length
        around = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        if length <= around:
            raise InputError(
                f"texts of {length} tokens hold nothing, because the tokenizer of {folder} puts "
                f"{around} around each text. Use a larger length."
            )
        self._tokenizer.enable_truncation(max_length=length)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        prepared = []
        for text in texts:
            text = self.sentence.prompt + text.strip()
            if self.sentence.lower:
                text = text.lower()
            prepared.append(text)
        return [encoded.ids for encoded in self._tokenizer.encode_batch(prepared)]


def filled(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[B, N]` that are filled up at the end, and which of them are no padding."""
    tokens = np.zeros((len(rows), length), np.int32)
    valid = np.zeros((len(rows), length), bool)
    for number, ids in enumerate(rows):
        tokens[number, : len(ids)] = ids
        valid[number, : len(ids)] = True
    return tokens, valid


class Encoder(Protocol):
    """What gives the last hidden states `[B, N, E]` of ids `[B, N]`."""

    def __call__(self, tokens: np.ndarray, valid: np.ndarray) -> Array:
        """`valid` says which of them are no padding."""
        ...


def embed(
    described: Described,
    encoder: Encoder,
    texts: Sequence[str],
    *,
    length: int = 0,
    batch: int = BATCH,
) -> np.ndarray:
    """See `Pretrained.embed`."""
    sentence = sentence_of(described)
    most = described.config.length
    if not 0 <= length <= most:
        raise InputError(f"length must be from 0 to the {most} tokens of the model, got {length}.")
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}.")
    if isinstance(texts, str):
        raise InputError("texts must be a list of texts, got one. Put it in a list.")
    rows = Rows(described.folder, sentence, length)(texts)
    # Texts of about one length are encoded together, so that little is filled up.
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    vectors = np.zeros((len(rows), described.config.model_dim), np.float32)
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        part = [rows[number] for number in numbers]
        tokens, valid = filled(part, _program_length(len(part[-1]), most))
        states = encoder(tokens, valid)
        result = pooled(states, jnp.asarray(valid), sentence.pooling)
        if sentence.normalized:
            result = unit(result)
        vectors[numbers] = np.asarray(result, np.float32)
    return vectors


def _program_length(length: int, most: int) -> int:
    """The length that texts are filled up to."""
    filled_up = SHORTEST
    while filled_up < length:
        filled_up *= 2
    return min(filled_up, most)
