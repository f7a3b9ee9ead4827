"""Export: a folder that outsiders can use. `dartformer.export.load` loads it."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from safetensors.numpy import save_file

from dartformer import config as configs
from dartformer._version import __version__
from dartformer.errors import InputError
from dartformer.export import checksums
from dartformer.export import formats as _formats
from dartformer.export.card import card
from dartformer.kernels.flash import without_cudnn
from dartformer.machine.workdir import write_json, write_text
from dartformer.models.transformer import Network, transformer
from dartformer.stages.retrain import Model
from dartformer.tasks.base import Learns
from dartformer.training.checkpoint import named_leaves

FORMAT = 1
PLATFORMS = ("cpu", "cuda", "tpu")
LEARNED = "learned.json"
"""What the task learned from its training part, such as a tokenizer."""


def export(
    model: Model,
    folder: str | Path,
    results: dict[str, Any] | None = None,
    formats: Sequence[str] = (),
) -> Path:
    """Write a trained model: genotype, weights, StableHLO, config, tokenizer, model card,
    checksums.

    Args:
      model: what `retrain` returned.
      folder: made if need be; files of an earlier export are replaced.
      results: the run's `results.json`, for the model card.
      formats: further ones, names of `dartformer.export.formats.FORMATS`; each is compared with the
        model's logits.

    Raises:
      InputError: the folder holds other files, or a format is unknown, not installed, or cannot
        express the model.
    """
    folder = Path(folder)
    _formats.check(formats)
    if folder.exists() and any(folder.iterdir()) and not (folder / checksums.CHECKSUMS).exists():
        raise InputError(f"{folder} holds other files: export to a new or an empty folder.")
    # Made beside it and then moved, so that there is never a part of an export under its name.
    made = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        _write(model, made, results or {}, formats)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        made.rename(folder)
        shutil.rmtree(old)
    else:
        made.rename(folder)
    return folder


def _write(model: Model, folder: Path, results: dict[str, Any], formats: Sequence[str]) -> None:
    # Who loads it may have another device: the StableHLO file takes what all have, and a loaded
    # model what there is.
    kernel = without_cudnn("auto", model.shape.tokens)
    net = transformer(dataclasses.replace(model.shape, kernel=kernel), model.genotype)
    config = configs.to_dict(model.config)
    config["model"]["kernel"] = "auto"
    save_file(
        {name: np.asarray(leaf) for name, leaf in named_leaves(model.weights)},
        folder / "weights.safetensors",
    )
    (folder / "weights.safetensors").chmod(0o644)  # safetensors makes it private
    write_text(folder / "genotype.json", model.genotype.to_json())
    if isinstance(model.task, Learns):
        write_text(folder / LEARNED, model.task.learned)
    program, any_length = stablehlo(net, model)
    (folder / "model.stablehlo").write_bytes(program)
    write_json(
        folder / "config.json",
        {
            "format": FORMAT,
            "dartformer": __version__,
            "seed": model.seed,
            "step": model.step,
            "identity": dict(model.identity),
            "labels": list(model.task.labels),
            "length": model.shape.length,
            "any_length": any_length,
            "platforms": list(PLATFORMS),
            "formats": list(formats),
            "config": config,
        },
    )
    for name in formats:
        _formats.write(name, net, model, folder)
    write_text(folder / "README.md", card(model, results, formats, any_length=any_length))
    checksums.note(folder)


def stablehlo(net: Network, model: Model) -> tuple[bytes, bool]:
    """`(tokens [b, N] int32, valid [b, N] bool) -> logits`, weights inside, any batch size, for
    `PLATFORMS`.

    Of two documents `[b, 2, N]`; of tokens that are numbers `[b, N, F]` float32. Read it with
    `jax.export.deserialize`; neither dartformer nor flax is needed.

    Returns:
      The program, and whether it takes any N up to the model's length; where an attention's tiles,
      tables or projections are cut for one N, it takes that alone.
    """
    weights = jax.tree.map(np.asarray, model.weights)
    # Arrays of numpy, which know of no device, as JAX's inside: numpy slices by no symbol.
    function = jax.jit(
        lambda tokens, valid: net.apply(jax.tree.map(jnp.asarray, weights), tokens, valid)
    )
    to_export = jax_export.export(function, platforms=PLATFORMS)
    try:
        batch, length = jax_export.symbolic_shape(
            "b, n", constraints=(f"n <= {model.shape.length}",)
        )
        return bytes(to_export(*model.shape.blank(batch, length)).serialize()), True
    except Exception:  # whatever an operation raises that needs the number
        (batch,) = jax_export.symbolic_shape("b")
        return bytes(to_export(*model.shape.blank(batch)).serialize()), False
