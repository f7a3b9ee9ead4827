"""Splits, parts and iterators, on a task that needs no files."""

import itertools
import time
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from dartformer import tasks
from dartformer.data.batches import batches, examine, resized
from dartformer.data.sources import IN_MEMORY_BYTES, from_source, pack
from dartformer.data.splits import ArraySplit, Endless, Split, Subset, divided, lengths, permutation
from dartformer.errors import InputError
from dartformer.tasks.base import PARTS, VALID_FRACTION, majority, parts, parts_of
from dartformer.tasks.files import path_of, places

LENGTH = 7


def record(i):
    """Example number `i`: its number is its first token, so that examples can be told apart."""
    return {"tokens": np.r_[i, np.zeros(i % LENGTH)].astype(np.int32), "label": i % 3}


class Records(list):
    """What a TFDS data source offers; `folder` is where the set lies."""

    split = "train"

    def __init__(self, records, folder=None):
        super().__init__(records)
        self.dataset_info = SimpleNamespace(data_dir=folder)

    def __getitems__(self, indices):
        return [self[i] for i in indices]


def in_memory(n):
    return pack((record(i) for i in range(n)), n, LENGTH, np.dtype(np.int32))


@dataclass(frozen=True)
class Numbers:
    """A task whose train examples are 0 .. n-1; valid and test come after them."""

    n: int = 101
    has_valid: bool = True

    def load(self, data_dir=None):
        examples = in_memory(self.n + 20)
        cut = {
            "train": range(self.n),
            "valid": range(self.n, self.n + 10),
            "test": range(self.n + 10, self.n + 20),
        }
        return {
            name: Subset(examples, np.array(rows))
            for name, rows in cut.items()
            if name != "valid" or self.has_valid
        }


def numbers(split):
    return split.take(np.arange(len(split)))["tokens"][:, 0].tolist()


def same(a, b):
    return a.keys() == b.keys() and all(
        np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a
    )


def test_a_batch_has_the_stated_shapes_and_valid_comes_from_lengths():
    batch = in_memory(20).take(np.array([0, 3, 13]))
    assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
        "tokens": (np.int32, (3, LENGTH)),
        "valid": (np.bool_, (3, LENGTH)),
        "label": (np.int32, (3,)),
    }
    # Token 0 stands inside every one of these examples and is valid there.
    np.testing.assert_array_equal(batch["valid"].sum(1), [1, 4, 7])
    np.testing.assert_array_equal(batch["label"], [0, 0, 1])


def test_a_split_in_memory_and_one_on_disk_are_the_same(tmp_path):
    source = Records((record(i) for i in range(50)), tmp_path)
    mapped, quick = from_source(source, LENGTH, 64, in_memory=0), from_source(source, LENGTH, 64)
    assert isinstance(mapped, Split)
    assert isinstance(mapped.tokens.values.base, np.memmap)
    assert quick.tokens.dtype == mapped.tokens.values.dtype == np.uint8, (
        "a vocabulary of 64 fits one byte"
    )
    assert 50 * LENGTH < IN_MEMORY_BYTES
    for indices in ([3], [49, 0, 0, 7], range(50)):
        assert same(mapped.take(np.array(indices)), quick.take(np.array(indices)))
    pairs = zip(batches(mapped, 8, 1), batches(quick, 8, 1), strict=True)
    assert all(same(a, b) for a, b in itertools.islice(pairs, 20))
    # No padding is written.
    assert len(mapped.tokens.values) == quick.lengths.sum()
    np.testing.assert_array_equal(lengths(mapped), quick.lengths)
    of_both = [parts_of({"train": split, "test": split}, 3) for split in (mapped, quick)]
    for name in ("weights", "alphas", "valid"):
        np.testing.assert_array_equal(*(cut[name].indices for cut in of_both))


@pytest.mark.parametrize("kind", ["pairs", "a label for each token", "numbers"])
def test_other_examples_are_mapped_as_they_are_packed(tmp_path, kind):
    more = {
        "pairs": lambda i: {"tokens2": np.arange(i % 4), "label": 1},
        "a label for each token": lambda i: {"label": np.arange(1 + i % LENGTH)},
        "numbers": lambda i: {"label": np.float32(i / 3)},
    }[kind]
    source = Records(({**record(i), **more(i)} for i in range(9)), tmp_path)
    mapped, quick = from_source(source, LENGTH, 64, in_memory=0), from_source(source, LENGTH, 64)
    assert same(mapped.take(np.arange(9)), quick.take(np.arange(9)))


