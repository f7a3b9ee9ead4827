"""Pathfinder's pictures: what is in them, that the label is right, and that nothing simple gives it
away."""

import numpy as np
import pytest

from dartformer import tasks
from dartformer.errors import InputError
from dartformer.tasks.base import majority
from dartformer.tasks.pathfinder import Pathfinder


def squares(image):
    """Centres of the squares of 3 x 3 white pixels."""
    n = len(image)
    return [
        (r, c)
        for r in range(1, n - 1)
        for c in range(1, n - 1)
        if (image[r - 1 : r + 2, c - 1 : c + 2] == 255).all()
    ]


def reach(image, start, step):
    """White pixels that can be reached from `start` by jumps of at most `step` pixels each way."""
    white = set(zip(*np.nonzero(image), strict=True))
    visited, todo = set(), [start]
    while todo:
        r, c = todo.pop()
        near = {p for p in white if abs(p[0] - r) <= step and abs(p[1] - c) <= step}
        todo += near - visited
        visited |= near
        white -= near
    return visited


def test_the_label_is_whether_a_dashed_path_joins_the_dots():
    task = Pathfinder(size=64, contour_length=6, distractors=2)
    right = []
    for number in range(60):
        image, label = task.picture(number)
        dots = squares(image)
        assert dots
        first, last = (
            dots[0],
            max(dots, key=lambda p: np.hypot(p[0] - dots[0][0], p[1] - dots[0][1])),
        )
        right.append((last in reach(image, first, 2)) == bool(label))
    # Dashes round to pixels, and paths three pixels apart may touch: the eye is right nearly
    # always.
    assert np.mean(right) > 0.9


def test_pictures_are_a_function_of_options_and_number():
    for i in range(5):
        (a, la), (b, lb) = Pathfinder().picture(i), Pathfinder(train=9).picture(i)
        np.testing.assert_array_equal(a, b)
        assert la == lb
    assert any(
        (Pathfinder(seed=1).picture(i)[0] != Pathfinder().picture(i)[0]).any() for i in range(2)
    )
    image, _ = Pathfinder(size=32, contour_length=9, distractors=2).picture(0)
    assert image.shape == (32, 32)
    assert set(np.unique(image)) == {0, 255}


def test_nothing_simple_gives_the_label_away(tmp_path, capsys):
    task = tasks.make("pathfinder", {"train": 300, "valid": 10, "test": 200, "distractors": 2})
    splits = task.load(str(tmp_path))
    assert {k: len(v) for k, v in splits.items()} == {"train": 300, "valid": 10, "test": 200}
    batch = splits["train"].take(np.arange(300))
    assert batch["valid"].all()
    assert 0.4 < batch["label"].mean() < 0.6
    ink = (batch["tokens"] == 256).sum(1)
    assert abs(ink[batch["label"] == 1].mean() - ink[batch["label"] == 0].mean()) < 2
    assert majority(splits["train"], splits["test"]) < 0.65
    assert 0.4 < task.baselines(splits["train"], splits["test"])["dot_distance"] < 0.95
    text = task.decode(batch["tokens"][0].tolist())
    assert task.encode(text) == batch["tokens"][0].tolist()


def test_what_cannot_be():
    for options, message in (
        ({"size": 48}, "must be 32, 64, 128, got 48"),
        ({"contour_length": 1}, "at least 2"),
    ):
        with pytest.raises(InputError, match=message):
            Pathfinder(**options)
    with pytest.raises(
        InputError, match="no place for two paths of 90 dashes and 4 of 30 on 32 x 32 pixels"
    ):
        Pathfinder(contour_length=90).picture(0)
    with pytest.raises(InputError, match="1024 whole numbers from 0 to 255, got 3 words"):
        Pathfinder().encode("1 2 300")
