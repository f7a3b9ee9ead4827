"""A guess at pictures: their size, the patches, and options of the task `pictures`."""

import contextlib
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dartformer.data.records import Record
from dartformer.errors import InputError
from dartformer.tasks.base import parts_of
from dartformer.tasks.columns import label_column, names_of, quoted
from dartformer.tasks.guess_labels import majority_share, of_labels, without_missing_classes
from dartformer.tasks.guess_pixels import PixelColumns, without_span
from dartformer.tasks.guesses import Columns, Guess
from dartformer.tasks.label_counts import LabelCounts, counted, kind_of
from dartformer.tasks.pictures import (
    Pictures,
    holds_file,
    opened_picture,
    parts_of_folder,
    picture_files,
)

LARGEST_SIDE = 64
"""Pixels of the longer side to which larger pictures are made smaller."""

MOST_PATCHES = 64
"""Patches of a picture, at most."""

SEVERAL_PATCHES = 8
"""The shorter side, in pixels, from which on a patch has 2 by 2 pixels or more. One pixel says
little: of the 1,797 digits of 8 by 8 pixels 93% are right with single pixels, and 97% with four."""

SMALLEST_SIDE = 6
"""Pixels of a side from which on an array is a picture."""

MEASURED = 200
"""Pictures that decide the size."""

PIXEL_NAMES = ("images", "image", "x", "x_train", "pixels", "data")
"""Names of columns of pictures, the surest first."""


def is_folder_of_pictures(path: Path) -> bool:
    """Whether a folder holds a folder of pictures for each class."""
    if not path.is_dir():
        return False
    split = ""
    if "train" in parts_of_folder(path):
        split = "train"
    return next(picture_files(path, split), None) is not None


def pixels_column(rows: Sequence[Record]) -> str:
    """The column of arrays that are pictures, or "": [H, W] of whole numbers, or [H, W, channels]."""
    columns = []
    for name in names_of(rows):
        if holds_file(rows[0].get(name)):
            columns.append(name)
            continue
        shape, whole = _shape(rows[0].get(name))
        side = min(shape[:2], default=0)
        colour = len(shape) == 3 and shape[2] in (1, 3, 4)
        grey = len(shape) == 2 and whole and shape[0] * 2 >= shape[1] and shape[1] * 2 >= shape[0]
        if side >= SMALLEST_SIDE and (colour or grey):
            columns.append(name)
    for name in PIXEL_NAMES:
        for column in columns:
            if column.lower() == name:
                return column
    return next(iter(columns), "")


def _shape(value: object) -> tuple[tuple[int, ...], bool]:
    """The shape of a list of lists, and whether it holds whole numbers from 0 on; else ()."""
    if not isinstance(value, list):
        return (), False
    try:
        array = np.array(value, np.float32)
    except (ValueError, TypeError):
        return (), False
    return array.shape, bool((array >= 0).all() and (array == np.rint(array)).all())


def guess_pictures(
    file: str,
    path: Path,
    rows: Sequence[Record],
    column: str,
    named: Columns,
    pixels: PixelColumns | None = None,
) -> Guess:
    """Guess the options for a folder of pictures, or for a file.

    Its `column` holds arrays, or its columns from that one on hold a pixel each."""
    options: dict[str, Any] = {"path": file, "kind": named.kind or "classification"}
    sentences = []
    if named.kind not in ("", "classification", "regression"):
        raise InputError(
            f"--kind={named.kind} does not work with pictures. Use classification, or regression "
            f"of arrays in a file."
        )
    if column:
        options["pixels"] = column
        names = [name for name in names_of(rows) if name != column]
        if pixels is not None:
            options["last_pixel"] = pixels.last
            names = without_span(names_of(rows), pixels.first, pixels.last)
        narrow = [{name: row.get(name) for name in names} for row in rows]
        options["label"] = named.label or label_column(narrow, ())[0]
        sentences.append(f"label column {options['label']!r} (--label names another)")
        ignored = [name for name in names if name != options["label"]]
        if ignored:
            sentences.append(f"not read: {quoted(ignored)}")
    sizes = _add_size(options, rows, path, pixels)
    sentences.insert(0, _size_sentence(options, sizes, column))
    if pixels is not None:
        sentences[0] += "; --kind=series reads the columns as a series"
    task = Pictures(**options)
    labels = _counted(task, path)
    if column and not named.kind:
        options["kind"] = kind_of(labels)
    sentences += of_labels(labels, options, file, named=bool(named.kind))
    return _trial(options, sentences, labels)