def test_rows_on_disk_appear_whole_and_once(tmp_path):
    source = Records((record(i) for i in range(9)), tmp_path)

    class Killed(Records):
        def __getitems__(self, indices):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        from_source(Killed(source, tmp_path), LENGTH, 64, in_memory=0)
    wrong = Records((record(0) for i in range(9)), tmp_path)
    assert same(
        from_source(source, LENGTH, 64, in_memory=0).take(np.arange(9)),
        from_source(wrong, LENGTH, 64, in_memory=0).take(np.arange(9)),
    ), "made again though they were there"
    (file,) = tmp_path.rglob("tokens.npy")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"is not as it was written.*Delete it and run again"):
        from_source(source, LENGTH, 64, in_memory=0)


def test_the_largest_token_id_fits_the_type_in_memory():
    source = Records([{"tokens": np.array([255, 256, 70_000]), "label": 0}])
    for vocabulary, largest in ((256, 255), (257, 256), (70_001, 70_000)):
        fitting = Records([{"tokens": np.array([largest]), "label": 0}])
        assert from_source(fitting, 1, vocabulary).take(np.array([0]))["tokens"][0, 0] == largest
    with pytest.raises(InputError, match=r"3 tokens.*length 2"):
        from_source(source, 2, 70_001)


@pytest.mark.parametrize("has_valid", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_parts_are_disjoint_and_lose_nothing(has_valid, seed):
    task = Numbers(has_valid=has_valid)
    splits = parts(task, seed=seed)
    assert set(splits) == {*PARTS, "train"}
    examples = [i for part in PARTS for i in numbers(splits[part])]
    assert len(examples) == len(set(examples)), "an example is in two parts"
    assert sorted(numbers(splits["weights"]) + numbers(splits["alphas"])) == sorted(
        numbers(splits["train"])
    )
    assert len(splits["weights"]) - len(splits["alphas"]) in (0, 1)
    assert numbers(splits["test"]) == list(range(111, 121))
    assert len(splits["valid"]) == (10 if has_valid else round(VALID_FRACTION * 101))
    assert max(numbers(splits["train"])) < 101, "train reaches into valid or test"
    assert len(set(examples)) == (121 if has_valid else 111)


def test_parts_depend_on_the_seed_and_on_nothing_else():
    weights = {seed: numbers(parts(Numbers(), seed=seed)["weights"]) for seed in (0, 0, 1)}
    assert weights[0] == numbers(parts(Numbers(), seed=0)["weights"])
    assert weights[0] != weights[1]
    # Written down, because a new version of a library must not move an example from train to valid.
    assert permutation(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert permutation(8, 0, 1).tolist() != permutation(8, 0, 2).tolist()


def test_a_negative_seed_is_refused():
    with pytest.raises(InputError, match="seed -1"):
        parts(Numbers(), seed=-1)


def test_parts_of_too_little_data_are_refused():
    with pytest.raises(InputError, match="2 examples: too few"):
        parts(Numbers(n=2, has_valid=False))


def test_batches_are_endless_and_every_epoch_is_a_new_order():
    stream = batches(in_memory(10), 3, seed=0)
    epochs = [
        [i for _ in range(3) for i in next(stream)["tokens"][:, 0].tolist()] for _ in range(20)
    ]
    assert all(len(set(epoch)) == 9 for epoch in epochs), "an example twice in one epoch"
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert {i for epoch in epochs for i in epoch} == set(range(10)), "an example is never used"
    second = [
        i
        for _ in range(3)
        for i in next(batches(in_memory(10), 3, seed=1))["tokens"][:, 0].tolist()
    ]
    assert second != epochs[0]


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 4, 11])
def test_an_iterator_resumes_exactly(taken):
    split = in_memory(10)
    reference = [
        next(stream) for stream in [batches(split, 3, 5)] for _ in range(20)
    ]  # 3 batches an epoch
    first, second = batches(split, 3, 5), batches(split, 3, 5)
    for _ in range(taken):
        next(first)
    second.set_state(first.get_state())
    assert all(same(next(second), batch) for batch in reference[taken:])
    # And back: an iterator that has gone on can be set to an earlier state.
    second.set_state(batches(split, 3, 5).get_state())
    assert same(next(second), reference[0])


