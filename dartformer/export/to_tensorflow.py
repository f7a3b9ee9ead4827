"""An export as a TensorFlow SavedModel: the same StableHLO, called by an operation of TensorFlow."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax import export as jax_export

from dartformer.models.transformer import Network
from dartformer.stages.retrain import Model

if TYPE_CHECKING:
    import tensorflow

FOLDER = "saved_model"


def _tensorflow() -> ModuleType:
    # Before the import: it hides the messages of TensorFlow about the processor and about GPUs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow

    return tensorflow


def _call_module() -> Callable[..., "Sequence[tensorflow.Tensor]"]:
    from tensorflow.compiler.tf2xla.python import xla

    return xla.call_module


def write(net: Network, model: Model, folder: Path) -> None:
    """`saved_model/` with the signature `serving_default(tokens, valid) -> {"logits"}`.

    It takes any batch size. JAX no longer has `jax2tf`, but the operation that it called,
    XlaCallModule, takes what `jax.export` writes.
    """
    tf = _tensorflow()
    weights = jax.tree.map(np.asarray, model.weights)
    (batch,) = jax_export.symbolic_shape("b")  # any batch, but N of the model alone
    tokens, valid = model.shape.blank(batch)
    function = jax.jit(lambda tokens, valid: net.apply(weights, tokens, valid))
    exported = jax_export.export(function, platforms=("cpu", "cuda", "tpu"))(tokens, valid)
    (out,) = exported.out_avals
    # The operation names platforms in capital letters.
    platforms = list(map(str.upper, exported.platforms))
    signature = []
    for name, array in (("tokens", tokens), ("valid", valid)):
        dtype = tf.as_dtype(array.dtype.name)
        signature.append(tf.TensorSpec((None, *array.shape[1:]), dtype, name=name))

    def call(
        tokens: "tensorflow.Tensor", valid: "tensorflow.Tensor"
    ) -> dict[str, "tensorflow.Tensor"]:
        (logits,) = _call_module()(
            [tokens, valid],
            version=exported.calling_convention_version,
            module=exported.mlir_module_serialized,
            Tout=[tf.as_dtype(out.dtype.name)],
            Sout=[(None, *out.shape[1:])],
            platforms=platforms,
        )
        return {"logits": logits}

    # Not traced by autograph: the function is one operation.
    module = tf.Module()
    module.call = tf.function(call, autograph=False, input_signature=signature)
    tf.saved_model.save(module, str(folder / FOLDER), signatures={"serving_default": module.call})


def run(folder: Path, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logits of the SavedModel."""
    tf = _tensorflow()
    served = tf.saved_model.load(str(folder / FOLDER)).signatures["serving_default"]
    outputs = served(tokens=tf.constant(tokens), valid=tf.constant(valid))
    return np.asarray(outputs["logits"])


def usage(tokens: jax.ShapeDtypeStruct, valid: jax.ShapeDtypeStruct) -> Sequence[str]:
    """The lines of Python that run it, for the model card."""
    return (
        "import tensorflow as tf",
        f'run = tf.saved_model.load("{FOLDER}").signatures["serving_default"]',
        f'run(tokens=tf.zeros({tokens.shape}, "{tokens.dtype}"), '
        f'valid=tf.ones({valid.shape}, "bool"))',
    )
