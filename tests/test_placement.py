"""Placement of full attention in a checkpoint, without training."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dartformer as df
from dartformer.errors import InputError
from dartformer.models.decode import decoding
from dartformer.pretrained.passages import Sequences, pieces, repeated
from dartformer.pretrained.placement import ALPHA_RATE, Placement, _learned, top, uniform

FOLDERS = Path(__file__).parent / "oracles/checkpoints"
CHEAP = df.parse("sink(window=2, sinks=1)")
TEXT = np.random.default_rng(0).integers(0, 48, 300)
# A window or a missing rotation in some layer; every other family is a decoder with full attention.
DECODERS = ("llama", "gpt2", "qwen2", "qwen3")


@pytest.fixture(scope="module")
def placement():
    return Placement(df.load_pretrained(FOLDERS / "llama"), CHEAP)


@pytest.fixture(scope="module")
def passages():
    return repeated(TEXT, 32, 2)


def test_a_passage_comes_again_and_is_scored_then():
    sequences = repeated(TEXT, 32, 3)
    assert sequences.tokens.shape == (3, 32)
    assert np.array_equal(sequences.tokens[:, :10], sequences.tokens[:, 22:])
    assert np.array_equal(sequences.scored, np.arange(23, 32))
    plain = pieces(TEXT, 32, 3)
    assert np.array_equal(plain.tokens[:, :22], sequences.tokens[:, :22])
    assert np.array_equal(plain.tokens[1], TEXT[100:132])
    assert np.array_equal(plain.scored, np.arange(9, 32))
    long = repeated(np.arange(1000), 256, 1)
    assert np.array_equal(long.scored, np.arange(192, 256))
    assert len(pieces(np.arange(1000), 256, 1).scored) == 64


@pytest.mark.parametrize("name", DECODERS)
def test_all_places_full_are_the_checkpoint(name):
    model = df.load_pretrained(FOLDERS / name)
    placement, sequences = Placement(model, CHEAP), pieces(TEXT, 16, 2)
    everything = np.ones((model.config.layers, 1), bool)
    quality = placement.evaluate([everything], sequences)
    logits = model(sequences.tokens)
    log_probabilities = jax.nn.log_softmax(logits[:, sequences.scored - 1])
    labels = sequences.tokens[:, sequences.scored]
    wanted = jnp.take_along_axis(log_probabilities, labels[..., None], 2)[..., 0]
    np.testing.assert_allclose(quality.nll[0], -wanted.mean(1), rtol=1e-5)
    assert np.abs(quality.kl).max() < 1e-6


@pytest.mark.parametrize("name", DECODERS)
def test_a_placement_is_the_model_of_its_genotype(name):
    model = df.load_pretrained(FOLDERS / name)
    placement, sequences = Placement(model, CHEAP), pieces(TEXT, 16, 1)
    layers, columns, _ = placement.space.alphas_shape
    kept = np.random.default_rng(1).random((layers, columns)) < 0.5
    kept[0] = ~kept[1]  # neither all nor none
    genotype = placement.genotype(kept)
    assert np.array_equal(placement.mixture(kept), placement.space.mixture(genotype))
    net = df.transformer(model.config, genotype)
    valid = np.ones(sequences.tokens.shape, bool)
    logits = net.apply(model.weights, sequences.tokens, valid)
    log_probabilities = jax.nn.log_softmax(logits[0, sequences.scored - 1])
    labels = sequences.tokens[0, sequences.scored]
    wanted = -log_probabilities[np.arange(len(labels)), labels].mean()
    found = placement.evaluate([kept], sequences).nll[0, 0]
    assert found == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("make", [pieces, repeated])
def test_path_scores_add_up_to_what_the_cheap_model_loses(placement, make):
    sequences = make(TEXT, 32, 2)
    scores = placement.path(sequences, points=16)
    none = np.zeros((2, 1), bool)
    assert scores.total == pytest.approx(placement.evaluate([none], sequences).kl.mean(), rel=1e-5)
    assert scores.groups.shape == (2, 2)
    assert scores.groups.sum() == pytest.approx(scores.total, rel=0.03)
    assert np.allclose(scores.layers[:, 0], scores.groups.sum(1))


def test_a_score_is_the_slope_in_its_place(placement, passages):
    """The middle of the path, where a group's share of full is moved a little either way."""
    scores = placement.path(passages, points=1).groups
    step = 0.01
    for place in np.ndindex(2, 2):
        above, below = np.full((2, 2), 0.5), np.full((2, 2), 0.5)
        above[place] += step
        below[place] -= step
        kl = placement.evaluate([above, below], passages).kl.mean(1)
        slope = (kl[1] - kl[0]) / (2 * step)
        assert scores[place] == pytest.approx(slope, rel=0.02, abs=2e-3)


