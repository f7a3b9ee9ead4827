"""The files of a checkpoint: its config, and the tensors of its safetensors, read one by one.

Tensors are read and not mapped into memory: mapped pages would stay beside the converted arrays."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from dartformer.errors import InputError, brief
from dartformer.machine.workdir import read_json
from dartformer.pretrained.base import Axes, Settings

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The types of numbers of a safetensors file that are weights as they stand."""

SINGLE = "model.safetensors"

INDEX = "model.safetensors.index.json"

OWN = "dartformer-"
"""Stands before the `model_type` of a folder whose attentions transformers has no class for, so that
nothing reads it as another model. They are in its `genotype.json`."""

GENOTYPE = "genotype.json"

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.msgpack", "*.h5")
"""What other files of weights are called; some of them can run code when they are read."""


class Stored(NamedTuple):
    """A tensor in a file.

    Attributes:
      file: that holds it.
      dtype: of its numbers.
      shape: its axes.
      offset: its first byte.
      bytes: how many it takes.
    """

    file: Path
    dtype: str
    shape: Axes
    offset: int
    bytes: int

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """Its numbers, which are of one of `DTYPES`; `InputError` where the file is too short."""
        array = np.empty(self.shape, DTYPES[self.dtype])
        # As bytes, since NumPy lends no buffer of bfloat16.
        self._fill(array.reshape(-1).view(np.uint8))
        return array

    def content(self) -> np.ndarray:
        """Its bytes, whatever its type."""
        content = np.empty(self.bytes, np.uint8)
        self._fill(content)
        return content

    def _fill(self, content: np.ndarray) -> None:
        with self.file.open("rb") as opened:
            opened.seek(self.offset)
            count = opened.readinto(content.data)
        if count != content.nbytes:
            raise InputError(f"{self.file} is damaged: it ends within a tensor.")


def settings_of(folder: Path) -> Settings:
    """`config.json`; `InputError` where there is none, or the checkpoint cannot be read at all."""
    settings = config_of(folder)
    for error in obstacles(folder, settings):
        raise error
    return settings


def config_of(folder: Path) -> Settings:
    """`config.json`, whatever it says; `InputError` where there is none."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}.")
    file = folder / "config.json"
    if not file.is_file():
        raise InputError(f"{folder} is no checkpoint: it has no config.json.")
    values = read_json(file)
    if not isinstance(values, dict):
        raise InputError(f"{file} must be an object.")
    return Settings(str(file), values)


def obstacles(folder: Path, settings: Settings) -> Iterator[InputError]:
    """Why no checkpoint with such a `config.json` can be read, whatever its family."""
    if "auto_map" in settings.values:
        yield InputError(
            f"{folder} needs code of its own (auto_map in config.json), and dartformer runs none. "
            f"Use a checkpoint of a family that it knows."
        )
    for name in ("quantization_config", "compression_config"):
        if settings.values.get(name):
            method = settings.section(name).values.get("quant_method", "unknown")
            yield InputError(
                f"{settings.file}: {name} says that the weights are quantized ({brief(method)}), and "
                f"dartformer reads plain ones. Save them in float32, float16 or bfloat16."
            )


def stored(folder: Path) -> dict[str, Stored]:
    """All tensors of a checkpoint by name, from one file or from those that the index lists."""
    files = _files(folder)
    tensors: dict[str, Stored] = {}
    for file in files:
        for name, tensor in _header(file):
            if name in tensors:
                raise InputError(
                    f"{folder} has the tensor {name} twice, in {tensors[name].file.name} and "
                    f"{file.name}."
                )
            tensors[name] = tensor
    return tensors


def _files(folder: Path) -> list[Path]:
    """The files of weights."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        raise _no_weights(folder)
    listed, shards = read_json(index), None
    if isinstance(listed, dict):
        shards = listed.get("weight_map")
    if not isinstance(shards, Mapping) or not shards:
        raise InputError(f"{index} is damaged: it lists no shards.")
    names = dict.fromkeys(map(str, shards.values()))
    for name in names:
        # As text: a hub's cache holds links to files elsewhere, which are fine.
        path = PurePosixPath(name)
        inside = not path.is_absolute() and ".." not in path.parts and "\\" not in name
        if not inside or path.suffix != ".safetensors":
            raise InputError(
                f"{index} lists the shard {brief(name)}, which is no safetensors file in {folder}."
            )
        if not (folder / name).is_file():
            raise InputError(f"{folder} lacks the shard {name}, which {INDEX} lists.")
    return [folder / name for name in names]


def _no_weights(folder: Path) -> InputError:
    """The error for a folder without safetensors."""
    for pattern in PICKLED:
        for file in sorted(folder.glob(pattern)):
            return InputError(
                f"{folder} has its weights in {file.name}, and dartformer reads safetensors only, "
                f"which cannot run code. Convert it: model.save_pretrained(...) in transformers."
            )
    return InputError(f"{folder} has no weights: neither {SINGLE} nor {INDEX}.")


def _header(file: Path) -> Iterator[tuple[str, Stored]]:
    """The tensors of a file, without their numbers."""
    try:
        # It checks that the header is whole, and that its offsets lie within the file.
        with safe_open(file, framework="numpy"):
            pass
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}.") from None
    except SafetensorError as error:
        raise InputError(f"{file} is damaged: {error}.") from None
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            yield name, Stored(file, entry["dtype"], shape, 8 + size + begin, end - begin)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a checkpoint of Hugging Face, and no export of this package."""
    file = folder / "config.json"
    if not file.is_file():
        return False
    values = read_json(file)
    return isinstance(values, dict) and "model_type" in values
