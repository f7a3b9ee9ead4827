"""Further formats of an exported model, each behind an extra and compared with the model's own
logits when written."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dartformer.errors import InputError
from dartformer.export import to_onnx, to_tensorflow, to_torch
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Network
from dartformer.registry import Registry
from dartformer.stages.retrain import Model

TOLERANCE = 1e-4
"""The largest difference of logits, over 1 + the largest logit, that is taken for rounding."""


class Format(NamedTuple):
    """A format: what it writes, which packages (of the extra of the same name) it needs, how to
    write and run it."""

    summary: str
    packages: tuple[str, ...]
    write: Callable[[Network, Model, Path], None]
    run: Callable[[Path, np.ndarray, np.ndarray], np.ndarray]


BUILT_IN: dict[str, Format] = {
    "onnx": Format(
        "model.onnx, for ONNX Runtime", ("jax2onnx", "onnxruntime"), to_onnx.write, to_onnx.run
    ),
    "tensorflow": Format(
        "saved_model/, a TensorFlow SavedModel",
        ("tensorflow",),
        to_tensorflow.write,
        to_tensorflow.run,
    ),
    "torch": Format(
        "model_torch.py, a plain PyTorch module on weights.safetensors",
        ("torch",),
        to_torch.write,
        to_torch.run,
    ),
}


def _is_format(entry: Any) -> bool:
    return isinstance(entry, Format)


FORMATS: Registry[Format] = Registry(
    "export format",
    BUILT_IN,
    group="dartformer.format",
    requirement="a `Format`",
    fits=_is_format,
)
"""Every format by name: the built-in ones, and those of other packages."""


def check(formats: Sequence[str]) -> None:
    """Raise `InputError` for a format that there is not, or whose packages are not installed."""
    for name in formats:
        packages = FORMATS.find(name).packages
        missing = [p for p in packages if importlib.util.find_spec(p) is None]
        if missing:
            raise InputError(
                f"the format {name} needs {' and '.join(missing)}: pip install 'dartformer[{name}]'."
            )


def write(name: str, net: Network, model: Model, folder: Path) -> None:
    """Write a format into a folder that holds the weights, then compare it with the network.

    Raises `InputError` where the model has something that the format cannot express, `RuntimeError`
    where the logits differ."""
    FORMATS[name].write(net, model, folder)
    for batch in (3, 1):
        tokens, valid = examples(model.shape, batch)
        want = np.asarray(net.apply(model.weights, tokens, valid))
        got = FORMATS[name].run(folder, tokens, valid)
        if got.shape != want.shape or not np.abs(got - want).max() <= TOLERANCE * (
            1 + np.abs(want).max()
        ):
            raise RuntimeError(
                f"the format {name} does not give the model's logits: shape {got.shape} for {want.shape}"
                + (f", off by {np.abs(got - want).max():.3g}." if got.shape == want.shape else ".")
            )


def examples(shape: TransformerConfig, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens and valid to compare on: the first as long as may be, the others shorter."""
    rng = np.random.default_rng(0)
    tokens, valid = (np.zeros(a.shape, a.dtype) for a in shape.blank(batch))
    for i in range(batch):
        valid[i, ..., : max(1, shape.length // (i + 1))] = True
    if shape.features:
        return (rng.normal(size=tokens.shape) * valid[..., None]).astype(np.float32), valid
    return (
        rng.integers(min(1, shape.vocabulary - 1), shape.vocabulary, tokens.shape) * valid
    ).astype(np.int32), valid
