"""Export: a folder that works without the run it came from. `dartformer.load` loads it."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from safetensors.numpy import save_file

from dartformer import config as configs
from dartformer._version import __version__
from dartformer.errors import InputError
from dartformer.export import checksums, decode_programs
from dartformer.export import formats as _formats
from dartformer.export.card import card
from dartformer.kernels.flash import portable
from dartformer.machine.folders import replaced
from dartformer.machine.workdir import write_json, write_text
from dartformer.models.decode import can_generate
from dartformer.models.transformer import Network, transformer
from dartformer.results import Results
from dartformer.stages.retrain import Model
from dartformer.tasks.base import Learns
from dartformer.training.checkpoint import named_leaves

FORMAT = 1
PLATFORMS = ("cpu", "cuda", "tpu")
LEARNED = "learned.json"
"""What the task learned from its training part, such as a tokenizer."""


class Program(NamedTuple):
    """The model as StableHLO.

    Attributes:
      serialized: what `jax.export.deserialize` reads.
      any_length: whether it takes any N up to the model's length, or that length alone.
    """

    serialized: bytes
    any_length: bool


def export(
    model: Model,
    folder: str | Path,
    results: Results | None = None,
    formats: Sequence[str] = (),
) -> Path:
    """Write a trained model with its program, its card and checksums.

    Args:
      model: what `retrain` returned.
      folder: created if needed; files of an earlier export are replaced.
      results: of the run, for the model card.
      formats: more formats, names of `dartformer.export.formats.FORMATS`; each is compared with the
        model's logits.

    Raises:
      InputError: the folder holds other files, or a format is unknown, not installed, or cannot
        express the model.
    """
    folder = Path(folder)
    # Before the model is written, which may take a minute.
    _formats.check(formats)
    if folder.exists() and any(folder.iterdir()) and not (folder / checksums.CHECKSUMS).exists():
        raise InputError(f"{folder} holds other files. Export to a new or an empty folder.")
    with replaced(folder) as partial:
        _write(model, partial, results, formats)
    return folder


def _write(model: Model, folder: Path, results: Results | None, formats: Sequence[str]) -> None:
    """Every file of an export."""
    # Who loads it may have another device: the StableHLO file takes what all have, and a loaded
    # model what there is.
    kernel = portable("auto", model.shape.tokens)
    net = transformer(dataclasses.replace(model.shape, kernel=kernel), model.genotype)
    weights = {name: np.asarray(leaf) for name, leaf in named_leaves(model.weights)}
    genotype = folder / "genotype.json"
    write_text(genotype, model.genotype.to_json())
    save_file(weights, folder / "weights.safetensors")
    # safetensors lets only the user read, whatever the umask.
    (folder / "weights.safetensors").chmod(genotype.stat().st_mode)
    if isinstance(model.task, Learns):
        write_text(folder / LEARNED, model.task.learned)
    with _without_locations():
        program = stablehlo(net, model)
        (folder / "model.stablehlo").write_bytes(program.serialized)
        if can_generate(model.shape, model.genotype):
            shape = dataclasses.replace(model.shape, kernel=kernel)
            decode_programs.write(shape, model.genotype, model.weights, folder, PLATFORMS)
        for name in formats:
            _formats.write(name, net, model, folder)
    _write_header(model, folder, program, formats)
    text = card(model, results, formats, any_length=program.any_length)
    write_text(folder / "README.md", text)
    checksums.note(folder)


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Within the block programs are traced without the lines of Python that they come from.

    These are paths of this machine. And a helper that JAX has traced before keeps the lines of its
    first caller, so that the bytes would depend on what else a process did.
    """
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)


def _write_header(model: Model, folder: Path, program: Program, formats: Sequence[str]) -> None:
    """`config.json`: the config, and what else a reader needs."""
    config = configs.to_dict(model.config)
    config["model"]["kernel"] = "auto"  # as in the program: the other machine may lack it
    if config["task"].get("tokens") == "checkpoint":
        # The tokenizer goes with the export, and its folder does not.
        config["task"]["vocabulary_size"] = model.task.vocabulary
    config = configs.without_places(config)
    header = {
        "format": FORMAT,
        "dartformer": __version__,
        "seed": model.seed,
        "step": model.step,
        "identity": dict(model.identity),
        "labels": list(model.task.labels),
        "length": model.shape.length,
        "any_length": program.any_length,
        "platforms": list(PLATFORMS),
        "formats": list(formats),
        "config": config,
    }
    write_json(folder / "config.json", header)


def stablehlo(net: Network, model: Model) -> Program:
    """`(tokens [b, N] int32, valid [b, N] bool) -> logits` with the weights, for `PLATFORMS`.

    It takes any batch size. Tokens are `[b, 2, N]` of two documents, `[b, N, F]` float32 where they
    are numbers. `jax.export.deserialize` reads it without dartformer or flax. Where an attention's
    tiles, tables or projections are built for one N, it takes that length alone.
    """
    weights = jax.tree.map(np.asarray, model.weights)

    def logits(tokens: jax.Array, valid: jax.Array) -> jax.Array:
        # NumPy arrays belong to no device, but cannot be sliced by a symbolic length; JAX's can.
        return net.apply(jax.tree.map(jnp.asarray, weights), tokens, valid)

    to_export = jax_export.export(jax.jit(logits), platforms=PLATFORMS)
    limits = (f"n <= {model.shape.length}",)
    try:
        batch, length = jax_export.symbolic_shape("b, n", constraints=limits)
        exported = to_export(*model.shape.blank(batch, length))
        return Program(bytes(exported.serialize()), any_length=True)
    except Exception:  # whatever an operation raises that needs the number
        (batch,) = jax_export.symbolic_shape("b")
        exported = to_export(*model.shape.blank(batch))
        return Program(bytes(exported.serialize()), any_length=False)