@pytest.mark.parametrize("size", [0, -1, 11])
def test_a_batch_that_the_split_cannot_fill_is_refused(size):
    with pytest.raises(InputError, match=rf"batch size {size} .* 10 "):
        batches(in_memory(10), size, 0)


@pytest.mark.parametrize("size", [1, 4, 10, 16])
def test_examine_weighs_every_example_once(size):
    split = in_memory(10)
    examined = list(examine(split, size))
    assert all(
        batch["tokens"].shape == (size, LENGTH) and batch["weight"].shape == (size,)
        for batch in examined
    )
    rows = np.concatenate([batch["tokens"][:, 0] for batch in examined])
    weight = np.concatenate([batch["weight"] for batch in examined])
    assert weight.dtype == np.float32
    assert rows[weight == 1].tolist() == list(range(10))
    assert all(batch["valid"].any(1).all() for batch in examined), (
        "a filled-up row has no token to attend to"
    )


def test_buckets_hold_examples_of_like_length_and_lose_none():
    split = in_memory(100)
    stream = batches(split, 7, 3, buckets=3)
    epochs = [[next(stream) for _ in range(14)] for _ in range(8)]
    for epoch in epochs:
        numbers_of_epoch = np.concatenate([batch["tokens"][:, 0] for batch in epoch])
        assert len(set(numbers_of_epoch.tolist())) == 98
        for batch in epoch:
            n = batch["tokens"].shape[1]
            assert n in (3, 6, 7)
            assert batch["valid"].shape == batch["tokens"].shape
            lengths = 1 + batch["tokens"][:, 0] % LENGTH
            np.testing.assert_array_equal(batch["valid"].sum(1), lengths)
            assert lengths.max() > n - 3
    assert set(np.concatenate([b["tokens"][:, 0] for e in epochs for b in e])) == set(range(100)), (
        "one is never used"
    )
    assert [b["tokens"].shape[1] for b in epochs[0]] != sorted(
        b["tokens"].shape[1] for b in epochs[0]
    )

    def padded_share(buckets):
        stream = batches(split, 7, 0, buckets)
        epoch = np.concatenate([next(stream)["valid"].ravel() for _ in range(14)])
        return 1 - epoch.mean()

    assert padded_share(3) < 0.75 * padded_share(1)
    again = batches(split, 7, 3, buckets=3)
    again.set_state(stream.get_state())
    assert same(next(again), next(stream))
    with pytest.raises(InputError, match="generated without end"):
        batches(Endless(lambda i: {}, 10), 2, 0, buckets=2)


def test_two_streams_over_halves_keep_step_in_length():
    split = in_memory(200)
    halves = [Subset(split, permutation(200, 7)[i::2]) for i in (0, 1)]
    streams = [
        batches(half, 5, seed, buckets=3, lengths_seed=0) for seed, half in enumerate(halves)
    ]
    widths = [[next(stream)["valid"].shape[1] for _ in range(40)] for stream in streams]
    assert len(set(widths[0])) == 3
    assert sum(a != b for a, b in zip(*widths, strict=True)) <= 8, (
        "two batches an epoch lie across two buckets"
    )
    batch = halves[0].take(np.arange(9))
    wide = resized(batch, LENGTH + 2)
    assert same(resized(wide, LENGTH), batch)
    assert not wide["valid"][:, LENGTH:].any()


@pytest.mark.parametrize("split", [in_memory(100), Endless(lambda i: {"tokens": i}, 10**6)])
@pytest.mark.parametrize("buckets", [1, 3])
def test_processes_read_parts_of_one_batch(split, buckets):
    """Together the whole batch, in its order and of its length."""
    if isinstance(split, Endless) and buckets > 1:
        pytest.skip("there is no length to sort by")
    parts_of_batch = [np.array([0, 1, 2]), np.array([3, 4, 5, 6])]
    whole = batches(split, 7, 3, buckets)
    shared = [batches(split, 7, 3, buckets, rows=rows) for rows in parts_of_batch]
    for _ in range(20):
        drawn = [next(stream) for stream in shared]
        for name, array in next(whole).items():
            np.testing.assert_array_equal(np.concatenate([d[name] for d in drawn]), array)
    assert whole.get_state() == shared[0].get_state() == shared[1].get_state()


