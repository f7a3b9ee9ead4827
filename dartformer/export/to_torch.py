"""An export as a plain PyTorch module: `model_torch.py`, generated from the genotype, on the same
weights."""

import ast
import dataclasses
import importlib.util
import pprint
from pathlib import Path
from typing import Any

import numpy as np

from dartformer.attention import ATTENTIONS
from dartformer.attention.base import Attention
from dartformer.attention.parallel import Parallel
from dartformer.errors import InputError
from dartformer.models.positions import alibi_slopes
from dartformer.models.transformer import Network
from dartformer.stages.retrain import Model

FILE = "model_torch.py"
TEMPLATE = Path(__file__).with_name("torch_template.py")
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


def source(model: Model) -> str:
    """The text of `model_torch.py`; raises `InputError` for what the template does not know."""
    groups = [
        [(list(heads), *_spelled(one)) for one, heads in model.genotype.groups(l)]
        for l in range(model.shape.layers)
    ]
    if model.shape.dtype != "float32":
        raise InputError(
            f"the format torch computes in float32, and model.dtype is {model.shape.dtype!r}: leave it "
            f"out, or retrain in float32."
        )
    shape = {
        name: getattr(model.shape, name)
        for name in (
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
        )
    }
    shape["slopes"] = (
        alibi_slopes(model.shape.heads).tolist() if model.shape.positions == "alibi" else None
    )
    used = {
        name
        for _, name, options in (g for layer in groups for g in layer)
        for name in [name, *(m[1] for m in options.get("members", ()))]
    }
    text = _without(TEMPLATE.read_text(encoding="utf-8"), set(KNOWN) - used)
    for name, value in (
        ("SHAPE: dict[str, Any] = {}", shape),
        ("GENOTYPE: list[list[tuple[list[int], str, dict[str, Any]]]] = []", groups),
    ):
        left = name.split(" = ")[0]
        text = text.replace(
            name,
            f"{left} = \\\n    {pprint.pformat(value, width=110, sort_dicts=False, indent=1)}",
            1,
        )
    return text


def _spelled(one: Attention) -> tuple[str, dict[str, Any]]:
    name = next(
        (name for name, kind in ATTENTIONS.items() if kind is type(one)), type(one).__name__
    )
    if name not in KNOWN:
        raise InputError(
            f"the format torch does not know the attention {name!r}, which is in the genotype; it knows "
            f"{', '.join(KNOWN)}."
        )
    if isinstance(one, Parallel):
        return name, {"members": [(share, *_spelled(member)) for member, share in one.weighted]}
    return name, {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}  # type: ignore[arg-type]


def _without(text: str, names: set[str]) -> str:
    """The template without the attentions that are not used."""
    lines = text.splitlines(keepends=True)
    for node in reversed(ast.parse(text).body):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            del lines[node.lineno - 1 : (node.end_lineno or 0) + 2]
    text = "".join(lines)
    start = text.index("ATTENTIONS = {")
    end = text.index("identity)}", start) + len("identity)}")
    kept = [name for name in KNOWN if name not in names | {"parallel"}]
    return f"{text[:start]}ATTENTIONS = {{{', '.join(f'{name!r}: {name}' for name in kept)}}}{text[end:]}"


def write(net: Network, model: Model, folder: Path) -> None:
    """`model_torch.py` in a folder that has the weights."""
    (folder / FILE).write_text(source(model), encoding="utf-8")


def run(folder: Path, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logits of the module that was written."""
    import torch

    spec = importlib.util.spec_from_file_location("dartformer_exported_torch", folder / FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.no_grad():
        return np.asarray(module.load(folder)(torch.from_numpy(tokens), torch.from_numpy(valid)))
