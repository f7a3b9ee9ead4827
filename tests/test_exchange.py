"""The local search from what the scores of a placement choose, and its place in a run."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dartformer as df
from dartformer.config import checkpoint_defaults
from dartformer.placement.exchange import local_search
from dartformer.pretrained.placement import Placement, top
from tests.test_placement_run import with_tokenizer, words


class Interacting:
    """Losses in which pairs of places stand in for each other, and how often each was measured."""

    def __init__(self, seed, places=8, sequences=3):
        rng = np.random.default_rng(seed)
        self.worth = rng.random((sequences, places))
        self.pairs = rng.random((places, places)) / 2
        self.measured = {}

    def __call__(self, placements, sequences):
        losses = []
        for kept in placements:
            self.measured[kept.tobytes()] = kept
            mask = kept.ravel().astype(float)
            losses.append(self.worth[:sequences].mean(0) @ (1 - mask) + mask @ self.pairs @ mask)
        return np.array(losses)


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(0, 30), st.integers(0, 8))
def test_the_best_measured_placement_is_kept(seed, most, keep):
    losses = Interacting(seed)
    scores = losses.worth.mean(0).reshape(4, 2)
    start = top(scores, keep)
    steps = list(local_search(start, scores, losses, 3, most, lambda kept: not kept[0, 0]))
    last = steps[-1]
    assert last.loss == pytest.approx(float(losses([last.kept], 3)[0]))
    assert [step.loss for step in steps] == sorted((step.loss for step in steps), reverse=True)
    assert last.measured == len(losses.measured) - 1 <= most
    for kept in losses.measured.values():
        assert kept.sum() == keep
        assert np.array_equal(kept, start) or not kept[0, 0]


def test_a_place_that_another_stands_in_for_is_exchanged():
    """The scores of both are high, and keeping both is worth no more than one."""
    scores = np.array([[3.0], [2.9], [1.0], [0.1]])

    def losses(placements, _):
        return np.array([4 - 3 * bool(kept[0] | kept[1]) - kept[2, 0] for kept in placements])

    *_, last = local_search(top(scores, 2), scores, losses, 1, 8, lambda _: True)
    assert last.kept.ravel().tolist() in ([True, False, True, False], [False, True, True, False])


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    home = tmp_path_factory.mktemp("exchange")
    with_tokenizer(home / "model")
    (home / "text.txt").write_text(words(400))
    return checkpoint_defaults(
        f"{home}/model",
        f"{home}/text.txt",
        sequences=2,
        points=1,
        length=32,
        keep=2,
        exchanges=3,
        cheap="sink(window=4, sinks=1)",
    )


def test_a_run_measures_neighbours_and_goes_on(config, tmp_path, monkeypatch):
    results = df.place(config, tmp_path / "run")
    file = tmp_path / "run/exchange.json"
    stored = json.loads(file.read_text())
    assert results.exchange.neighbours == 3
    assert results.exchange.after <= results.exchange.before
    assert results.answer.kept.tolist() == stored["kept"]
    assert any(
        "measured on the calibration" in line or "exchanged" in line for line in results.verdict
    )
    assert {"score", "exchange", "evaluate"} <= results.seconds.keys()

    # What was measured before a stop is not measured again, and the end is the same.
    del stored["checksum"], stored["kept"]
    file.write_text(json.dumps(stored))
    monkeypatch.setattr(Placement, "divergence", lambda *_: pytest.fail("measured again"))
    assert df.place(config, tmp_path / "run").answer.kept.tolist() == results.answer.kept.tolist()