def test_examine_in_buckets_has_every_row_once():
    examined = list(examine(in_memory(10), 4, buckets=3))
    rows = np.concatenate([batch["row"][batch["weight"] > 0] for batch in examined])
    assert sorted(rows) == list(range(10))
    np.testing.assert_array_equal(
        rows, np.concatenate([b["tokens"][b["weight"] > 0, 0] for b in examined])
    )
    assert [batch["valid"].shape[1] for batch in examined] == [3, 6, 7]


def test_examine_refuses_an_empty_batch():
    with pytest.raises(InputError, match="batch size 0"):
        next(examine(in_memory(10), 0))


def test_majority_is_learnt_from_train_and_scored_on_the_split():
    def split(labels):
        labels = np.array(labels)
        return ArraySplit(np.ones((len(labels), 2), np.uint8), np.full(len(labels), 2), labels)

    assert majority(split([1, 1, 0]), split([0, 0, 0, 1])) == 0.25
    assert majority(split([1, 0]), split([0, 0, 1])) == pytest.approx(2 / 3), (
        "of a tie, the smallest label"
    )
    # One label for every token; negative ones do not count.
    assert majority(split([[1, 1], [-1, -1]]), split([[1, -1], [0, 1]])) == pytest.approx(2 / 3)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(InputError, match="2, 3 and 2"):
        ArraySplit(np.zeros((2, 4)), np.zeros(3), np.zeros(2))


def test_a_batch_in_memory_is_quick():
    n, length = 2000, 2000
    split = ArraySplit(np.ones((n, length), np.uint8), np.full(n, length), np.zeros(n, np.int32))
    stream = batches(Subset(split, permutation(n, 0)), 32, 0)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        next(stream)
        times.append(time.perf_counter() - start)
    # 0.1 ms where it was written; the median, because a shared core stalls.
    assert np.median(times) < 1e-3


def test_repeated_examples_are_on_one_side_of_a_division():
    order = permutation(12, 3)
    different = np.arange(12, dtype=np.uint64)
    first, second = divided(order, different[order], 6)
    np.testing.assert_array_equal(first, order[:6])
    np.testing.assert_array_equal(second, order[6:])
    repeated = np.array([0] * 5 + [1] * 3 + [2, 3, 4, 5], np.uint64)
    for seed in range(20):
        order = permutation(12, seed)
        first, second = divided(order, repeated[order], 6)
        assert sorted([*first, *second]) == list(range(12))
        assert not set(repeated[first]) & set(repeated[second])
        assert 3 <= len(first) <= 6
    first, second = divided(order, np.zeros(12, np.uint64), 6)
    assert not len(first), "one example twelve times cannot be divided"


def test_examples_without_end_that_repeat_are_halved_by_what_they_are():
    def few(numbers):
        tokens = 1 + np.stack([numbers % 3, numbers // 3 % 5], 1).astype(np.int32)
        return {"tokens": tokens, "valid": np.ones((len(tokens), 2), bool), "label": tokens[:, 0]}

    halves = []
    for half in Endless(few, 100).halves():
        batch = half.take(np.arange(2000))
        halves.append({tuple(row) for row in batch["tokens"].tolist()})
        np.testing.assert_array_equal(batch["label"], batch["tokens"][:, 0])
        assert same(half.take(np.array([7])), half.take(np.array([7])))
    assert not halves[0] & halves[1]
    assert len(halves[0] | halves[1]) == 15

    def single(numbers):
        return few(np.zeros_like(numbers))

    one, other = Endless(single, 100).halves()
    parity = next(half for half in (one, other) if not _has_examples(half))
    with pytest.raises(InputError, match="too few different examples"):
        parity.take(np.arange(3))


def _has_examples(half):
    try:
        half.take(np.arange(3))
    except InputError:
        return False
    return True


@pytest.mark.parametrize("name", ["files", "series", "pictures"])
def test_where_each_split_is(name, tmp_path):
    """The same for all tasks on data of one's own: named files first, then splits of the folder."""
    task = tasks.make(name, {"path": str(tmp_path), "test": str(tmp_path / "own")})
    (tmp_path / "own").mkdir()
    listed = places(task, ("train", "valid", "test"), None)
    assert listed["train"] == (tmp_path, "train")
    assert listed["valid"] == (tmp_path, "valid")
    assert listed["test"] == (tmp_path / "own", "")
    assert places(task, (), None)["train"] == (tmp_path, "")
    with pytest.raises(InputError, match="has no split 'train'; it has valid"):
        places(task, ("valid",), None)
    with pytest.raises(InputError, match=r"task\.path is empty"):
        path_of(tasks.make(name, {}), None)
