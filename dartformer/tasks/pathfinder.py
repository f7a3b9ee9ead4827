"""Pathfinder: are two dots joined by a dashed path, among others that lead nowhere? Generated here.

Linsley et al. 2018 (1805.08315) made it for vision, and it was put into Long Range Arena (Tay et
al. 2020, 2011.04006) as a sequence of 1,024 pixels and more. Theirs is a download of 8 GB; this one
is drawn from a seed, after the same recipe: two long contours, short distractors, and a dot at both
ends of one contour, or at an end of each."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from dartformer.data.prepare import Notes, prepared
from dartformer.data.sources import from_source
from dartformer.data.splits import Split, in_order
from dartformer.errors import InputError
from dartformer.tasks.base import TaskTraits

SPACING = {32: (1.0, 1.8, 2.3), 64: (2.0, 2.0, 3.0), 128: (3.0, 2.0, 4.0)}
"""Pixels by size: of a dash, between two of them, and between two paths."""

BEND = 0.35
"""Standard deviation of the turn between two dashes, in radians."""

PATIENCE, PICTURES = 100, 1000
"""Failed attempts at a path after which a picture is begun anew, and pictures after which there is
taken to be none."""

Point = tuple[float, float]
Path = list[tuple[Point, Point]]


@dataclass(frozen=True, kw_only=True)
class Pathfinder:
    """Pictures of `size` x `size` pixels; the label is whether the dots stand at the two ends of
    one contour.

    Two contours of `contour_length` dashes (published: 6 is easy, 9 is harder, 14 is "hard"), and
    `distractors` of a third of that. `train`, `valid` and `test` say how many pictures, `seed`
    which. Raises `InputError` where so much does not fit the picture."""

    size: int = 32
    contour_length: int = 6
    distractors: int = 4
    train: int = 20_000
    valid: int = 1_000
    test: int = 2_000
    seed: int = 0

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="are two dots joined by a dashed path? (pixels of a generated picture)",
        paper="Linsley et al. 2018, 1805.08315; as a sequence Tay et al. 2020, 2011.04006",
    )

    def __post_init__(self) -> None:
        if self.size not in SPACING:
            raise InputError(
                f"task.size of pathfinder must be {', '.join(map(str, SPACING))}, got {self.size}."
            )
        for name, least in {
            "contour_length": 2,
            "distractors": 0,
            "train": 1,
            "valid": 1,
            "test": 1,
            "seed": 0,
        }.items():
            if getattr(self, name) < least:
                raise InputError(
                    f"task.{name} of pathfinder must be at least {least}, got {getattr(self, name)}."
                )

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
        """Tokens of a picture given as its values, 0 to 255, row by row; `InputError` for anything
        else."""
        found = text.replace(",", " ").split()
        if len(found) != self.length or any(not one.isdecimal() or int(one) > 255 for one in found):
            raise InputError(
                f"a picture is {self.length} whole numbers from 0 to 255, got {len(found)} words."
            )
        return [int(one) + 1 for one in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The values of pixels, padding left out; `InputError` for an id beyond the vocabulary."""
        for i in ids:
            if not 0 <= i < self.vocabulary:
                raise InputError(f"token id {i} is not between 0 and {self.vocabulary - 1}.")
        return " ".join(str(i - 1) for i in ids if i)

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", drawn on first use and kept under `data_dir`."""
        found = prepared(
            "dartformer_pathfinder",
            sorted(asdict(self).items()),
            f"Pathfinder pictures: {self}.",
            {
                "tokens": tfds.features.Tensor(shape=(self.length,), dtype=np.uint16),
                "label": tfds.features.ClassLabel(names=self.labels),
            },
            self._examples,
            data_dir,
            title="pathfinder",
            totals={name: getattr(self, name) for name in ("test", "valid", "train")},
            label=f"size{self.size}-length{self.contour_length}-distractors{self.distractors}-seed{self.seed}",
        )
        return {
            name: from_source(source, self.length, self.vocabulary)
            for name, source in found.splits.items()
        }

    def _examples(self, notes: Notes) -> dict[str, Iterator[dict[str, Any]]]:
        # Test first: asking for more pictures to train on leaves valid and test as they were.
        cut = {
            "test": (0, self.test),
            "valid": (self.test, self.valid),
            "train": (self.test + self.valid, self.train),
        }

        def part(first: int, count: int) -> Iterator[dict[str, Any]]:
            for number in range(first, first + count):
                image, label = self.picture(number)
                yield {"tokens": image.reshape(-1).astype(np.uint16) + 1, "label": label}

        return {name: part(*at) for name, at in cut.items()}

    def picture(self, number: int) -> tuple[np.ndarray, int]:
        """Picture `number`, `[size, size]` uint8, and its label; a function of the options and the
        number alone."""
        # Python promises that this stream never changes between versions; it promises it of no
        # other method.
        uniform = random.Random((self.seed << 40) + number).random
        contours = self._contours(uniform)
        image = np.zeros((self.size, self.size), np.uint8)
        for one in contours:
            for start, end in one:
                draw(image, start, end)
        joined = uniform() < 0.5
        ends = [(one[0][0], one[-1][1]) for one in contours[:2]]
        # Of the ends that are not joined the two that lie about as far apart as those that are, or
        # distance would tell.
        distance = math.dist(*ends[0])
        dots = (
            ends[0]
            if joined
            else min(
                ((a, b) for a in ends[0] for b in ends[1]),
                key=lambda pair: abs(math.dist(*pair) - distance),
            )
        )
        for x, y in dots:
            row, column = (min(max(round(v), 1), self.size - 2) for v in (y, x))
            image[row - 1 : row + 2, column - 1 : column + 2] = 255
        return image, int(joined)

    def _contours(self, uniform: Callable[[], float]) -> list[Path]:
        """The two contours and the distractors; `InputError` where they do not fit."""
        short = max(2, self.contour_length // 3)
        for _ in range(PICTURES):
            taken: list[Point] = []
            contours: list[Path] = []
            for n in (self.contour_length, self.contour_length, *[short] * self.distractors):
                one = path(uniform, self.size, n, taken)
                if one is None:
                    break
                contours.append(one)
            else:
                return contours
        raise InputError(
            f"no place for two paths of {self.contour_length} dashes and {self.distractors} of {short} on "
            f"{self.size} x {self.size} pixels: ask for a shorter contour_length or fewer distractors."
        )

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`dot_distance`: joined where the dots are nearer (or farther) than a threshold, fitted on
        `train`."""
        values, labels = self._distances(train)
        order = np.argsort(values, kind="stable")
        above = np.concatenate([[0], np.cumsum(labels[order] == 0)]) + np.concatenate(
            [np.cumsum((labels[order] == 1)[::-1])[::-1], [0]]
        )  # right where all from position i on are called joined
        best, worst = int(above.argmax()), int(above.argmin())
        flip = above[best] < len(labels) - above[worst]
        at = worst if flip else best
        threshold = values[order[at]] if at < len(order) else np.inf
        values, labels = self._distances(split)
        return {"dot_distance": float((((values >= threshold) != flip) == labels).mean())}

    def _distances(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Distance between the first and the last square of 3 x 3 white pixels of each picture, and
        its label."""
        distances, labels = [], []
        for batch in in_order(split):
            white = batch["tokens"].reshape(-1, self.size, self.size) == 256
            square = np.lib.stride_tricks.sliding_window_view(white, (3, 3), (1, 2)).all((-1, -2))
            flat = square.reshape(len(white), -1)
            ends = np.stack([flat.argmax(1), flat.shape[1] - 1 - flat[:, ::-1].argmax(1)])
            row, column = np.divmod(ends, square.shape[2])
            distances.append(np.hypot(row[1] - row[0], column[1] - column[0]))
            labels.append(batch["label"])
        return np.concatenate(distances), np.concatenate(labels)


def path(uniform: Callable[[], float], size: int, dashes: int, taken: list[Point]) -> Path | None:
    """Start and end of each dash of a new path, which keeps away from the points of `taken` and
    adds its own.

    None where no place is found.
    """
    dash, gap, apart = SPACING[size]
    for _ in range(PATIENCE):
        x, y, heading = (
            2 + uniform() * (size - 5),
            2 + uniform() * (size - 5),
            uniform() * 2 * math.pi,
        )
        found: Path = []
        points: list[Point] = []
        for _dash in range(dashes):
            end = (x + dash * math.cos(heading), y + dash * math.sin(heading))
            own = points[:-4]  # the last two dashes are near by nature
            if not all(1.5 <= v <= size - 2.5 for v in end) or any(
                math.hypot(a - p, b - q) < apart
                for p, q in ((x, y), end)
                for a, b in (*taken, *own)
            ):
                break
            found.append(((x, y), end))
            points += [(x, y), end]
            # A normal number of two uniform ones (Box and Muller 1958).
            turn = (
                BEND * math.sqrt(-2 * math.log(1 - uniform())) * math.cos(2 * math.pi * uniform())
            )
            heading += turn
            x, y = end[0] + gap * math.cos(heading), end[1] + gap * math.sin(heading)
        if len(found) == dashes:
            taken += points
            return found
    return None


def draw(image: np.ndarray, start: Point, end: Point) -> None:
    """A white line of one pixel's width."""
    for i in range(9):
        x, y = (a + (b - a) * i / 8 for a, b in zip(start, end, strict=True))
        image[round(y), round(x)] = 255
