"""Attentions that are trained layer by layer to give what a checkpoint's give."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dartformer as df
from dartformer.attention import Shape, parse
from dartformer.errors import InputError
from dartformer.models.layerwise import block_of, ends_of, weights_of_ends
from dartformer.models.transformer import transformer
from dartformer.pretrained.align import Alignment, align, untrained
from dartformer.space.genotype import Genotype
from dartformer.training.checkpoint import named_leaves

FOLDERS = Path(__file__).parent / "oracles/checkpoints"
TOKENS = np.random.default_rng(0).integers(3, 48, (8, 16))
QUICK = Alignment(steps=40, batch=4, rate=1e-2)


def genotype(*layers):
    rows = []
    for layer in layers:
        texts = layer
        if isinstance(layer, str):
            texts = [layer] * 4
        rows.append(tuple(map(parse, texts)))
    return Genotype(tuple(rows))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bert"])
@pytest.mark.parametrize("layers", [("full", "gated_delta"), (["ssd", "full"] * 2, "retention")])
def test_layers_come_closer_and_others_stay(name, layers):
    model, hybrid = df.load_pretrained(FOLDERS / name), genotype(*layers)
    aligned = align(model, hybrid, TOKENS, QUICK)
    assert aligned.model.genotype == hybrid
    changed = [layer for layer in (0, 1) if layers[layer] != "full"]
    assert [fit.layer for fit in aligned.fits] == changed
    assert all(fit.after < 0.8 * fit.before for fit in aligned.fits)
    # The weights are those of the network, and outside of the trained mixers those of before.
    found, before = dict(named_leaves(aligned.model.weights)), dict(named_leaves(model.weights))
    net = transformer(model.config, hybrid)
    shapes = dict(named_leaves(jax.eval_shape(net.init, jax.random.key(0))))
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in shapes.items()}
    for leaf, value in before.items():
        if not any(leaf.startswith(f"blocks/{layer}/mixer") for layer in changed):
            np.testing.assert_array_equal(found[leaf], value)
    assert np.isfinite(aligned.model(TOKENS[:1])).all()


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_the_loss_is_that_of_the_layer_in_the_model(name):
    """One sequence, by the definition: what the second layer reads and gives in the checkpoint."""
    model = df.load_pretrained(FOLDERS / name)
    hybrid = genotype("full", "local(window=2)")
    (fit,) = align(model, hybrid, TOKENS[:1], Alignment(steps=1, batch=1)).fits
    valid = jnp.ones((1, 16), bool)
    ends = nnx.merge(ends_of(model.config, model.genotype), weights_of_ends(model.weights))
    x, _ = ends.embedded(jnp.asarray(TOKENS[:1]), valid)
    first = nnx.merge(block_of(model.config, model.genotype, 0), model.weights["blocks"][0])
    x = first(x, valid, None, train=False, key=None)
    outputs = []
    for kind in (model.genotype, hybrid):
        second = nnx.merge(block_of(model.config, kind, 1), model.weights["blocks"][1])
        y = second.mixer(second.read(x), valid, None, train=False, key=None)
        outputs.append(np.asarray(y[0], np.float64))
    teacher, student = outputs
    want = ((student - teacher) ** 2).sum() / ((teacher - teacher.mean(0)) ** 2).sum()
    np.testing.assert_allclose(fit.before, want, rtol=1e-4)


def test_what_is_the_same_attention_has_no_loss():
    model = df.load_pretrained(FOLDERS / "llama")
    fits = align(model, genotype("local(window=31)", "full"), TOKENS, QUICK).fits
    assert fits[0].before < 1e-10
    assert fits[0].size == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("text", ["gated_delta", "uniform"])
def test_outputs_begin_with_the_size_that_fits_best(name, text):
    """Of what is not trained, no other factor of W_o is closer to the checkpoint."""
    model = df.load_pretrained(FOLDERS / name)
    still = Alignment(steps=1, batch=8, rate=1e-12, own_rate=1e-12)
    aligned = align(model, genotype(text, "full"), TOKENS, still)
    (fit,) = aligned.fits
    assert fit.after < fit.before
    valid = jnp.ones(TOKENS.shape, bool)
    ends = nnx.merge(ends_of(model.config, model.genotype), weights_of_ends(model.weights))
    x, _ = ends.embedded(jnp.asarray(TOKENS), valid)

    def output(model, factor):
        weights = model.weights["blocks"][0]
        projections = weights["mixer"]["projections"][0]
        projections = {**projections, "o": factor * projections["o"]}
        weights = {**weights, "mixer": {**weights["mixer"], "projections": {0: projections}}}
        block = nnx.merge(block_of(model.config, model.genotype, 0), weights)
        return np.asarray(block.mixer(block.read(x), valid, None, train=False, key=None))

    teacher = output(model, 1.0)
    errors = [((output(aligned.model, f) - teacher) ** 2).sum() for f in (0.9, 1.0, 1.1)]
    assert errors[1] < min(errors[0], errors[2])


@pytest.mark.parametrize("text", ["window_linear(window=3)", "linear(feature='hedgehog')"])
def test_feature_maps_are_trained_from_the_weights_of_the_checkpoint(text):
    model = df.load_pretrained(FOLDERS / "llama")
    hybrid = genotype(text, "full")
    still = Alignment(steps=1, rate=1e-12, own_rate=1e-12)
    mixers = []
    for options in (still, QUICK):
        aligned = align(model, hybrid, TOKENS, options)
        mixers.append(aligned.model.weights["blocks"][0]["mixer"])
    (fit,) = aligned.fits
    assert fit.after < 0.8 * fit.before
    before = model.weights["blocks"][0]["mixer"]["projections"][0]
    for name in "qkv":
        np.testing.assert_allclose(mixers[0]["projections"][0][name], before[name], atol=1e-9)
    for first, last in zip(*(jax.tree.leaves(mixer["own"]) for mixer in mixers), strict=True):
        assert np.abs(np.asarray(last) - np.asarray(first)).max() > 1e-3


def test_the_rate_of_what_no_checkpoint_has_trained_is_its_own():
    model = df.load_pretrained(FOLDERS / "llama")
    hybrid = genotype("window_linear(window=3)", "full")
    options = Alignment(steps=3, rate=1e-12, own_rate=1e-2)
    mixer = align(model, hybrid, TOKENS, options).model.weights["blocks"][0]["mixer"]
    before = model.weights["blocks"][0]["mixer"]["projections"][0]
    np.testing.assert_allclose(mixer["projections"][0]["q"], before["q"], atol=1e-9)
    start = df.parse("window_linear(window=3)").init(jax.random.key(0), Shape(32, 4, 6, 24))
    assert np.abs(np.asarray(mixer["own"][0]["window"]) - start["window"]).max() > 1e-3


def test_an_aligned_model_is_written_and_read(tmp_path):
    model = df.load_pretrained(FOLDERS / "llama")
    aligned = align(model, genotype("gated_delta", "full"), TOKENS, QUICK).model
    saved = df.save_pretrained(aligned, tmp_path / "out")
    assert saved.reason.startswith("transformers has no class with gated_delta")
    again = df.load_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.weights, aligned.weights)


def test_an_untrained_model_is_the_checkpoint_with_new_parameters():
    model = df.load_pretrained(FOLDERS / "llama")
    hybrid = genotype("window_linear(window=3)", "full")
    start = untrained(model, hybrid, seed=3)
    named, before = dict(named_leaves(start.weights)), dict(named_leaves(model.weights))
    for leaf, value in before.items():
        np.testing.assert_array_equal(named[leaf], value)
    assert {name.split("/")[3] for name in set(named) - set(before)} == {"own"}
    still = Alignment(steps=1, rate=1e-12, own_rate=1e-12, seed=3)
    aligned = align(model, hybrid, TOKENS, still).model.weights
    np.testing.assert_allclose(
        aligned["blocks"][0]["mixer"]["own"][0]["W_q"], named["blocks/0/mixer/own/0/W_q"], atol=1e-9
    )
    assert np.isfinite(start(TOKENS[:1])).all()


def test_the_same_seed_gives_the_same_weights():
    model = df.load_pretrained(FOLDERS / "llama")
    hybrid = genotype("gated_delta", "full")
    first, second = (align(model, hybrid, TOKENS, QUICK).model.weights for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_what_cannot_be_aligned_is_one_line():
    model = df.load_pretrained(FOLDERS / "llama")
    hybrid = genotype("gated_delta", "full")
    for arguments, message in (
        ((genotype("full"), TOKENS), "the genotype has 1 layers of 4 heads"),
        ((genotype("linear", "full"), TOKENS), "does not work with rotary positions"),
        ((hybrid, TOKENS[0]), r"tokens must be whole numbers \[S, N\]"),
        ((hybrid, TOKENS[:0]), r"tokens must be whole numbers \[S, N\]"),
        ((hybrid, TOKENS + 48), "tokens must be from 0 to 47"),
        ((hybrid, np.ones((1, 33), int)), "the model takes at most 32 tokens"),
    ):
        with pytest.raises(InputError, match=message):
            align(model, *arguments)
    for options in ({"steps": 0}, {"batch": 0}, {"rate": 0.0}, {"own_rate": 0.0}):
        with pytest.raises(InputError, match="must be"):
            Alignment(**options)
