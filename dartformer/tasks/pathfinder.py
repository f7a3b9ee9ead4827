"""Pathfinder: are two dots joined by a dashed path, among others that lead nowhere? Generated here.

Linsley et al. 2018 (1805.08315) made it for vision, and it was put into Long Range Arena (Tay et
al. 2020, 2011.04006) as a sequence of 1,024 pixels and more. Theirs is a download of 8 GB; this one
is drawn from a seed, after the same recipe: two long contours, short distractors, and a dot at both
ends of one contour, or at an end of each."""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from dartformer.data.prepare import Example, Notes, prepared
from dartformer.data.sources import from_source
from dartformer.data.splits import Split, in_order
from dartformer.errors import InputError
from dartformer.tasks import generated, simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.requirements import require_at_least, require_ids, require_seed

SPACING = {32: (1.0, 1.8, 2.3), 64: (2.0, 2.0, 3.0), 128: (3.0, 2.0, 4.0)}
"""Pixels by size: of a dash, between two of them, and between two paths."""

BEND = 0.35
"""Standard deviation of the turn between two dashes, in radians."""

PATIENCE = 100
"""Failed attempts at a path after which a picture is started again."""

PICTURES = 1000
"""Failed attempts at a picture after which the options are refused."""

EDGE = 1.5
"""Pixels between the edge of a picture and the nearest dash."""

Point = tuple[float, float]

Path = list[tuple[Point, Point]]
"""Start and end of each dash."""


