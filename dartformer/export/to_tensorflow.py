"""An export as a TensorFlow SavedModel: the same StableHLO, called by TensorFlow's own
operation."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from dartformer.models.transformer import Network
from dartformer.stages.retrain import Model

FOLDER = "saved_model"


def _tensorflow() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow

    return tensorflow


def _call_module() -> Any:
    from tensorflow.compiler.tf2xla.python import xla

    return xla.call_module


def write(net: Network, model: Model, folder: Path) -> None:
    """`saved_model/`, with the signature `serving_default(tokens, valid) -> {"logits"}` for any
    batch size.

    JAX has no `jax2tf` any more; what it called, the operation XlaCallModule, takes what
    `jax.export` makes."""
    tf = _tensorflow()
    weights = jax.tree.map(np.asarray, model.weights)
    (batch,) = jax_export.symbolic_shape("b")
    shapes = model.shape.blank(batch)
    exported = jax_export.export(
        jax.jit(lambda tokens, valid: net.apply(weights, tokens, valid)),
        platforms=("cpu", "cuda", "tpu"),
    )(*shapes)
    (out,) = exported.out_avals
    specs = [
        tf.TensorSpec((None, *a.shape[1:]), tf.as_dtype(a.dtype.name), name=name)
        for name, a in zip(("tokens", "valid"), shapes, strict=True)
    ]

    def call(tokens: Any, valid: Any) -> dict[str, Any]:
        (logits,) = _call_module()(
            [tokens, valid],
            version=exported.calling_convention_version,
            module=exported.mlir_module_serialized,
            Tout=[tf.as_dtype(out.dtype.name)],
            Sout=[(None, *out.shape[1:])],
            platforms=[name.upper() for name in exported.platforms],
        )
        return {"logits": logits}

    module = tf.Module()
    module.call = tf.function(call, autograph=False, input_signature=specs)
    tf.saved_model.save(module, str(folder / FOLDER), signatures={"serving_default": module.call})


def run(folder: Path, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Logits of the SavedModel that was written."""
    tf = _tensorflow()
    served = tf.saved_model.load(str(folder / FOLDER)).signatures["serving_default"]
    return np.asarray(served(tokens=tf.constant(tokens), valid=tf.constant(valid))["logits"])
