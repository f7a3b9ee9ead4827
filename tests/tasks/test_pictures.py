"""Pictures in a folder for each class or as arrays: sizes, colours, patches, faults."""

import json

import numpy as np
import pytest
from PIL import Image
from tasks.test_files import SMALL

from dartformer import tasks
from dartformer.cli.main import main
from dartformer.errors import InputError
from dartformer.tasks.guess import guess


def drawn(count, side=8, colour=False):
    """Pictures `[side, side]` or `[side, side, 3]` uint8: of two classes, bright left or right."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 100, (count, side, side), np.uint8)
    for i, picture in enumerate(pictures):
        half = slice(0, side // 2) if i % 2 else slice(side // 2, side)
        picture[:, half] += 150
    if not colour:
        return pictures
    return np.stack([pictures, pictures // 2, rng.integers(0, 255, pictures.shape, np.uint8)], -1)


def class_folders(folder, pictures, suffix=".png"):
    for i, picture in enumerate(pictures):
        place = folder / "pictures" / ("left" if i % 2 else "right")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i:03}{suffix}")
    return folder / "pictures"


def contents(guessed):
    """The pixels of all splits, as in the data, and their labels, in one order."""
    task = tasks.make(guessed.task, guessed.options)
    scale = task.fitted().scale
    rows = []
    for split in task.load().values():
        batch = split.take(np.arange(len(split)))
        pixels = batch["tokens"].reshape(len(split), -1, task.channels)
        pixels = np.rint(pixels * scale.deviation + scale.mean)
        for picture, label in zip(pixels, batch["label"], strict=True):
            rows.append((picture.astype(int).tolist(), task.labels[label]))
    return sorted(rows)


@pytest.mark.parametrize("colour", [False, True])
def test_files_and_arrays_hold_the_same_pictures(colour, tmp_path):
    pictures = drawn(40, colour=colour)
    of_files = guess(str(class_folders(tmp_path, pictures)))
    labels = ["left" if i % 2 else "right" for i in range(40)]
    np.savez(tmp_path / "a.npz", images=pictures, label=labels, number=np.arange(40))
    of_arrays = guess(str(tmp_path / "a.npz"), label="label")
    assert of_files.task == of_arrays.task == "pictures"
    assert of_files.options["channels"] == 1 + 2 * colour
    assert contents(of_files) == contents(of_arrays)
    assert "not read: 'number'" in of_arrays.sentences


NAMES = {
    "pixel{n}": lambda side: [f"pixel{n}" for n in range(side**2)],
    "pixel_r_c": lambda side: [f"pixel_{i // side}_{i % side}" for i in range(side**2)],
    "RxC": lambda side: [f"{1 + i // side}x{1 + i % side}" for i in range(side**2)],
    "plain": lambda side: [f"input{n}" for n in range(1, side**2 + 1)],
    "none": lambda side: [],
}
"""How tables name the columns of square pictures."""


def table_of_pixels(file, pictures, names, label_first):
    """A picture a row, with its class before or after it."""
    labels = np.arange(len(pictures)) % 2
    parts = [pictures.reshape(len(pictures), -1), labels[:, None]]
    header = [*names, "class"]
    if label_first:
        parts.reverse()
        header = ["class", *names]
    with open(file, "w") as handle:
        if names:
            print(",".join(header), file=handle)
        np.savetxt(handle, np.concatenate(parts, 1), fmt="%d", delimiter=",")
    return str(file)


@pytest.mark.parametrize("label_first", [False, True])
@pytest.mark.parametrize("style", NAMES)
def test_a_table_of_pixels_holds_the_same_pictures(style, label_first, tmp_path):
    """Whatever the columns are called, and as a series where the user says so."""
    pictures = drawn(60, side=10)
    file = table_of_pixels(tmp_path / "a.csv", pictures, NAMES[style](10), label_first)
    guessed = guess(file)
    np.savez(tmp_path / "a.npz", images=pictures, label=np.arange(60) % 2)
    assert guessed.task == "pictures"
    assert "a pixel in each of the columns" in guessed.sentences[0]
    assert contents(guessed) == contents(guess(str(tmp_path / "a.npz")))
    assert guess(file, kind="series").task == "series"


def test_a_table_of_pixels_in_colour(tmp_path):
    pictures = drawn(40, side=8, colour=True)
    names = [f"pixel{n:04}" for n in range(192)]
    guessed = guess(table_of_pixels(tmp_path / "a.csv", pictures, names, False))
    assert (guessed.task, guessed.options["channels"]) == ("pictures", 3)
    task = tasks.make("pictures", guessed.options).fitted()
    text = " ".join(map(str, pictures[0].ravel()))
    assert task.encode(text).shape == (task.length, task.features)
    fewer = " ".join(map(str, pictures[0].ravel()[:-3]))
    with pytest.raises(InputError, match="reads the file of a picture, or 8 x 8 pixels"):
        task.encode(fewer)


@pytest.mark.parametrize("kind", ["waves", "walks", "noise", "answers", "thousands"])
@pytest.mark.parametrize("seed", range(3))
def test_a_series_of_whole_numbers_is_no_picture(kind, seed, tmp_path):
    rng = np.random.default_rng(seed)
    steps = np.arange(64)
    if kind == "waves":
        speed, start = rng.uniform(0.05, 0.4, (80, 1)), rng.uniform(0, 6, (80, 1))
        values = 128 + 60 * np.sin(steps * speed + start) + rng.normal(size=(80, 64))
    elif kind == "walks":
        values = 128 + np.cumsum(rng.normal(size=(80, 64)) * 4, 1)
    elif kind == "noise":
        values = rng.integers(0, 256, (80, 64))
    elif kind == "answers":
        values = rng.integers(1, 6, (80, 64))
    else:
        # Pictures, but of a camera that counts further than a byte does.
        values = drawn(80).reshape(80, -1) * 100.0
    values = np.maximum(np.rint(values), 0)
    if kind != "thousands":
        values = np.minimum(values, 255)
    names = [f"t{n}" for n in range(1, 65)]
    assert guess(table_of_pixels(tmp_path / "a.csv", values, names, False)).task == "series"


def test_texts_are_no_series(tmp_path):
    rows = [f"a text of some words number {i},{i % 2}" for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]))
    with pytest.raises(InputError, match="holds no series: its columns are text, label"):
        guess(str(tmp_path / "a.csv"), kind="series")


def test_tokens_are_patches():
    task = tasks.make("pictures", {"height": 4, "width": 6, "patch": 2, "label_names": ("a", "b")})
    picture = np.arange(24).reshape(4, 6)
    pixels = task.pixels_of(picture)
    assert task.length == 6
    assert pixels[:, 0].reshape(6, 4).tolist()[:2] == [[0, 1, 6, 7], [2, 3, 8, 9]]
    with pytest.raises(InputError, match="must divide"):
        tasks.make("pictures", {"height": 5, "patch": 2})


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_pictures_of_other_sizes_are_made_alike(fit, tmp_path):
    for side in (8, 12, 20):
        class_folders(tmp_path, drawn(14, side), f"{side}.jpg")
    guessed = guess(str(tmp_path / "pictures"))
    assert "of 8 x 8 to 20 x 20 pixels, resized to 12 x 12" in guessed.sentences[0]
    task = tasks.make("pictures", {**guessed.options, "fit": fit})
    assert task.load()["train"].take(np.arange(2))["tokens"].shape == (
        2,
        task.length,
        task.features,
    )


def test_large_pictures_become_small(tmp_path):
    guessed = guess(str(class_folders(tmp_path, drawn(12, 300))))
    options = guessed.options
    assert options["height"] <= 64
    assert options["height"] * options["width"] // options["patch"] ** 2 <= 64


def test_splits_are_those_of_the_folder(tmp_path):
    for part, count in (("train", 20), ("val", 8), ("test", 6)):
        (tmp_path / part).mkdir()
        class_folders(tmp_path / part, 255 - drawn(count) // (1 + len(part)))
        for place in list((tmp_path / part / "pictures").iterdir()):
            place.rename(tmp_path / part / place.name)
        (tmp_path / part / "pictures").rmdir()
    task = tasks.make("pictures", guess(str(tmp_path)).options)
    assert {name: len(split) for name, split in task.load().items()} == {
        "train": 20,
        "valid": 8,
        "test": 6,
    }


def test_a_damaged_picture_is_one_line(tmp_path, capsys):
    folder = class_folders(tmp_path, drawn(20))
    (folder / "left/003.png").write_bytes(b"no picture")
    assert main(["new", "--data", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "left/003.png cannot be read as a picture" in error
    assert len(error.splitlines()) == 1


def test_transparent_pixels_are_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (10, 20, 30, 0)).save(tmp_path / "a.png")
    task = tasks.make(
        "pictures", {"height": 8, "width": 8, "channels": 3, "label_names": ("a", "b")}
    )
    from dartformer.tasks.pictures import opened_picture

    assert (task.pixels_of(opened_picture(tmp_path / "a.png")) == 255).all()


def test_from_pictures_to_a_prediction(tmp_path, capsys):
    """`new --data`, `run` and `predict`, as a user types them."""
    folder = class_folders(tmp_path, drawn(40))
    assert main(["new", "--data", str(folder), *SMALL]) == 0
    (tmp_path / "space.py").write_text(capsys.readouterr().out, "utf-8")
    run = ["run", f"--config={tmp_path / 'space.py'}", f"--workdir={tmp_path / 'run'}", "--json"]
    assert main(run) == 0
    assert json.loads(capsys.readouterr().out)["baselines"]["nearest_mean"]["test"]["accuracy"] > 0
    picture = str(folder / "left/001.png")
    assert main(["predict", str(tmp_path / "run/export"), "--text", picture, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["label"] in ("left", "right")
    assert main(["predict", str(tmp_path / "run"), f"--file={folder}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40
    assert lines[0].endswith("left/001.png")
