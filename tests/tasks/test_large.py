"""Splits above `shuffle.LARGE` rows: shuffled, divided and limited without an array of all rows."""

import numpy as np
import pytest

from dartformer.data import shuffle
from dartformer.data.batches import batches, examine
from dartformer.data.fingerprint import fingerprint
from dartformer.data.large import drawn, limited, row_bits
from dartformer.data.splits import ArraySplit, Subset
from dartformer.errors import InputError
from dartformer.tasks.base import majority, parts_of


def split_of(n, different=None, length=12):
    """Rows that are told apart by their tokens; the last `n - different` repeat the first."""
    rows = np.arange(n) % (different or n)
    tokens = np.stack([rows // 50**i % 50 + 1 for i in range(length)], 1).astype(np.uint8)
    lengths = 1 + rows * 7 % length
    return ArraySplit(
        tokens * (np.arange(length) < lengths[:, None]), lengths, rows.astype(np.int32)
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 1000, 4097])
def test_every_row_has_one_place(n):
    order = shuffle.shuffled(np.arange(n), n, 3, 1)
    assert sorted(order) == list(range(n))
    # Places are computed one by one as they are together.
    np.testing.assert_array_equal(shuffle.shuffled(np.arange(n)[::-1], n, 3, 1), order[::-1])


def test_the_order_is_random_and_never_changes():
    n = 3000
    orders = [shuffle.shuffled(np.arange(n), n, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for i, order in enumerate(orders):
        # Of independent orders two agree in one place on average, and are uncorrelated.
        for other in [np.arange(n), *orders[:i]]:
            assert (order == other).sum() < 10
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.08
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.08
    # A seed's batches are a promise.
    assert shuffle.shuffled(np.arange(5), 10**9, 7, 2).tolist() == PINNED


PINNED = [765316857, 274604195, 141627651, 272065137, 241690762]


@pytest.mark.parametrize("buckets", [1, 4])
def test_an_epoch_of_a_large_split_takes_every_row_once(buckets, monkeypatch):
    monkeypatch.setattr(shuffle, "LARGE", 40)
    split = split_of(103)
    stream = batches(split, 8, 5, buckets)
    drawn_batches = [next(stream) for _ in range(24)]
    state = stream.get_state()
    following = next(stream)
    again = batches(split, 8, 5, buckets)
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["tokens"], following["tokens"])
    epochs = [np.concatenate([b["label"] for b in drawn_batches[i : i + 12]]) for i in (0, 12)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 96
    assert not np.array_equal(*epochs)
    if buckets > 1:
        widths = [batch["tokens"].shape[1] for batch in drawn_batches]
        assert set(widths) <= {3, 6, 9, 12}
        assert len(set(widths)) > 1
        # Of blocks of 5 batches, which are sorted each on their own.
        lengths = [np.ptp(batch["valid"].sum(1)) for batch in drawn_batches]
        assert np.mean(lengths) < 8


def test_streams_over_halves_keep_step(monkeypatch):
    monkeypatch.setattr(shuffle, "LARGE", 40)
    lengths = np.arange(160) % 12 + 1
    splits = [split_of(160), split_of(161)]
    for split in splits:
        split.lengths = np.resize(lengths, len(split))
    streams = [batches(split, 8, seed, 4, lengths_seed=1) for seed, split in enumerate(splits)]
    widths = [[next(stream)["tokens"].shape[1] for _ in range(40)] for stream in streams]
    assert np.mean(np.array(widths[0]) == widths[1]) > 0.6


def test_parts_of_a_large_split_share_no_row(monkeypatch):
    monkeypatch.setattr(shuffle, "LARGE", 100)
    train = split_of(900, different=500)
    for given in ({"train": train}, {"train": train, "valid": split_of(30)}):
        parts = parts_of({**given, "test": split_of(20)}, 4)
        rows = {}
        for name in ("weights", "alphas", "valid", "train"):
            rows[name] = set(parts[name].take(np.arange(len(parts[name])))["label"].tolist())
        assert not rows["weights"] & rows["alphas"]
        assert rows["weights"] | rows["alphas"] == rows["train"]
        assert 300 < len(parts["weights"]) < 600
        if "valid" not in given:
            assert not rows["valid"] & rows["train"]
            assert 30 < len(parts["valid"]) < 160
        again = parts_of({**given, "test": split_of(20)}, 4)
        assert fingerprint(parts.values()) == fingerprint(again.values())
        other = parts_of({**given, "test": split_of(20)}, 5)
        assert fingerprint(parts.values()) != fingerprint(other.values())


def test_a_large_split_of_equal_rows_has_no_parts(monkeypatch):
    monkeypatch.setattr(shuffle, "LARGE", 100)
    with pytest.raises(InputError, match=r"too few for the parts .* Nearly all of them are equal"):
        parts_of({"train": split_of(200, different=1), "test": split_of(3)})


def test_rows_in_groups_are_divided_by_their_groups(monkeypatch):
    monkeypatch.setattr(shuffle, "LARGE", 100)
    train = split_of(400)
    train.groups = np.arange(400) // 4
    parts = parts_of({"train": train, "valid": split_of(9), "test": split_of(9)})
    groups = [set(parts[name].indices // 4) for name in ("weights", "alphas")]
    assert not groups[0] & groups[1]


def test_bits_are_of_tokens_and_of_which_exist():
    split = split_of(2000)
    batch = split.take(np.arange(2000))
    # Short rows of this split repeat one another.
    different = len(np.unique(np.concatenate([split.tokens, split.lengths[:, None]], 1), axis=0))
    assert len(np.unique(row_bits(batch, 0))) == different > 1800
    shorter = {**batch, "valid": batch["valid"] & (np.arange(12) < 3)}
    assert (row_bits(shorter, 0) != row_bits(batch, 0)).sum() == (split.lengths > 3).sum()
    numbers = {**batch, "tokens": batch["tokens"][..., None].astype(np.float32)}
    assert len(np.unique(row_bits(numbers, 0))) == different
    shares = [len(rows) / 2000 for rows in drawn(split, [0.1, 0.2, 0.7], 0)]
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.7], atol=0.05)


def test_a_limited_split_is_a_fixed_sample():
    split = split_of(200)
    sample = limited(split, 20, 3)
    assert len(sample) == 20
    labels = sample.take(np.arange(20))["label"]
    assert (np.diff(labels) > 0).all()
    np.testing.assert_array_equal(limited(split, 20, 3).take(np.arange(20))["label"], labels)
    assert not np.array_equal(limited(split, 20, 4).take(np.arange(20))["label"], labels)
    assert limited(split, 0, 3) is split
    assert limited(split, 200, 3) is split


def test_examples_with_one_bucket_come_in_order():
    rows = np.concatenate([batch["row"] for batch in examine(split_of(10), 4)])
    np.testing.assert_array_equal(rows, [*range(10), 9, 9])


def test_majority_counts_every_label():
    train, test = split_of(8), split_of(4)
    train.labels = np.array([2, 2, 2, 1, 1, 0, -1, -1], np.int32)
    test.labels = np.array([2, 1, -1, 2], np.int32)
    assert majority(train, test) == 2 / 3
    assert np.isnan(majority(train, Subset(test, np.array([2]))))
