"""An export as a plain PyTorch module: `model_torch.py`, generated from the genotype."""

import ast
import dataclasses
import importlib.util
import pprint
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dartformer.attention import ATTENTIONS
from dartformer.attention.base import Attention
from dartformer.attention.parallel import Parallel
from dartformer.errors import InputError
from dartformer.models.positions import alibi_slopes
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Network
from dartformer.stages.retrain import Model

FILE = "model_torch.py"
TEMPLATE = Path(__file__).with_name("torch_template.py")

# How the template declares its two tables.
SHAPE = "SHAPE: dict[str, Any]"
GENOTYPE = "GENOTYPE: list[list[tuple[list[int], str, Options]]]"

KNOWN = (
    "full",
    "local",
    "strided",
    "block",
    "sparse",
    "sink",
    "linear",
    "cosformer",
    "linformer",
    "synthesizer",
    "differential",
    "conv",
    "uniform",
    "identity",
    "parallel",
)
"""The attentions that the template knows."""

SIZES = (
    "inputs",
    "features",
    "stem",
    "pooling",
    "positions",
    "pair",
    "classifier",
    "qk_norm",
    "branch_norm",
    "causal",
    "norm",
    "norm_eps",
    "norm_place",
    "embed_norm",
    "qkv_bias",
    "out_bias",
    "activation",
    "gated_mlp",
    "rope_theta",
    "nope_layers",
    "position_offset",
    "token_types",
    "tie_embeddings",
    "output_gate",
    "short_conv",
)
"""The fields of `TransformerConfig` that the template reads."""

Options = dict[str, Any]
"""The options of an attention; of a parallel one its members, each with a share."""

Group = tuple[list[int], str, Options]
"""Heads of a layer, the name of their attention, and its options."""


def source(model: Model) -> str:
    """The text of `model_torch.py`; raises `InputError` for what the template does not know."""
    # First, as an attention that the template does not know is the likeliest obstacle.
    layers = [_groups(model, layer) for layer in range(model.shape.layers)]
    if model.shape.dtype != "float32":
        raise InputError(
            f"the format torch does not work with model.dtype={model.shape.dtype!r}, because it "
            f"computes in float32. Leave it out, or retrain in float32."
        )
    unused = set(KNOWN) - _used(layers)
    text = _without(TEMPLATE.read_text(encoding="utf-8"), unused)
    text = _assigned(text, SHAPE, "{}", _sizes(model.shape))
    return _assigned(text, GENOTYPE, "[]", layers)


def _groups(model: Model, layer: int) -> list[Group]:
    """The heads of a layer by attention."""
    groups = []
    for attention, heads in model.genotype.groups(layer):
        name, options = _spelled(attention)
        groups.append((list(heads), name, options))
    return groups


def _spelled(attention: Attention) -> tuple[str, Options]:
    """The name and the options of an attention."""
    names = {kind: name for name, kind in ATTENTIONS.items()}
    name = names.get(type(attention), type(attention).__name__)
    if name not in KNOWN:
        raise InputError(
            f"the format torch does not know the attention {name!r} of the genotype. It knows "
            f"{', '.join(KNOWN)}."
        )
    if isinstance(attention, Parallel):
        members = []
        for member, share in attention.weighted:
            members.append((share, *_spelled(member)))
        return name, {"members": members}
    options = {}
    for field in dataclasses.fields(attention):  # type: ignore[arg-type]
        options[field.name] = getattr(attention, field.name)
    return name, options


def _used(layers: Sequence[Sequence[Group]]) -> set[str]:
    """The names of all attentions, members of a parallel one among them."""
    names = set()
    for groups in layers:
        for _, name, options in groups:
            names.add(name)
            # Members are no parallel attentions themselves: one level is all there is.
            for _, member, _ in options.get("members", ()):
                names.add(member)
    return names


def _sizes(shape: TransformerConfig) -> dict[str, object]:
    """What the template reads of the model's sizes."""
    slopes = None
    if shape.positions == "alibi":
        slopes = alibi_slopes(shape.heads).tolist()
    sizes = {name: getattr(shape, name) for name in SIZES}
    return sizes | {"slopes": slopes}


def _assigned(text: str, declaration: str, empty: str, value: object) -> str:
    """The template with a value in place of an empty one."""
    printed = pprint.pformat(value, width=110, sort_dicts=False, indent=1)
    return text.replace(f"{declaration} = {empty}", f"{declaration} = \\\n    {printed}", 1)


def _without(text: str, names: set[str]) -> str:
    """The template without the attentions that are not used."""
    lines = text.splitlines(keepends=True)
    # `parallel` is no function of the template: its members are.
    kept = []
    for name in KNOWN:
        if name not in names and name != "parallel":
            kept.append(f"{name!r}: {name}")
    entries = ", ".join(kept)
    # From the end, so that what is deleted moves no line that is still to be handled.
    for node in reversed(ast.parse(text).body):
        end = node.end_lineno or node.lineno
        if isinstance(node, ast.FunctionDef) and node.name in names:
            del lines[node.lineno - 1 : end + 2]  # and the two blank lines below it
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ATTENTIONS":
            lines[node.lineno - 1 : end] = [f"ATTENTIONS = {{{entries}}}\n"]
    return "".join(lines)


def write(net: Network, model: Model, folder: Path) -> None:
    """`model_torch.py` in a folder that has the weights."""
    (folder / FILE).write_text(source(model), encoding="utf-8")


def run(folder: Path, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logits of the module that was written."""
    import torch

    spec = importlib.util.spec_from_file_location("dartformer_exported_torch", folder / FILE)
    # A spec for a file always has a loader; the types do not say so.
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = module.load(folder)
    with torch.no_grad():
        return np.asarray(loaded(torch.from_numpy(tokens), torch.from_numpy(valid)))


def usage(tokens: jax.ShapeDtypeStruct, valid: jax.ShapeDtypeStruct) -> Sequence[str]:
    """The lines of Python that run it, for the model card."""
    return (
        "import torch, model_torch",
        'model = model_torch.load(".")',
        f"model(torch.zeros({tokens.shape}, dtype=torch.{tokens.dtype}), "
        f"torch.ones({valid.shape}, dtype=torch.bool))",
    )
