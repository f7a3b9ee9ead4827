"""CIFAR-10 in grey from every layout; a black pixel is not padding; patches reach the model."""

import io
import json
import lzma
import os
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from test_imdb import message, tfrecord, varint

from dartformer import tasks
from dartformer.attention.full import Full
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.tasks.image import BATCHES, LABELS, grey, tokens_of

DATA = Path(
    os.environ.get(
        "DARTFORMER_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"
    )
)


def colours(seed, n):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32, 32, 3), np.uint8), np.arange(n, dtype=np.uint8) % 10


def lay_out(kind, folder):
    train, test = colours(0, 50), colours(1, 10)
    if kind == "npy":
        for part, (images, labels) in (("train", train), ("test", test)):
            for name, array in (("gray", grey(images)), ("labels", labels)):
                with lzma.open(folder / f"{part}_{name}.npy.xz", "wb") as file:
                    np.save(file, array)
        return {"path": str(folder)}
    if kind == "tfds":
        from PIL import Image as Picture

        where = folder / "cifar10/3.0.2"
        where.mkdir(parents=True)
        (where / "dataset_info.json").write_text(
            json.dumps(
                {
                    "splits": [
                        {"name": "train", "shardLengths": ["50"]},
                        {"name": "test", "shardLengths": ["10"]},
                    ]
                }
            )
        )
        (where / "label.labels.txt").write_text("\n".join(LABELS))
        for part, (images, labels) in (("train", train), ("test", test)):
            records = []
            for image, label in zip(images, labels, strict=True):
                data = io.BytesIO()
                Picture.fromarray(image).save(data, "PNG")
                entries = {
                    "image": message(1, message(1, data.getvalue())),
                    "label": message(3, message(1, varint(int(label)))),
                }
                records.append(
                    message(
                        1,
                        b"".join(
                            message(1, message(1, k.encode()) + message(2, v))
                            for k, v in entries.items()
                        ),
                    )
                )
            (where / f"cifar10-{part}.tfrecord-00000-of-00001").write_bytes(tfrecord(records))
        return {}
    inside = folder / "cifar-10-batches-bin"
    inside.mkdir()
    for part, (images, labels) in (("train", train), ("test", test)):
        rows = np.concatenate(
            [labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(images), -1)], 1
        )
        for name, chunk in zip(
            BATCHES[part], np.array_split(rows, len(BATCHES[part])), strict=True
        ):
            (inside / name).write_bytes(chunk.tobytes())
    if kind == "folder":
        return {"path": str(inside)}
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
        archive.add(inside, inside.name)
    return {"path": str(folder / "cifar-10-binary.tar.gz")}


@pytest.mark.parametrize("kind", ["npy", "folder", "tar", "tfds"])
def test_every_layout_gives_the_same_images(kind, tmp_path):
    task = tasks.make("image", {"rows": False, **lay_out(kind, tmp_path)})
    splits = task.load(str(tmp_path))
    assert {k: len(v) for k, v in splits.items()} == {"train": 45, "valid": 5, "test": 10}
    images, labels = colours(1, 10)
    batch = splits["test"].take(np.arange(10))
    np.testing.assert_array_equal(
        batch["tokens"], grey(images).reshape(10, -1).astype(np.int32) + 1
    )
    np.testing.assert_array_equal(batch["label"], labels)
    images = np.concatenate(
        [splits[part].take(np.arange(len(splits[part])))["tokens"] for part in ("train", "valid")]
    )
    assert len(np.unique(images, axis=0)) == 50
    with pytest.raises(InputError, match=r"train in .* has 50 images; it should have 50,000"):
        tasks.make("image", {"path": task.path}).load(str(tmp_path))
    assert 0 <= task.baselines(splits["train"], splits["test"])["nearest_mean"] <= 1


