import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dartformer.data.prepare import prepared
from dartformer.errors import InputError

FEATURES = {"tokens": tfds.features.Tensor(shape=(None,), dtype=np.uint8)}


def squares(folder, count=5):
    def splits(notes):
        notes["dropped"] = {"empty": 2}
        return {"train": ({"tokens": np.full(i, i, np.uint8)} for i in range(1, count + 1))}

    return prepared(
        "squares", ("squares", count), "Rows.", FEATURES, splits, str(folder), title="Squares"
    )


def test_rows_and_notes_come_back_and_the_second_time_nothing_is_made(tmp_path):
    first = squares(tmp_path)
    assert [row["tokens"].tolist() for row in first.splits["train"]] == [
        [i] * i for i in range(1, 6)
    ]
    assert first.notes == {"dropped": {"empty": 2}}
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.array_record*")}
    assert squares(tmp_path).notes == first.notes
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.array_record*")} == files


def test_notes_that_are_arrays_are_files_of_the_set(tmp_path):
    numbers = np.array([3, -1, 2**40])

    def splits(notes):
        notes.update(groups=numbers, dropped={"empty": 2})
        return {"train": [{"tokens": np.ones(3, np.uint8)}]}

    def notes():
        return prepared(
            "squares", "groups", "Rows.", FEATURES, splits, str(tmp_path), title="Squares"
        ).notes

    for _ in range(2):  # as prepared, and as opened
        read = notes()
        assert read.pop("groups").tolist() == numbers.tolist()
        assert read == {"dropped": {"empty": 2}}
    (file,) = tmp_path.rglob("groups.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(InputError, match=r"groups\.npy is not as it was written"):
        notes()


def test_other_options_are_another_set(tmp_path):
    assert [len(squares(tmp_path, n).splits["train"]) for n in (3, 4, 3)] == [3, 4, 3]


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_prepared_file_that_is_not_as_written_is_named(tmp_path, damage):
    squares(tmp_path)
    (file,) = tmp_path.rglob("*.array_record*")
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    file.write_bytes(data if damage == "flip" else data[:-1])
    if damage == "gone":
        file.unlink()
    with pytest.raises(InputError, match=re.escape(file.name) + r".*Delete .* and run again"):
        squares(tmp_path)
