"""The user's own pictures, in a folder for each class or as arrays, as sequences of patches."""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dartformer.data import folders
from dartformer.data.locations import identity, located
from dartformer.data.records import Record, read, splits
from dartformer.data.rows import Labels, canonical
from dartformer.errors import InputError, brief, unknown
from dartformer.tasks.base import Unlabelled
from dartformer.tasks.files import column, path_of, places
from dartformer.tasks.numeric import NumericTask, TraitsByKind
from dartformer.tasks.numeric_preparation import NumericRow, NumericSource
from dartformer.tasks.requirements import require_at_least
from dartformer.tasks.series import ColumnSpans

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""The suffixes of files of pictures."""

FITS = ("resize", "crop")

MODES = {1: "L", 3: "RGB"}
"""The modes of grey and of colour."""

DAMAGED = np.zeros((0, 1), np.float32)
"""The steps of a picture that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Pictures(NumericTask):
    """Pictures, grey or in colour, of one size, cut into square patches.

    Attributes:
      path: a folder with a folder of pictures for each class, or a file with arrays.
      valid: a file for validation; empty for the split of that name in `path`, or else a part of train.
      test: a file for test; empty for the split of that name in `path`, or else a part of train.
      kind: "classification", or "regression" of arrays whose label is a number.
      pixels: of a file, the column of arrays [H, W] or [H, W, channels].
      last_pixel: of a table with a pixel in each column, row by row, the last of these columns;
        `pixels` is the first.
      label: of a file, the column of labels.
      height: of every picture, in pixels.
      width: of every picture, in pixels.
      fit: what happens to a picture of another size: "resize" it, or "crop" and pad it around its
        middle.
      patch: side of the square patches.
    """

    path: str = ""
    valid: str = ""
    test: str = ""
    kind: str = "classification"
    pixels: str = ""
    last_pixel: str = ""
    label: str = "label"
    height: int = 32
    width: int = 32
    fit: str = "resize"
    patch: int = 4

    traits: ClassVar[Any] = TraitsByKind(
        summary="Your own pictures of any size: a folder for each class, or arrays",
        paper="none: `dartformer new --data FOLDER` writes its config; patches as in Dosovitskiy "
        "et al. 2020, 2010.11929",
    )

    def __post_init__(self) -> None:
        require_at_least(self, height=1, width=1, patch=1)
        if self.height % self.patch or self.width % self.patch:
            raise InputError(
                f"task.patch = {self.patch} must divide task.height = {self.height} and task.width "
                f"= {self.width}."
            )
        super().__post_init__()
        if self.kind == "forecasting":
            raise unknown("task.kind", self.kind, ("classification", "regression"))
        if self.fit not in FITS:
            raise unknown("task.fit", self.fit, FITS)
        if self.channels not in MODES:
            raise InputError(f"task.channels must be 1 (grey) or 3 (colour), got {self.channels}.")
        if len(Labels(self.kind, self.label_names).numbers) != len(self.label_names):
            raise InputError(f"task.label_names has a name twice: {self.label_names}.")

    @property
    def title(self) -> str:
        """The data's name."""
        return Path(self.path).name or "pictures"

    @property
    def length(self) -> int:
        """The number of patches."""
        return (self.height // self.patch) * (self.width // self.patch)

    @property
    def patch_steps(self) -> int:
        """Pixels of a token."""
        return self.patch**2

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, or of the one number."""
        if self.kind != "classification":
            return ("value",)
        return tuple(map(canonical, self.label_names))

    def encode(self, text: str) -> Any:
        """Tokens of a picture: of the file of that name, or of its pixels row by row."""
        path = Path(text.strip())
        if path.suffix.lower() in SUFFIXES:
            return self.tokens_of(self.pixels_of(opened_picture(located(text.strip(), None))))
        steps = self.steps(text)
        if len(steps) != self.height * self.width or steps.shape[1] != self.channels:
            raise InputError(
                f"the model reads the file of a picture, or {self.height} x {self.width} pixels of "
                f"{self.channels} numbers; got {steps.size} numbers."
            )
        return self.tokens_of(self.pixels_of(steps.reshape(self.height, self.width, -1)))

    def pixels_of(self, picture: np.ndarray) -> np.ndarray:
        """A picture `[H, W]` or `[H, W, channels]` as pixels `[height * width, channels]`.

        They are in the order of the patches, and row by row in each."""
        picture = in_channels(picture, self.channels)
        if picture.shape[:2] != (self.height, self.width):
            if self.fit == "resize":
                picture = resized(picture, self.height, self.width)
            else:
                picture = centred(picture, self.height, self.width)
        side = self.patch
        rows, columns = self.height // side, self.width // side
        grid = picture.reshape(rows, side, columns, side, -1).swapaxes(1, 2)
        return grid.reshape(-1, self.channels)  # [rows * columns * side * side, channels]

    def sources(self, data_dir: str | None) -> dict[str, NumericSource]:
        """Train, and valid and test where there are folders or files for them."""
        parts = parts_of_folder(path_of(self, data_dir))
        sources = {}
        for part, (place, name) in places(self, parts, data_dir).items():
            rows = partial(self._rows, place, name)
            sources[part] = NumericSource(rows, [str(place), name, identity(place)])
        return sources

    def unlabelled(self, path: Path) -> Iterator[Unlabelled]:
        """The tokens of each picture of a folder, of the folders in it, or of a table of arrays."""
        for where, picture in self._pictures(path):
            yield Unlabelled(where, self.tokens_of(self.pixels_of(picture)))

    def _pictures(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Pictures, each with what names it."""
        if not path.is_dir():
            if not self.pixels:
                raise InputError(
                    f"the model reads pictures, and {path.name} is a table. Use a folder of pictures, "
                    f"or a text file with the name of a picture in each line."
                )
            for number, record in enumerate(read(path), 1):
                where = f"{path.name}, row {number}"
                try:
                    picture = self._array(record, where)
                except (ValueError, TypeError) as error:
                    raise InputError(f"{where}: {str(error).rstrip('.')}.") from None
                yield where, picture
            return
        for file in sorted(path.rglob("*")):
            if is_picture(file):
                yield str(file.relative_to(path)), opened_picture(file)

    def _rows(self, path: Path, split: str) -> Iterator[NumericRow]:
        if not self.pixels:
            for file, name in picture_files(path, split):
                where = f"{path.name}/{file.relative_to(path)}"
                try:
                    values, fault = self.pixels_of(opened_picture(file)), ""
                except InputError as error:
                    values, fault = DAMAGED, str(error).rstrip(".")
                yield NumericRow(values, name, where, fault=fault)
            return
        source = f"{path.name} {split}".rstrip()
        columns = ColumnSpans((self.pixels, self.last_pixel))
        for number, record in enumerate(read(path, split), 1):
            where = f"{source}, row {number}"
            try:
                if self.last_pixel:
                    array = square(columns.steps(record, where), self.channels)
                else:
                    array = self._array(record, where)
                values, fault = self.pixels_of(array), ""
            except (ValueError, TypeError) as error:  # an InputError is a ValueError
                values, fault = DAMAGED, str(error).rstrip(".")
            yield NumericRow(values, column(record, self.label, where), where, fault=fault)

    def _array(self, record: Record, where: str) -> np.ndarray:
        """The array of a row, or the pixels of a file that is in it."""
        value = column(record, self.pixels, where)
        if holds_file(value):
            return opened_picture(io.BytesIO(value["bytes"]))
        try:
            array = np.array(value, np.float32)
        except (ValueError, TypeError):
            raise ValueError(f"its pixels {brief(value)} are no array of numbers") from None
        if array.ndim == 1 and array.size == self.height * self.width * self.channels:
            array = array.reshape(self.height, self.width, self.channels)
        if array.ndim not in (2, 3):
            raise ValueError(f"its pixels have the shape {list(array.shape)}, not [H, W]")
        return array


# Pictures as arrays [H, W, channels].


def square(values: np.ndarray, channels: int) -> np.ndarray:
    """The picture `[side, side, channels]` of its numbers, pixel by pixel and row by row."""
    side = math.isqrt(values.size // channels)
    if side**2 * channels != values.size:
        raise ValueError(f"its {values.size} numbers are no square picture of {channels} channels")
    return values.reshape(side, side, channels)


def holds_file(value: object) -> bool:
    """Whether a value of a table is the file of a picture, as the library `datasets` keeps it."""
    return isinstance(value, dict) and isinstance(value.get("bytes"), bytes)


def opened_picture(file: Path | io.BytesIO) -> np.ndarray:
    """The pixels of a file, `[H, W]` or `[H, W, 3]` uint8; transparent ones are on white.

    Raises `InputError` for a file that holds no picture."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("pictures need Pillow. Install it with `pip install pillow`.") from None
    try:
        with Image.open(file) as picture:
            if picture.mode in ("L", "1", "I", "I;16", "F"):
                return np.asarray(picture.convert("L"))
            if picture.mode in ("RGBA", "LA", "PA", "P"):
                opaque = Image.new("RGBA", picture.size, "white")
                opaque.alpha_composite(picture.convert("RGBA"))
                return np.asarray(opaque.convert("RGB"))
            return np.asarray(picture.convert("RGB"))
    # Whatever it is: the library promises no type for bytes that are something else.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        name = "it"
        if isinstance(file, Path):
            name = str(file)
        raise InputError(f"{name} cannot be read as a picture: {reason}.") from None


def in_channels(picture: np.ndarray, channels: int) -> np.ndarray:
    """A picture as `[H, W, channels]`, grey or in colour."""
    if picture.ndim == 2:
        picture = picture[..., None]
    have = picture.shape[2]
    if have == 4:  # the last is how opaque a pixel is
        picture, have = picture[..., :3], 3
    if have == channels:
        return picture
    if channels == 1 and have == 3:
        return picture.mean(2, keepdims=True)
    if channels == 3 and have == 1:
        return np.repeat(picture, 3, 2)
    raise InputError(f"a picture of {have} channels cannot be read as one of {channels}.")


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture `[H, W, channels]` in another size."""
    from PIL import Image

    channels = []
    for channel in np.moveaxis(picture.astype(np.float32), 2, 0):
        image = Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR)
        channels.append(np.asarray(image))
    return np.stack(channels, 2)


def centred(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a picture `[H, W, channels]`, with its edge repeated where it is too small."""
    for axis, size in ((0, height), (1, width)):
        surplus = picture.shape[axis] - size
        if surplus > 0:
            start = surplus // 2
            picture = picture.take(range(start, start + size), axis)
        else:
            before = -surplus // 2
            padding = [(0, 0)] * 3
            padding[axis] = before, -surplus - before
            picture = np.pad(picture, padding, mode="edge")
    return picture


# Folders.


def is_picture(file: Path) -> bool:
    """Whether a file's name is that of a picture."""
    return file.is_file() and file.suffix.lower() in SUFFIXES


def parts_of_folder(path: Path) -> list[str]:
    """The parts that a folder, or a file's folder, has pictures or rows for."""
    if not path.is_dir():
        return []
    parts = []
    for entry in folders.entries(path):
        part = folders.split_of(entry.name)
        if entry.is_dir() and part in folders.SPLITS:
            parts.append(part)
    if "train" in parts:
        return parts
    return splits(path)


def picture_files(path: Path, split: str = "") -> Iterator[tuple[Path, str]]:
    """The pictures of a folder, each with the name of its class: the folder that it is in."""
    for entry in folders.entries(path):
        if not entry.is_dir():
            continue
        if split and folders.split_of(entry.name) == split:
            yield from picture_files(entry)
        elif not split:
            for file in sorted(entry.rglob("*")):
                hidden = any(map(folders.is_hidden, file.relative_to(entry).parts))
                if is_picture(file) and not hidden:
                    yield file, entry.name
