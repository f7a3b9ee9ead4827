"""Pretrained checkpoints: folders on disk as Hugging Face writes them, as models of this package.

One table a family (`dartformer.pretrained.base.Family`); `FAMILIES` has them by `model_type`."""

from pathlib import Path

from dartformer.pretrained.base import Described, Family
from dartformer.pretrained.bert import BERT, ROBERTA
from dartformer.pretrained.gpt2 import GPT2
from dartformer.pretrained.llama import LLAMA, MINISTRAL, QWEN2, QWEN3, SMOLLM3
from dartformer.pretrained.load import Pretrained, describe, load
from dartformer.pretrained.to_hf import SHARD_BYTES, Saved, save
from dartformer.registry import Registry
from dartformer.space.genotype import Genotype

BUILT_IN: dict[str, Family] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "gpt2": GPT2,
    "llama": LLAMA,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "ministral": MINISTRAL,
    "smollm3": SMOLLM3,
}


def _is_family(entry: object) -> bool:
    return isinstance(entry, Family)


FAMILIES: Registry[Family] = Registry(
    "checkpoint family",
    BUILT_IN,
    group="dartformer.family",
    requirement="a `Family`",
    fits=_is_family,
)
"""Every family by its `model_type`: the built-in ones, and those of other packages."""


def load_pretrained(folder: str | Path, dtype: str = "float32") -> Pretrained:
    """The model of a checkpoint: `load_pretrained(folder)(tokens)` gives its logits.

    Args:
      folder: on disk, with `config.json` and `*.safetensors`, sharded or not, as Hugging Face
        writes them. `tokenizer.json` is read where there is one. Nothing of it is run.
      dtype: of the activations, "float32", "bfloat16" or "float64"; the weights are float32 at
        least.

    Raises:
      InputError: the family is unknown, the checkpoint has an option or a tensor that dartformer
        lacks, its weights are pickled, or it needs code of its own.
    """
    return load(folder, FAMILIES, dtype)


def described(folder: str | Path, dtype: str = "float32") -> Described:
    """The sizes and attentions of a checkpoint, without reading its weights.

    Raises `InputError` as `load_pretrained` does for what `config.json` says.
    """
    return describe(folder, FAMILIES, dtype)


def save_pretrained(
    model: Pretrained,
    folder: str | Path,
    *,
    genotype: Genotype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Saved:
    """Write a model as a folder of Hugging Face, with the tokenizer and the card of its checkpoint.

    Full attention and one sliding window by layer are a class of transformers, which opens the
    folder. Other attentions have no class there, and `Saved.reason` says so: `load_pretrained` and
    `dartformer generate` read such a folder.

    Args:
      model: what `load_pretrained` returned, with these weights or others.
      folder: is written whole or not at all; an earlier export is replaced.
      genotype: the attentions; by default those of the model.
      shard_bytes: bytes of one file at most.

    Raises:
      InputError: the folder holds other files, its disk is too small, or the genotype is of another
        size.
    """
    return save(model, folder, FAMILIES, genotype, shard_bytes)


__all__ = [
    "FAMILIES",
    "Described",
    "Family",
    "Pretrained",
    "Saved",
    "described",
    "load_pretrained",
    "save_pretrained",
]