def test_an_image_in_two_splits_is_left_out_of_the_earlier(tmp_path, capsys):
    values = {"rows": False, **lay_out("npy", tmp_path)}
    before = tasks.make("image", values).load(str(tmp_path))
    images = grey(colours(0, 50)[0])
    with lzma.open(tmp_path / "test_gray.npy.xz", "wb") as file:
        np.save(file, np.concatenate([images[:3], images[7:14]]))
    counts = {
        part: len(split) for part, split in tasks.make("image", values).load(str(tmp_path)).items()
    }
    assert counts["train"] + counts["valid"] == 40
    assert counts["test"] == 10
    assert "also in a later split, dropped" in capsys.readouterr().err
    kept = tasks.make("image", {**values, "on_duplicate": "keep"}).load(str(tmp_path))
    assert {part: len(split) for part, split in kept.items()} == {
        part: len(split) for part, split in before.items()
    }
    for wrong, reason in (("error", "also occur in"), ("drip", "unknown task.on_duplicate 'drip'")):
        with pytest.raises(InputError, match=reason):
            tasks.make("image", {**values, "on_duplicate": wrong}).load(str(tmp_path))


def test_a_black_pixel_is_not_padding(tmp_path):
    task = tasks.make("image", {"rows": False, **lay_out("npy", tmp_path)})
    black = tokens_of(np.zeros((1, 32, 32), np.uint8), 0)
    assert (black == 1).all()
    batch = task.load()["train"].take(np.arange(45))
    assert batch["valid"].all()
    assert batch["tokens"].min() >= 1
    text = " ".join(["0", "255"] * 512)
    assert task.decode(task.encode(text)) == text
    for wrong, reason in (
        ("1 2 3", "got 3"),
        (text.replace("255", "256"), "0 to 255"),
        ("a b", "invalid literal"),
    ):
        with pytest.raises(InputError, match=reason):
            task.encode(wrong)


def test_grey_is_that_of_long_range_arena():
    """tf.image.rgb_to_grayscale: 0.2989 R + 0.587 G + 0.114 B."""
    assert grey(
        np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    ).tolist() == [[76, 150, 29, 255]]


def test_patches_are_tokens_of_numbers(tmp_path):
    task = tasks.make("image", {"rows": False, "patch": 8, **lay_out("npy", tmp_path)})
    batch = task.load()["train"].take(np.arange(2))
    assert batch["tokens"].dtype == np.float32
    assert (batch["tokens"].shape, task.length, task.features) == ((2, 16, 64), 16, 64)
    image = np.arange(1024).reshape(1, 32, 32).astype(np.uint8)
    np.testing.assert_array_equal(
        tokens_of(image, 8)[0, 5], (image[0, 8:16, 8:16].reshape(-1) - 127.5) / 64
    )
    config = TransformerConfig(
        task.vocabulary,
        task.classes,
        task.length,
        layers=1,
        heads=1,
        head_dim=4,
        model_dim=4,
        mlp_dim=4,
        features=task.features,
    )
    net = transformer(config, Genotype.homogeneous(Full(), 1, 1))
    weights = net.init(jax.random.key(0))
    logits = net.apply(weights, batch["tokens"], batch["valid"])
    assert logits.shape == (2, 10)
    changed = batch["tokens"].copy()
    changed[0, 3, 7] += 1
    assert not np.allclose(net.apply(weights, changed, batch["valid"])[0], logits[0])
    assert [a.shape for a in config.blank(3)] == [(3, 16, 64), (3, 16)]
    with pytest.raises(InputError, match="needs tokens that are ids"):
        TransformerConfig(257, 10, 16, features=64, stem="bigram")


def test_what_will_not_do(tmp_path):
    with pytest.raises(InputError, match="must be 0 or divide 32, got 5"):
        tasks.make("image", {"patch": 5})
    with pytest.raises(InputError, match=r"looked for .*cifar10/\*/dataset_info.json"):
        tasks.make("image", {}).load(str(tmp_path))
    with pytest.raises(InputError, match=r"looked for train_gray.npy, for data_batch_1.bin"):
        tasks.make("image", {"path": str(tmp_path)}).load()
    (tmp_path / "data_batch_1.bin").write_bytes(b"x" * 3072)
    with pytest.raises(
        InputError, match=r"data_batch_1.bin .* has 3,072 bytes, which is not a multiple of 3,073"
    ):
        tasks.make("image", {"path": str(tmp_path)}).load()


def test_the_real_images():
    folder = DATA / "cifar10_gray"
    if not (folder / "test_gray.npy.xz").exists():
        pytest.skip(f"grey CIFAR-10 is not at {folder}; set DARTFORMER_DATA to the folder above it")
    task = tasks.make("image", {"path": str(folder)})
    images, labels = task._read("test", None)
    assert images.shape == (10_000, 32, 32)
    assert np.bincount(labels).tolist() == [1000] * 10