def test_swap_and_restore_change_one_layer(placement, passages):
    both, none = np.ones((2, 1), bool), np.zeros((2, 1), bool)
    first, second = np.array([[True], [False]]), np.array([[False], [True]])
    kl = placement.evaluate([both, first, second, none], passages).kl.mean(1)
    np.testing.assert_allclose(placement.swap(passages)[:, 0], [kl[2], kl[1]], rtol=1e-5)
    wanted = [kl[3] - kl[1], kl[3] - kl[2]]
    np.testing.assert_allclose(placement.restore(passages)[:, 0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("columns", [1, 2])
def test_learned_shares_meet_the_budget_and_find_what_is_worth_it(placement, passages, columns):
    """Half of the places: the mean share comes near it, and the weights stay as they are."""
    before = jax.tree.map(np.asarray, placement.model.weights)
    learned = placement.learned(passages, steps=60, target=0.5, columns=columns)
    assert learned.shares.shape == (2, columns)
    assert learned.shares.mean() == pytest.approx(0.5, abs=0.15)
    assert ((learned.shares > 0) & (learned.shares < 1)).all()
    path = placement.path(passages, points=8)
    assert learned.total == pytest.approx(path.total, rel=1e-5)
    if columns == 1:
        assert np.argmax(learned.shares) == np.argmax(path.layers)
    jax.tree.map(np.testing.assert_array_equal, placement.model.weights, before)


def test_learned_shares_follow_the_price(placement, passages):
    few, many = (
        placement.learned(passages, steps=40, target=target, columns=2).shares.mean()
        for target in (0.0, 1.0)
    )
    assert few < 0.4 < 0.6 < many


def test_alphas_go_down_the_slope_of_loss_and_price():
    """One step of Adam from the middle, whose size is the rate and whose sign is the slope's."""
    slope = np.array([[-2.0, -0.1], [0.3, 0.0]])
    shares = _learned(lambda _: slope, (2, 2), 1, loss=1.0, target=0.4)
    price = 2 * (0.5 / 0.4 - 1) / (0.4 * 4)
    wanted = jax.nn.sigmoid(-ALPHA_RATE * np.sign(slope + price))
    np.testing.assert_allclose(shares, wanted, rtol=1e-4)


def test_the_highest_scores_are_kept():
    scores = np.array([[0.5, -1.0], [2.0, 0.5], [0.1, 3.0]])
    assert np.argwhere(top(scores, 2)).tolist() == [[1, 0], [2, 1]]
    assert np.argwhere(top(scores, 3)).tolist() == [[0, 0], [1, 0], [2, 1]]
    assert not top(scores, 0).any()
    assert top(scores, 6).all()
    with pytest.raises(InputError, match="from 0 to the 6 places, got 7"):
        top(scores, 7)
    assert np.flatnonzero(uniform(30, 8)).tolist() == [1, 5, 9, 13, 16, 20, 24, 28]
    assert np.flatnonzero(uniform(30, 4)).tolist() == [3, 11, 18, 26]
    assert not uniform(30, 0).any()


def test_a_budget_is_met_exactly(placement):
    """Of all placements of KV groups within a cache, the one with the highest sum of scores."""
    price = placement.kv_bytes(32)
    scores = np.random.default_rng(2).normal(size=(2, 2))
    costs, sums = [], []
    for kept in itertools.product([False, True], repeat=4):
        kept = np.reshape(kept, (2, 2))
        costs.append(price.of(placement.genotype(kept), placement.space))
        sums.append(scores[kept].sum())
    for limit in sorted(set(costs)):
        found = placement.within(scores, [(price, limit)])
        best = max(value for cost, value in zip(costs, sums, strict=True) if cost <= limit)
        assert scores[found].sum() == pytest.approx(best)
    with pytest.raises(InputError, match="no genotype of the space is within kv_bytes"):
        placement.within(scores, [(price, min(costs) - 1)])


def test_the_price_is_what_decoding_keeps(placement):
    """One group, one layer, all and none: the bytes of the keys and values in the caches."""
    price = placement.kv_bytes(32)
    grids = ([[1, 0], [0, 0]], [[1, 1], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]])
    for grid, full in zip(grids, (1, 2, 4, 0), strict=True):
        genotype = placement.genotype(np.array(grid, bool))
        # 2 for keys and values, 4 bytes, 6 numbers; a window of 2, the token itself and a sink.
        wanted = 2 * 4 * 6 * (full * 32 + (4 - full) * 4)
        assert price.of(genotype, placement.space) == wanted
        cache = decoding(placement.model.config, genotype).init_cache(1, 32, jnp.float32)
        kept = [leaf.nbytes for leaf in jax.tree.leaves(cache) if leaf.ndim == 4]
        assert sum(kept) == wanted


BAD = [
    ("ministral", CHEAP, "some of its layers have no full attention"),
    ("llama", df.parse("full"), "must not be full itself"),
    ("llama", df.parse("synthesizer"), "synthesizer"),
    ("llama", df.parse("performer"), "performer"),
]


@pytest.mark.parametrize(("name", "cheap", "message"), BAD)
def test_what_cannot_be_placed_is_one_line(name, cheap, message):
    with pytest.raises(InputError, match=message) as caught:
        Placement(df.load_pretrained(FOLDERS / name), cheap)
    assert "\n" not in str(caught.value)


def test_sequences_that_cannot_be_are_one_line(placement):
    model = placement.model
    for make in (pieces, repeated):
        with pytest.raises(InputError, match="the text has 300 tokens, and 10 sequences of 32"):
            make(TEXT, 32, 10)
        with pytest.raises(InputError, match="at least 1 sequence of at least 8 tokens"):
            make(TEXT, 7, 1)
    with pytest.raises(InputError, match="the model takes at most 32 tokens, got 40"):
        placement.path(pieces(TEXT, 40, 1))
    with pytest.raises(InputError, match="points must be at least 1"):
        placement.path(pieces(TEXT, 16, 1), points=0)
    wide = Placement(model, df.parse("local(window=31)"))
    with pytest.raises(InputError, match="of 32 tokens, so nothing is tested"):
        wide.evaluate([np.ones((2, 1))], pieces(TEXT, 32, 1))
    with pytest.raises(InputError, match="of 16 tokens, so nothing is tested"):
        wide.path(Sequences(pieces(TEXT, 16, 1).tokens, np.arange(4, 16)))
