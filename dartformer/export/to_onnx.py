"""An export as ONNX, converted from the model's jaxpr by jax2onnx, run in ONNX Runtime."""

from pathlib import Path

import jax
import numpy as np

from dartformer.errors import InputError
from dartformer.models.transformer import Network
from dartformer.stages.retrain import Model

FILE = "model.onnx"


def write(net: Network, model: Model, folder: Path) -> None:
    """`model.onnx`, inputs "tokens" and "valid", output "logits", for any batch size.

    Raises `InputError` where jax2onnx cannot express an operation of the genotype's attentions.
    """
    from jax2onnx import to_onnx

    weights = jax.tree.map(np.asarray, model.weights)
    shapes = [jax.ShapeDtypeStruct(("B", *a.shape[1:]), a.dtype) for a in model.shape.blank(1)]
    try:
        made = to_onnx(
            lambda tokens, valid: net.apply(weights, tokens, valid),
            shapes,
            model_name="dartformer",
            input_names=["tokens", "valid"],
            output_names=["logits"],
        )
    except Exception as error:
        raise InputError(
            f"the format onnx cannot express this genotype ({model.genotype}): "
            f"{type(error).__name__}: {error}"
        ) from error
    (folder / FILE).write_bytes(made.SerializeToString())


def run(folder: Path, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logits by ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"tokens": tokens, "valid": valid})[0])
