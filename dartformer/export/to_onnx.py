"""An export as ONNX, converted from the model's jaxpr by jax2onnx, run in ONNX Runtime."""

from collections.abc import Sequence
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
    from jax2onnx import to_onnx  # an extra, which may be missing

    weights = jax.tree.map(np.asarray, model.weights)
    tokens, valid = model.shape.blank(1)
    # jax2onnx reads a text in place of a size as a dimension of that name.
    inputs = []
    for array in (tokens, valid):
        inputs.append(jax.ShapeDtypeStruct(("B", *array.shape[1:]), array.dtype))
    try:
        converted = to_onnx(
            lambda tokens, valid: net.apply(weights, tokens, valid),
            inputs,
            model_name="dartformer",
            input_names=["tokens", "valid"],
            output_names=["logits"],
        )
    except Exception as error:  # whatever it raises for an operation that it does not know
        raise InputError(
            f"the format onnx cannot express this genotype ({model.genotype}): "
            f"{type(error).__name__}: {error}"
        ) from error
    (folder / FILE).write_bytes(converted.SerializeToString())


def run(folder: Path, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logits by ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"tokens": tokens, "valid": valid})
    return np.asarray(logits)


def usage(tokens: jax.ShapeDtypeStruct, valid: jax.ShapeDtypeStruct) -> Sequence[str]:
    """The lines of Python that run it, for the model card."""
    return (
        "import onnxruntime, numpy",
        f'run = onnxruntime.InferenceSession("{FILE}")',
        f'run.run(None, {{"tokens": numpy.zeros({tokens.shape}, numpy.{tokens.dtype}), '
        f'"valid": numpy.ones({valid.shape}, bool)}})',
    )
