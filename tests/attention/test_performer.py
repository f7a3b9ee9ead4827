"""What is special to `performer`: its random features, their mean, and when they are redrawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention import Inputs, parse
from dartformer.attention.conformance.case import quick
from dartformer.attention.performer import projections
from dartformer.errors import InputError

KEYS = jax.random.split(jax.random.key(3), 2)


def example(length=40, width=8, scale=1.0, heads=2):
    random = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(random.standard_normal((1, length, heads, width)), jnp.float32)
        for _ in range(3)
    )
    return Inputs(scale * q, scale * k, v, head_keys=jax.random.split(jax.random.key(3), heads))


def test_rows_are_orthogonal_in_each_block_and_as_long_as_those_of_a_gaussian():
    w = np.asarray(
        quick(lambda k: projections(k, 20, 8, jnp.float32))(
            jax.random.split(jax.random.key(0), 500)
        )
    )
    assert w.shape == (500, 20, 8)
    for rows in (w[:, :8], w[:, 8:16], w[:, 16:]):
        unit = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        np.testing.assert_allclose(
            unit @ unit.swapaxes(1, 2),
            np.broadcast_to(np.eye(rows.shape[1]), (500, *2 * rows.shape[1:2])),
            atol=1e-5,
        )
    assert np.square(w).sum(-1).mean() == pytest.approx(8, rel=0.02)  # chi square of 8 degrees
    assert np.square(w).sum(-1).var() == pytest.approx(16, rel=0.1)
    np.testing.assert_allclose(w.reshape(-1, 8).T @ w.reshape(-1, 8) / 10_000, np.eye(8), atol=0.06)
    assert (
        abs(w.mean(axis=0)).max() < 5 * 500**-0.5
    )  # no preferred direction: the signs of a QR are mended


def test_the_draw_is_that_of_the_head_in_any_precision_and_company():
    def draw(keys, dtype):
        return np.asarray(quick(lambda keys: projections(keys, 20, 8, dtype))(keys))

    w = draw(KEYS, jnp.float32)
    np.testing.assert_array_equal(draw(KEYS[::-1], jnp.float32), w[::-1])
    with jax.enable_x64(True):
        np.testing.assert_allclose(draw(KEYS, jnp.float64), w, atol=1e-5)


def test_features_estimate_the_kernel_of_the_softmax():
    inputs = example(length=6, scale=0.5, heads=400)
    same = inputs.q[0, :, :1], inputs.k[0, :, :1]
    inputs = Inputs(
        *(jnp.broadcast_to(x[None], (1, 6, 400, 8)) for x in same),
        inputs.v,
        head_keys=inputs.head_keys,
    )
    log_q, log_k = quick(lambda i: parse("performer(features=16)").phi(i, i.head_keys))(inputs)
    q = inputs.q * 8**-0.25
    log_q = log_q - jnp.sum(q * q, -1, keepdims=True) / 2
    actual = np.asarray(jnp.exp(log_q[0, :, None] + log_k[0]).mean(-1))  # [6, 6, 400]
    expected = np.exp(np.einsum("nd,kd->nk", *(x[:, 0] for x in same)) / 8**0.5)
    error = actual.std(-1) / 400**0.5
    assert (abs(actual.mean(-1) - expected) < 5 * error).all()
    assert error.max() < 0.1


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_the_gradient_of_large_queries_and_keys_does_not_die(scale):
    inputs = example(length=256, width=16, scale=scale)

    def slope(spec):
        attention = parse(spec)
        return np.linalg.norm(
            quick(
                jax.grad(
                    lambda q: jnp.sum(
                        attention({}, Inputs(q, inputs.k, inputs.v, head_keys=inputs.head_keys))
                        ** 2
                    )
                )
            )(inputs.q)
        )

    assert slope("performer(features=64)") > 0.1 * slope(
        "full"
    )  # with epsilon 1e-4: 6e-6 and 7e-10 of it


def test_redraw_is_of_the_step_and_the_head_and_of_training_only():
    inputs = example()
    never, always, sometimes = (
        parse(f"performer(features=8, redraw={r})") for r in (0.0, 1.0, 0.25)
    )
    data = jax.random.key_data

    draw = quick(
        lambda a, keys, key: data(
            a.keys(Inputs(inputs.q, inputs.k, inputs.v, head_keys=keys), True, key)
        ),
        static_argnums=0,
    )

    def drawn(attention, key, keys=inputs.head_keys):
        return np.asarray(draw(attention, keys, key))

    fixed, step = np.asarray(data(inputs.head_keys)), jax.random.key(7)
    np.testing.assert_array_equal(drawn(never, step), fixed)
    assert (drawn(always, step) != fixed).any(-1).all()
    np.testing.assert_array_equal(
        drawn(always, step), drawn(always, step)
    )  # what a resumed training draws
    np.testing.assert_array_equal(
        drawn(always, step, inputs.head_keys[::-1]), drawn(always, step)[::-1]
    )
    assert (drawn(always, jax.random.key(8)) != drawn(always, step)).any()
    changed = quick(jax.vmap(lambda key: (data(sometimes.keys(inputs, True, key)) != fixed).any()))
    many = changed(jax.random.split(step, 400))
    assert np.mean(many) == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 400) ** 0.5)
    run = quick(lambda key, train: always({}, inputs, train=train, key=key), static_argnums=1)
    np.testing.assert_array_equal(run(step, False), run(jax.random.key(8), False))
    assert (run(step, True) != run(step, False)).any()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "performer(features=0)",
            "performer: features must be a whole number of at least 1, got 0",
        ),
        ("performer(redraw=1.5)", "performer: redraw must be a number from 0 to 1, got 1.5"),
        (
            "performer(kernel='cosine')",
            "performer: option 'kernel' must be 'softmax' or 'relu', got 'cosine'",
        ),
    ],
)
def test_options_out_of_range(spec, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(spec)
    assert "\n" not in str(caught.value)


def test_what_it_draws_from_must_be_given():
    q = jnp.ones((1, 5, 2, 4))
    with pytest.raises(InputError, match=r"is random, but inputs.head_keys is None"):
        parse("performer")({}, Inputs(q, q, q))
    with pytest.raises(InputError, match="redraws its features in training and needs a PRNG key"):
        parse("performer(redraw=0.5)")({}, example(), train=True)
