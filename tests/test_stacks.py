"""Layers as an axis of the weights: the same model, and the same states from earlier checkpoints."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import parse
from dartformer.models.sizes import TransformerConfig
from dartformer.models.stacks import (
    BLOCKS,
    STACKED,
    by_layer,
    is_stacked,
    leads_with_layers,
    stacked,
)
from dartformer.models.supernet import inherit, supernet
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.training.checkpoint import Checkpoints, UnreadableCheckpoint
from dartformer.training.devices import MeshLayout, MeshShape

CONFIG = TransformerConfig(
    vocabulary=11, classes=3, length=12, layers=4, heads=2, head_dim=4, model_dim=8, mlp_dim=16
)
SPACE = SearchSpace((parse("full"), parse("linear"), parse("synthesizer")), 4, 2, "layer")
TOKENS = np.arange(24).reshape(2, 12) % 11
VALID = np.ones((2, 12), bool)


@pytest.fixture(scope="module")
def looped():
    return supernet(CONFIG, SPACE)


@pytest.fixture(scope="module")
def weights(looped):
    return looped.init(jax.random.key(0))


def same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_a_loop_has_stacked_weights(weights):
    """They are those that layers one by one begin with, too."""
    assert is_stacked(weights)
    unrolled = supernet(dataclasses.replace(CONFIG, scan=0), SPACE)
    same(by_layer(weights), unrolled.init(jax.random.key(0)))
    same(stacked(by_layer(weights)), weights)


def test_either_form_is_read(looped, weights):
    """By a loop and layer by layer, with the same gradients."""
    unrolled = supernet(dataclasses.replace(CONFIG, scan=0), SPACE)
    mixture = jax.nn.softmax(jax.random.normal(jax.random.key(1), SPACE.mixture_shape))

    def loss(network):
        return jax.jit(jax.grad(lambda w: (network.apply(w, TOKENS, VALID, mixture) ** 2).sum()))

    expected = stacked(loss(unrolled)(by_layer(weights)))
    for network in (looped, unrolled):
        for given in (weights, by_layer(weights)):
            got = stacked(loss(network)(given))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, expected)


def test_a_derived_model_inherits_from_either(looped, weights):
    rows = [[parse("full")] * 2, [parse("linear")] * 2, [parse("synthesizer")] * 2]
    genotype = Genotype((*map(tuple, rows), (parse("linear"),) * 2))
    cut = inherit(weights, SPACE, genotype)
    same(cut, inherit(by_layer(weights), SPACE, genotype))
    derived = transformer(CONFIG, genotype)
    logits = looped.apply(weights, TOKENS, VALID, SPACE.mixture(genotype))
    np.testing.assert_allclose(derived.apply(cut, TOKENS, VALID), logits, atol=2e-5)


def test_the_axis_of_layers_is_not_divided():
    layout = MeshLayout(MeshShape(1, 4, 1), smallest=16)
    specs = {
        # The longest axis is that of the layers.
        (8, 4, 4): layout._spec((8, 4, 4), with_layers=True),
        # A layer has fewer numbers than `smallest`.
        (8, 8): layout._spec((8, 8), with_layers=True),
    }
    assert tuple(specs[8, 4, 4]) == (None, None, "fsdp")
    assert tuple(specs[8, 8]) == (None, None)
    assert tuple(layout._spec((8, 4, 4), with_layers=False)) == ("fsdp", None, None)


def test_every_array_of_layers_is_known_by_its_path(weights):
    """In the moments of an optimizer, too."""
    import optax

    state = (weights, optax.adam(1e-3).init(weights))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert leads_with_layers(path) == (STACKED in str(path))
        if leads_with_layers(path):
            assert leaf.shape[0] == CONFIG.layers


def of_seeds(tree, seeds):
    return jax.tree.map(lambda leaf: jnp.stack([leaf + i for i in range(seeds)]), tree)


@pytest.mark.parametrize("seeds", [0, 3])
def test_checkpoints_of_version_0_1_are_read(weights, seeds, tmp_path):
    """They hold the layers one by one; of several seeds their axis comes before that of the layers."""
    old, new = by_layer(weights), weights
    if seeds:
        old = of_seeds(old, seeds)
        new = of_seeds(new, seeds)
    assert BLOCKS in old
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"weights": old}, {})
        same(checkpoints.latest({"weights": new}).state, {"weights": new})


def test_as_many_seeds_as_layers_are_refused(weights, tmp_path):
    """Nothing says which axis of such an array is which."""
    old, new = of_seeds(by_layer(weights), 4), of_seeds(weights, 4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"weights": old}, {})
        with pytest.raises(UnreadableCheckpoint, match="another structure"):
            checkpoints.latest({"weights": new})


def test_a_step_holds_no_second_copy_of_the_layers():
    """Of weights layer by layer it makes a stack, which is as large as they are."""
    looped = supernet(CONFIG, SearchSpace((parse("linear"), parse("identity")), 4, 2, "layer"))
    weights = jax.eval_shape(looped.init, jax.random.key(0))
    mixture = np.full((4, 2, 2), 0.5, np.float32)

    def step(weights):
        gradient = jax.grad(lambda w: (looped.apply(w, TOKENS, VALID, mixture) ** 2).sum())(weights)
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient)

    temporaries = []
    for state in (weights, jax.eval_shape(by_layer, weights)):
        program = jax.jit(step, donate_argnums=0).lower(state).compile()
        temporaries.append(program.memory_analysis().temp_size_in_bytes)
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(weights[STACKED]))
    assert temporaries[0] < temporaries[1] - 0.9 * size
