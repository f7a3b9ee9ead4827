"""More formats of an exported model. Each needs an extra and must give the model's own logits."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax import ShapeDtypeStruct

from dartformer.errors import InputError
from dartformer.export import to_onnx, to_tensorflow, to_torch
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Network
from dartformer.registry import Registry
from dartformer.stages.retrain import Model

TOLERANCE = 1e-4
"""The largest difference of logits, over 1 + the largest logit, that passes for rounding."""


def no_usage(tokens: ShapeDtypeStruct, valid: ShapeDtypeStruct) -> Sequence[str]:
    """No lines of Python for the model card."""
    return ()


class Format(NamedTuple):
    """A format of an exported model.

    Attributes:
      summary: what is written.
      packages: that it needs, those of the extra of the same name.
      write: into a folder that holds the weights.
      run: logits of what was written, of tokens and valid.
      usage: for the model card, the lines of Python that run it, given the inputs of one example.
    """

    summary: str
    packages: tuple[str, ...]
    write: Callable[[Network, Model, Path], None]
    run: Callable[[Path, np.ndarray, np.ndarray], np.ndarray]
    usage: Callable[[ShapeDtypeStruct, ShapeDtypeStruct], Sequence[str]] = no_usage


BUILT_IN: dict[str, Format] = {
    "onnx": Format(
        summary="model.onnx, for ONNX Runtime",
        packages=("jax2onnx", "onnxruntime"),
        write=to_onnx.write,
        run=to_onnx.run,
        usage=to_onnx.usage,
    ),
    "tensorflow": Format(
        summary="saved_model/, a TensorFlow SavedModel",
        packages=("tensorflow",),
        write=to_tensorflow.write,
        run=to_tensorflow.run,
        usage=to_tensorflow.usage,
    ),
    "torch": Format(
        summary="model_torch.py, a plain PyTorch module on weights.safetensors",
        packages=("torch",),
        write=to_torch.write,
        run=to_torch.run,
        usage=to_torch.usage,
    ),
}


def _is_format(entry: object) -> bool:
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
    """Raise `InputError` for an unknown format, or one whose packages are not installed."""
    for name in formats:
        missing = []
        for package in FORMATS.find(name).packages:
            # Found and not imported: TensorFlow alone takes seconds.
            if importlib.util.find_spec(package) is None:
                missing.append(package)
        if missing:
            raise InputError(
                f"the format {name} needs {' and '.join(missing)}. "
                f"Install it: pip install 'dartformer[{name}]'."
            )


def write(name: str, net: Network, model: Model, folder: Path) -> None:
    """Write a format into a folder that holds the weights, then compare it with the network.

    Raises `InputError` where the model has something that the format cannot express, `RuntimeError`
    where the logits differ.
    """
    written = FORMATS[name]
    written.write(net, model, folder)
    # Two batch sizes, as a program may have been written for one of them alone.
    for batch in (3, 1):
        tokens, valid = examples(model.shape, batch)
        expected = np.asarray(net.apply(model.weights, tokens, valid))
        logits = written.run(folder, tokens, valid)
        wrong = f"the format {name} does not give the model's logits: "
        if logits.shape != expected.shape:
            raise RuntimeError(f"{wrong}its shape is {logits.shape}, not {expected.shape}.")
        error = np.abs(logits - expected).max()
        allowed = TOLERANCE * (1 + np.abs(expected).max())
        if not error <= allowed:  # NaN fails too
            raise RuntimeError(f"{wrong}they are off by {error:.3g}.")


def examples(shape: TransformerConfig, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens and valid to compare on: the first at full length, the others shorter."""
    rng = np.random.default_rng(0)
    blank, mask = shape.blank(batch)
    valid = np.zeros(mask.shape, bool)
    for i in range(batch):
        length = max(1, shape.length // (i + 1))
        valid[i, ..., :length] = True
    if shape.features:
        numbers = rng.normal(size=blank.shape) * valid[..., None]  # [B, N, F]
        return numbers.astype(np.float32), valid
    smallest = min(1, shape.vocabulary - 1)  # 0 is padding, where there is another token
    ids = rng.integers(smallest, shape.vocabulary, blank.shape) * valid
    return ids.astype(np.int32), valid
