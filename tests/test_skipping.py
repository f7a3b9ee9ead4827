"""A sum of branches some of which are skipped: against the plain sum, in every kind of derivative,
and in work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer.attention.conformance.case import arrays, primitives, quick
from dartformer.models.skipping import sum_of_active

GIVEN = {"a": jnp.arange(6.0).reshape(2, 3) / 5, "b": jnp.ones((2, 3)) / 3}
OWN = [jnp.array(0.7), {"w": jnp.array([0.1, -0.4, 0.9])}, ()]
FIXED = {"noise": jax.random.key(0), "mask": jnp.array([[True, False, True]]), "none": None}
BRANCHES = [
    lambda given, own, fixed: jnp.sin(own * given["a"]) * fixed["mask"],
    lambda given, own, fixed: given["a"] * jnp.exp(given["b"] * own["w"]),
    lambda given, own, fixed: given["b"] ** 3 * jax.random.normal(fixed["noise"], (2, 3)),
]


def both(active):
    def skipping(given, own):
        return sum_of_active(BRANCHES, jnp.asarray(active), given, own, FIXED)

    def plain(given, own):
        parts = zip(BRANCHES, own, active, strict=True)
        return sum((f(given, mine, FIXED) for f, mine, on in parts if on), jnp.zeros((2, 3)))

    return skipping, plain


@pytest.mark.parametrize(
    "active", [(True, True, True), (False, True, False), (False, False, False)]
)
def test_every_derivative_is_that_of_the_plain_sum(active):
    def derivatives(function):
        def loss(given, own):
            return (jnp.cos(function(given, own)) ** 2).sum()

        def after_a_step(given, own):
            step = jax.grad(loss, 1)(given, own)
            return loss(given, jax.tree.map(lambda w, g: w - 0.3 * g, own, step))

        gradient = jax.grad(loss, (0, 1))
        return (
            function(GIVEN, OWN),
            gradient(GIVEN, OWN),
            jax.grad(after_a_step, (0, 1))(GIVEN, OWN),
            jax.jvp(gradient, (GIVEN, OWN), (GIVEN, OWN))[1],
        )

    got, want = quick(lambda: tuple(map(derivatives, both(active))))()
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, atol=1e-6)


def test_one_program_for_each_choice_and_many_choices_at_once():
    def gradient(active):
        return jax.grad(
            lambda given: (sum_of_active(BRANCHES, active, given, OWN, FIXED) ** 2).sum()
        )(GIVEN)

    choices = jnp.array([[True, False, False], [False, True, True]])
    together, alone = quick(jax.vmap(gradient))(choices), quick(gradient)
    for i, choice in enumerate(choices):
        for t, a in zip(jax.tree.leaves(together), jax.tree.leaves(alone(choice)), strict=True):
            np.testing.assert_allclose(t[i], a, atol=1e-6)


def test_a_skipped_branch_makes_no_array_forward_or_backward():
    """In the traced gradient, no side of a `cond` that skips makes anything as large as what is
    given."""

    def branch(given, own, fixed):
        return given * own

    def gradient(active, given, own):
        def loss(given, own):
            return sum_of_active([branch] * 3, active, given, own, None).sum()

        return jax.grad(loss, (0, 1))(given, own)

    traced = jax.make_jaxpr(gradient)(jnp.ones(3, bool), jnp.ones(1000), [jnp.ones(())] * 3)
    conds = [e for e in _equations(traced.jaxpr) if e.primitive.name == "cond"]
    assert len(conds) == 6
    for cond in conds:
        skipped, taken = cond.params["branches"]  # in the order of the index: False, True
        assert max(arrays(skipped), default=0) < 1000 <= max(arrays(taken))
        assert "mul" in set(primitives(taken)) - set(primitives(skipped))


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "cond":
            for value in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")
            ):
                if hasattr(value, "jaxpr"):
                    yield from _equations(value.jaxpr)
                elif hasattr(value, "eqns"):
                    yield from _equations(value)
