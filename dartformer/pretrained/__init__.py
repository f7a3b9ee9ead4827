"""Pretrained checkpoints: folders on disk as Hugging Face writes them, as models of this package.

One table a family (`dartformer.pretrained.base.Family`); `FAMILIES` has them by `model_type`."""

from pathlib import Path

from dartformer.pretrained.base import Family
from dartformer.pretrained.bert import BERT, ROBERTA
from dartformer.pretrained.gpt2 import GPT2
from dartformer.pretrained.llama import LLAMA, MINISTRAL, QWEN2, QWEN3, SMOLLM3
from dartformer.pretrained.load import Described, Pretrained, describe, load
from dartformer.registry import Registry

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


__all__ = ["FAMILIES", "Described", "Family", "Pretrained", "described", "load_pretrained"]
