"""Grey CIFAR-10 as a sequence of 1,024 pixels, as in Long Range Arena, or of patches.

Long Range Arena takes pixel values as token ids and 0 as padding, so that it masks black pixels.
Here the id of a pixel is its value plus one, and every pixel is valid."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dartformer.data.compressed import members, opened, suffix
from dartformer.data.locations import located
from dartformer.data.records import read
from dartformer.data.rows import Rules, digest, without_leaks
from dartformer.data.splits import Batch, Split, in_order, permutation
from dartformer.errors import InputError
from dartformer.machine.progress import say
from dartformer.tasks import rules
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.requirements import require_fraction, require_ids, require_seed

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ROWS = {"train": 50_000, "test": 10_000}
BATCHES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
SIDE = 32
PIXELS = SIDE**2
RECORD = 1 + 3 * PIXELS
"""Bytes of an image in CIFAR-10's own files: its label, then all of red, of green and of blue."""

GREY_CHUNK = 5000
"""Images that are converted at once: as float32 they weigh four times as much."""

GREY = np.array([0.2989, 0.587, 0.114], np.float32)
"""Shares of red, green and blue, those of Long Range Arena's conversion."""


class Pixels:
    """Images `[S, 32, 32]` uint8 in memory, as tokens: pixels or patches.

    Pixels are ids `[B, 1024]`, patches `[B, N, P * P]` numbers."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, patch: int):
        self.images = images
        self.labels = labels
        self.patch = patch

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> Batch:
        """Images `indices` [B] as a `Batch`."""
        tokens = tokens_of(self.images[indices], self.patch)
        return {
            "tokens": tokens,
            "valid": np.ones(tokens.shape[:2], bool),
            "label": self.labels[indices].astype(np.int32),
        }


def tokens_of(images: np.ndarray, patch: int) -> np.ndarray:
    """Tokens of images `[B, 32, 32]` uint8.

    Ids `[B, 1024]` int32, value + 1; or, of a `patch` above 0, patches `[B, N, P * P]` float32 of
    about -2 to 2."""
    if not patch:
        return images.reshape(len(images), -1).astype(np.int32) + 1
    n = SIDE // patch
    grid = images.reshape(-1, n, patch, n, patch).swapaxes(2, 3)  # [B, n, n, patch, patch]
    patches = grid.reshape(-1, n * n, patch * patch)
    # The middle of the values becomes 0; they spread about as far as a normal distribution.
    return (patches.astype(np.float32) - 127.5) / 64


@dataclass(frozen=True, kw_only=True)
class Image:
    """Grey pictures of 32 x 32 pixels in ten classes.

    Attributes:
      path: a folder, or a tar archive (which is read, never unpacked), with CIFAR-10's own binary
        batches, or a folder with `train_gray.npy`, `train_labels.npy`, `test_gray.npy`,
        `test_labels.npy` (`[S, 32, 32]` and `[S]` uint8, compressed or not). Empty for TFDS's
        `cifar10`, read where it is prepared.
      patch: 0 for a token per pixel, or the side of square patches of `patch`^2 numbers each.
      rows: refuse a set without all 50,000 and 10,000 pictures; False for parts of the data.
      on_duplicate: pictures that occur in two splits, pixel by pixel: "drop", "keep" or "error".
      valid_fraction: share of train that becomes the valid split.
      seed: of the pictures that become valid.
    """

    path: str = ""
    patch: int = 0
    rows: bool = True
    on_duplicate: str = "drop"
    valid_fraction: float = 0.1
    seed: int = 0

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Classify grey images of 32 x 32 pixels (CIFAR-10)",
        paper="Krizhevsky 2009; as a sequence Tay et al. 2020, 2011.04006; patches Dosovitskiy et "
        "al. 2020, 2010.11929",
    )

    def __post_init__(self) -> None:
        Rules(duplicate=self.on_duplicate)  # raises for an unknown rule
        if self.patch < 0 or (self.patch and SIDE % self.patch):
            raise InputError(f"task.patch must be 0 or divide {SIDE}, got {self.patch}.")
        require_seed(self)
        require_fraction(self, "valid_fraction")

    @property
    def vocabulary(self) -> int:
        """256 values, and padding."""
        return 257

    @property
    def features(self) -> int:
        """Numbers of a patch; 0 for pixels."""
        return self.patch**2

    @property
    def length(self) -> int:
        """Pixels, or patches."""
        return PIXELS // max(1, self.patch) ** 2

    @property
    def labels(self) -> tuple[str, ...]:
        """Airplane to truck."""
        return LABELS

    @property
    def classes(self) -> int:
        """Ten."""
        return len(LABELS)

    def encode(self, text: str) -> Any:
        """Tokens of an image given as its 1,024 values, 0 to 255, row by row.

        Raises `InputError` for anything else."""
        try:
            words = text.replace(",", " ").split()
            values = np.array(list(map(int, words)))
        except ValueError as error:
            raise InputError(f"an image is {PIXELS} whole numbers: {error}.") from None
        if values.size != PIXELS or values.min() < 0 or values.max() > 255:
            raise InputError(
                f"an image is {PIXELS} whole numbers from 0 to 255, got {values.size}."
            )
        image = values.reshape(1, SIDE, SIDE).astype(np.uint8)
        return tokens_of(image, self.patch)[0].tolist()

    def decode(self, ids: Sequence[int]) -> str:
        """The values of pixels, without padding; `InputError` for an id beyond the vocabulary."""
        require_ids(ids, self.vocabulary)
        return " ".join(str(i - 1) for i in ids if i)

    def check(self, data_dir: str | None = None) -> None:
        """Raise `InputError` where the data are missing, or test is incomplete."""
        self._read("test", data_dir)

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test"; `InputError` says which files are missing."""
        images = {}
        labels = {}
        digests = {}
        for part in ROWS:
            images[part], labels[part] = self._read(part, data_dir)
            digests[part] = _digests(images[part])
        # The valid split is part of the train file.
        order = permutation(len(images["train"]), self.seed)
        count = max(1, round(self.valid_fraction * len(order)))
        rows = {
            "train": ("train", np.sort(order[count:])),
            "valid": ("train", np.sort(order[:count])),
            "test": ("test", np.arange(len(images["test"]))),
        }
        by_part = {}
        for part, (file, row) in rows.items():
            by_part[part] = digests[file][row]
        keep, leaked = without_leaks(by_part, self.on_duplicate)
        self._report(leaked)
        splits = {}
        for part, (file, row) in rows.items():
            kept = row[keep[part]]
            splits[part] = Pixels(images[file][kept], labels[file][kept], self.patch)
        return splits

    def _report(self, leaked: Mapping[str, int]) -> None:
        """Print a line for each split with images that a later split has too."""
        action = "kept"
        if self.on_duplicate == "drop":
            action = "dropped"
        for part, count in leaked.items():
            if count:
                line = f"CIFAR-10 {part}: {count:,} images also in a later split, {action}"
                say(line)

    def _read(self, part: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Images `[S, 32, 32]` uint8 and labels `[S]` of the train or the test file."""
        path = self._place(data_dir)
        if path.is_dir() and _array(path, f"{part}_gray") is not None:
            images, labels = _npy(path, f"{part}_gray"), _npy(path, f"{part}_labels")
        elif (path / "dataset_info.json").is_file():
            images, labels = _tfds(path, part)
        else:
            images, labels = _binary(path, part)
        shapes_match = images.shape[1:] == (SIDE, SIDE) and labels.shape == images.shape[:1]
        if not shapes_match or images.dtype != np.uint8:
            raise InputError(
                f"{part} in {path}: images [S, {SIDE}, {SIDE}] uint8 and labels [S] are needed, "
                f"got {images.shape} {images.dtype} and {labels.shape}."
            )
        if self.rows and len(images) != ROWS[part]:
            raise InputError(
                f"{part} in {path} has {len(images):,} images; it should have {ROWS[part]:,} "
                f"(task.rows)."
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(LABELS):
            raise InputError(
                f"{part} in {path} has labels from {labels.min()} to {labels.max()}; they must be "
                f"0 to 9."
            )
        return images, labels

    def _place(self, data_dir: str | None) -> Path:
        try:
            return located(self.path or "tfds:cifar10", data_dir)
        except InputError as error:
            if self.path:
                raise
            raise InputError(
                f"no CIFAR-10: task.path is empty, and {str(error).rstrip('.')}. Set task.path to "
                f"cifar-10-binary.tar.gz, to its folder, or to a folder with train_gray.npy."
            ) from None

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`nearest_mean`: the class whose mean image, of `train`, is nearest."""
        total = np.zeros((self.classes, self.length * max(1, self.features)))
        count = np.zeros(self.classes)
        for batch in in_order(train):
            one_hot = np.eye(self.classes)[batch["label"]]
            total += one_hot.T @ batch["tokens"].reshape(len(one_hot), -1)
            count += one_hot.sum(0)
        means = total / np.maximum(count, 1)[:, None]
        squares = (means**2).sum(1)  # [classes]
        right = 0
        for batch in in_order(split):
            flat = batch["tokens"].reshape(len(batch["label"]), -1)
            # |x - m|^2 without |x|^2, which all classes share, and with its sign changed.
            nearness = 2 * flat @ means.T - squares
            nearness[:, count == 0] = -np.inf  # a class without a picture has no mean
            right += int((nearness.argmax(1) == batch["label"]).sum())
        return {"nearest_mean": right / len(split)}

    def plain_rules(self, train: Split, valid: Split, merit: rules.Merit) -> Sequence[rules.Rule]:
        """A linear model and boosted trees on the pixels."""
        return rules.of_numbers(train, valid, self.classes, merit)


def _digests(images: np.ndarray) -> np.ndarray:
    """`[S]` uint64 that stand for images."""
    return np.array([digest(image.tobytes()) for image in images], np.uint64)


def _array(folder: Path, name: str) -> Path | None:
    """The file `name`.npy of a folder, compressed or not."""
    for file in sorted(folder.glob(f"{name}.npy*")):
        if suffix(file) == ".npy":
            return file
    return None


def _npy(folder: Path, name: str) -> np.ndarray:
    file = _array(folder, name)
    if file is None:
        raise InputError(f"there is no {name}.npy in {folder}.")
    with opened(file) as data:
        try:
            return np.load(io.BytesIO(data.read()), allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{file} cannot be read as npy: {error}.") from None


def _binary(path: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of CIFAR-10's own batches."""
    contents = {}
    for name, data in _contents(path, BATCHES[part]):
        if len(data) % RECORD:
            raise InputError(
                f"{name} in {path} has {len(data):,} bytes, which is not a multiple of {RECORD:,}."
            )
        contents[name] = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    # In the order of their names, not of the archive: `seed` draws rows by their position.
    batches = []
    missing = []
    for name in BATCHES[part]:
        if name in contents:
            batches.append(contents[name])
        else:
            missing.append(name)
    if missing:
        raise InputError(
            f"no CIFAR-10 {part} in {path}: looked for {part}_gray.npy, for {', '.join(missing)}, "
            f"and for a TFDS folder."
        )
    rows = np.concatenate(batches)  # [S, 1 + 3 * 32 * 32], the label first
    # A record holds all red values, then green, then blue.
    images = rows[:, 1:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)  # [S, 32, 32, 3]
    return grey(images), rows[:, 0].copy()


def _contents(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Those of the files `names` that a folder or an archive holds."""
    if path.is_dir():
        for name in names:
            if (path / name).is_file():
                yield name, (path / name).read_bytes()
        return
    for member, data in members(path):
        name = member.rpartition("/")[2]
        if name in names:
            yield name, data.read()


def _tfds(path: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    from PIL import Image as Picture

    images = []
    labels = []
    for row in read(path, part):
        # The reader returns bytes as text, with surrogates for what is not UTF-8.
        png = row["image"].encode("utf-8", "surrogateescape")
        with Picture.open(io.BytesIO(png)) as picture:
            images.append(grey(np.asarray(picture.convert("RGB"))))
        label = row["label"]
        if isinstance(label, str):
            label = LABELS.index(label)
        labels.append(label)
    return np.array(images), np.array(labels)


def grey(images: np.ndarray) -> np.ndarray:
    """`[..., 3]` to `[...]`, both uint8."""
    chunks = []
    for chunk in np.array_split(images, max(1, len(images) // GREY_CHUNK)):
        chunks.append(np.rint(chunk @ GREY).astype(np.uint8))
    return np.concatenate(chunks)