def _add_size(
    options: dict[str, Any], rows: Sequence[Record], path: Path, pixels: PixelColumns | None
) -> Counter[tuple[int, int]]:
    """Set size, channels and patches; how often each size occurs in the sample."""
    sizes = Counter[tuple[int, int]]()
    colour = False
    pictures = _sample(options, rows, path)
    if pixels is not None:
        pictures = pixels.pictures(rows[:MEASURED])
    for picture in pictures:
        sizes[picture.shape[0], picture.shape[1]] += 1
        colour = colour or (picture.ndim == 3 and _is_coloured(picture))
    height, width = max(sizes, key=lambda size: sizes[size])
    if len(sizes) > 1:
        height, width = (int(side) for side in np.median(list(sizes.elements()), 0))
    # A smaller picture keeps its form.
    shrink = max(1.0, max(height, width) / LARGEST_SIDE)
    height, width = max(1, round(height / shrink)), max(1, round(width / shrink))
    patch = 1
    if min(height, width) >= SEVERAL_PATCHES:
        patch = 2
    while -(-height // patch) * -(-width // patch) > MOST_PATCHES:
        patch += 1
    # Both sides are whole patches; one pixel more or less is resized away.
    options["height"] = max(1, round(height / patch)) * patch
    options["width"] = max(1, round(width / patch)) * patch
    options["channels"] = 3 if colour else 1
    options["patch"] = patch
    return sizes


def _sample(options: dict[str, Any], rows: Sequence[Record], path: Path) -> Iterator[np.ndarray]:
    """Some of the pictures."""
    if "pixels" in options:
        for row in rows[:MEASURED]:
            value = row[options["pixels"]]
            if holds_file(value):
                yield opened_picture(io.BytesIO(value["bytes"]))
            else:
                yield np.array(value, np.float32)
        return
    split = ""
    if "train" in parts_of_folder(path):
        split = "train"
    files = [file for file, _ in picture_files(path, split)]
    readable = 0
    for file in itertools.islice(files, 0, None, max(1, len(files) // MEASURED)):
        # A damaged one is refused, or dropped, when all are read.
        with contextlib.suppress(InputError):
            yield opened_picture(file)
            readable += 1
    if not readable:
        opened_picture(files[0])  # raises: it says why


def _is_coloured(picture: np.ndarray) -> bool:
    """Whether a pixel of `[H, W, channels]` has different values of red, green and blue."""
    if picture.shape[2] < 3:
        return False
    colours = picture[..., :3]
    return bool((colours != colours[..., :1]).any())


def _size_sentence(options: Mapping[str, Any], sizes: Counter[tuple[int, int]], column: str) -> str:
    """What was seen of the sizes, and what is made of them."""
    colour = "in colour"
    if options["channels"] == 1:
        colour = "in grey"
    patches = options["height"] * options["width"] // options["patch"] ** 2
    source = "pictures in a folder for each class"
    if column:
        source = f"pictures in the column {column!r}"
    if "last_pixel" in options:
        source = f"a pixel in each of the columns {column!r} to {options['last_pixel']!r}, pictures"
    size = f"{options['height']} x {options['width']}"
    smallest, largest = min(sizes), max(sizes)
    if len(sizes) == 1 and largest == (options["height"], options["width"]):
        action = f"of {size} pixels"
    else:
        action = (
            f"of {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} pixels, resized to "
            f"{size} (task.fit = 'crop' crops and pads them)"
        )
    return (
        f"{source}, {colour}, {action}; a token is a patch of {options['patch']} x "
        f"{options['patch']} pixels, {patches} of them in a picture"
    )


def _counted(task: Pictures, path: Path) -> LabelCounts:
    """The labels of every picture of every split, without reading the pictures."""

    def records(part: str) -> Iterator[Record]:
        if task.pixels:
            for row in task.sources(None)[part].rows():
                yield {task.label: row.label}
            return
        split = part
        if not parts_of_folder(path):
            split = ""
        for _, name in picture_files(path, split):
            yield {task.label: name}

    rows = {part: partial(records, part) for part in task.sources(None)}
    return counted(rows, "", task.label, "", path.name)


def _trial(options: dict[str, Any], sentences: list[str], labels: LabelCounts) -> Guess:
    """Prepare the data as a run would."""

    def attempt() -> Mapping[str, Any]:
        # The preparation prints its counts, which a run will print again.
        with contextlib.redirect_stderr(io.StringIO()):
            return parts_of(Pictures(**options).load())

    parts = without_missing_classes(options, sentences, labels, attempt)
    missing = [part for part in ("valid", "test") if part not in Pictures(**options).sources(None)]
    if missing:
        sentences.append(
            f"no split {' and no split '.join(missing)}: a tenth of the rows each, drawn with seed 0"
        )
    half = min(len(parts["weights"]), len(parts["alphas"]))
    majority = majority_share(labels, options)
    return Guess(options, len(parts["train"]), sentences, half, "pictures", majority)