@dataclass(frozen=True, kw_only=True)
class Pathfinder:
    """Pictures of `size` x `size` pixels: are the dots at the two ends of one contour?

    Raises `InputError` where so much does not fit the picture.

    Attributes:
      size: side of a picture in pixels.
      contour_length: dashes of each of the two contours (published: 6 is easy, 9 harder, 14 "hard").
      distractors: further contours, of a third of that length.
      train: number of training pictures.
      valid: number of validation pictures.
      test: number of test pictures.
      seed: of the pictures.
    """

    size: int = 32
    contour_length: int = 6
    distractors: int = 4
    train: int = 20_000
    valid: int = 1_000
    test: int = 2_000
    seed: int = 0

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Decide whether a dashed path joins two dots (pixels of a generated picture)",
        paper="Linsley et al. 2018, 1805.08315; as a sequence Tay et al. 2020, 2011.04006",
        generated=True,
    )

    def __post_init__(self) -> None:
        if self.size not in SPACING:
            sizes = ", ".join(map(str, SPACING))
            raise InputError(f"task.size must be {sizes}, got {self.size}.")
        require_at_least(self, contour_length=2, distractors=0, train=1, valid=1, test=1)
        require_seed(self)

    @property
    def vocabulary(self) -> int:
        """256 values, and padding."""
        return 257

    @property
    def length(self) -> int:
        """Pixels."""
        return self.size**2

    @property
    def labels(self) -> tuple[str, ...]:
        """Apart or joined."""
        return ("apart", "joined")

    @property
    def classes(self) -> int:
        """Two."""
        return 2

    def encode(self, text: str) -> list[int]:
        """Tokens of a picture given as its values, 0 to 255, row by row.

        Raises `InputError` for anything else."""
        words = text.replace(",", " ").split()
        if len(words) != self.length or not all(map(_is_pixel, words)):
            raise InputError(
                f"a picture is {self.length} whole numbers from 0 to 255, got {len(words)} words."
            )
        return [int(word) + 1 for word in words]

    def decode(self, ids: Sequence[int]) -> str:
        """The values of pixels, without padding; `InputError` for an id beyond the vocabulary."""
        require_ids(ids, self.vocabulary)
        return " ".join(str(i - 1) for i in ids if i)

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", drawn on first use and kept under `data_dir`."""
        from tensorflow_datasets import features as kinds

        data = prepared(
            "dartformer_pathfinder",
            sorted(asdict(self).items()),
            f"Pathfinder pictures: {self}.",
            {
                "tokens": kinds.Tensor(shape=(self.length,), dtype=np.uint16),
                "label": kinds.ClassLabel(names=self.labels),
            },
            self._examples,
            data_dir,
            title="pathfinder",
            totals={"test": self.test, "valid": self.valid, "train": self.train},
            label=f"size{self.size}-length{self.contour_length}-distractors{self.distractors}-"
            f"seed{self.seed}",
        )
        splits = {}
        for name, source in data.splits.items():
            splits[name] = from_source(source, self.length, self.vocabulary)
        return splits

    def _examples(self, notes: Notes) -> dict[str, Iterator[Example]]:
        numbers = generated.numbers(self.test, self.valid, self.train)
        examples = {}
        for name, part in numbers.items():
            examples[name] = self._pictures(part)
        return examples

    def _pictures(self, numbers: Iterable[int]) -> Iterator[Example]:
        for number in numbers:
            image, label = self.picture(number)
            yield {"tokens": image.reshape(-1).astype(np.uint16) + 1, "label": label}

    def picture(self, number: int) -> tuple[np.ndarray, int]:
        """Picture `number`, `[size, size]` uint8, and its label.

        Both are a function of the options and the number alone."""
        # Python promises that this stream never changes between versions; it promises it of no
        # other method.
        uniform = random.Random((self.seed << 40) + number).random
        contours = self._contours(uniform)
        image = np.zeros((self.size, self.size), np.uint8)
        for contour in contours:
            for start, end in contour:
                draw(image, start, end)
        # Drawn after the contours, so that a picture does not depend on its label.
        joined = uniform() < 0.5
        dots = _ends(contours[0])
        if not joined:
            dots = _equally_far(dots, _ends(contours[1]))
        for x, y in dots:
            row = self._inside(y)
            column = self._inside(x)
            # Squares of 3 x 3, which no dash makes: dashes are one pixel wide.
            image[row - 1 : row + 2, column - 1 : column + 2] = 255
        return image, int(joined)

    def _inside(self, value: float) -> int:
        """The nearest pixel that has a neighbour on both sides."""
        return min(max(round(value), 1), self.size - 2)

    def _contours(self, uniform: Callable[[], float]) -> list[Path]:
        """The two contours and the distractors; `InputError` where they do not fit."""
        long, short = self.contour_length, max(2, self.contour_length // 3)
        lengths = [long, long] + [short] * self.distractors
        for _ in range(PICTURES):
            contours = self._attempt(uniform, lengths)
            if contours is not None:
                return contours
        raise InputError(
            f"no place for two paths of {long} dashes and {self.distractors} of {short} on "
            f"{self.size} x {self.size} pixels. Use a shorter contour_length or fewer distractors."
        )

    def _attempt(self, uniform: Callable[[], float], lengths: Iterable[int]) -> list[Path] | None:
        """A path of each of the `lengths`, or None where no place was found for one of them."""
        occupied: list[Point] = []
        contours = []
        for dashes in lengths:
            contour = path(uniform, self.size, dashes, occupied)
            if contour is None:
                return None
            contours.append(contour)
        return contours

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`dot_distance`: joined where the dots are nearer (or farther) than a threshold.

        The threshold is fitted on `train`."""
        # right[i]: correct answers where all from value i on are called joined.
        values, right = simple.right_from(*self._distances(train))
        best, worst = int(right.argmax()), int(right.argmin())
        # The worst threshold, with answers reversed, may be better than the best.
        reverse = bool(right[best] < len(train) - right[worst])
        position = best
        if reverse:
            position = worst
        threshold = np.inf
        if position < len(values):
            threshold = values[position]
        values, labels = self._distances(split)
        joined = (values >= threshold) != reverse
        return {"dot_distance": float((joined == labels).mean())}

    def _distances(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Distance of the two dots of each picture, and its label.

        The dots are the first and the last square of 3 x 3 white pixels."""
        distances = []
        labels = []
        for batch in in_order(split):
            # 255, white, plus 1: id 0 is padding.
            white = batch["tokens"].reshape(-1, self.size, self.size) == 256
            windows = np.lib.stride_tricks.sliding_window_view(white, (3, 3), (1, 2))
            square = windows.all((-1, -2))  # [B, size - 2, size - 2]
            flat = square.reshape(len(white), -1)
            first = flat.argmax(1)
            last = flat.shape[1] - 1 - flat[:, ::-1].argmax(1)
            row, column = np.divmod(np.stack([first, last]), square.shape[2])
            distances.append(np.hypot(row[1] - row[0], column[1] - column[0]))
            labels.append(batch["label"])
        return np.concatenate(distances), np.concatenate(labels)


def _is_pixel(word: str) -> bool:
    return word.isdecimal() and int(word) <= 255


def _ends(contour: Path) -> tuple[Point, Point]:
    """Where a path starts and ends."""
    return contour[0][0], contour[-1][1]


def _equally_far(first: tuple[Point, Point], second: tuple[Point, Point]) -> tuple[Point, Point]:
    """An end of each path, about as far apart as the ends of the first.

    Otherwise the distance of the dots would give the label away."""
    distance = math.dist(*first)
    pairs = itertools.product(first, second)
    return min(pairs, key=lambda pair: abs(math.dist(*pair) - distance))


def path(
    uniform: Callable[[], float], size: int, dashes: int, occupied: list[Point]
) -> Path | None:
    """Start and end of each dash of a new path, or None where no place is found.

    It keeps away from the `occupied` points and adds its own."""
    for _ in range(PATIENCE):
        drawn = _try_path(uniform, size, dashes, occupied)
        if drawn is not None:
            for start, end in drawn:
                occupied += [start, end]
            return drawn
    return None


def _try_path(
    uniform: Callable[[], float], size: int, dashes: int, occupied: list[Point]
) -> Path | None:
    """A path from a random point, or None where it leaves the picture or comes near a point."""
    dash, gap, apart = SPACING[size]
    x = 2 + uniform() * (size - 5)
    y = 2 + uniform() * (size - 5)
    heading = uniform() * 2 * math.pi
    drawn: Path = []
    points: list[Point] = []
    for _ in range(dashes):
        start = (x, y)
        end = (x + dash * math.cos(heading), y + dash * math.sin(heading))
        if min(end) < EDGE or max(end) > size - 1 - EDGE:
            return None
        # The last two dashes of the path itself are near by nature.
        neighbours = occupied + points[:-4]
        if _is_near(start, neighbours, apart) or _is_near(end, neighbours, apart):
            return None
        drawn.append((start, end))
        points += [start, end]
        # A normal number of two uniform ones (Box and Muller 1958).
        radius = math.sqrt(-2 * math.log(1 - uniform()))
        heading += BEND * radius * math.cos(2 * math.pi * uniform())
        x = end[0] + gap * math.cos(heading)
        y = end[1] + gap * math.sin(heading)
    return drawn


def _is_near(point: Point, points: list[Point], distance: float) -> bool:
    """Whether a point is nearer than `distance` to one of `points`."""
    px, py = point
    return any(math.hypot(x - px, y - py) < distance for x, y in points)


def draw(image: np.ndarray, start: Point, end: Point) -> None:
    """A white line of one pixel's width."""
    # Nine points: even the longest dash, of 3 pixels, has no gap.
    for i in range(9):
        x = start[0] + (end[0] - start[0]) * i / 8
        y = start[1] + (end[1] - start[1]) * i / 8
        image[round(y), round(x)] = 255
