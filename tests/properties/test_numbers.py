"""Every number is finite or declared undefined, and every rate that is logged is the rate taken."""

import math

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartformer.strategies import Problem, make
from dartformer.training import optimizer

quick = settings(derandomize=True, max_examples=15, deadline=None)

SHARES = st.sampled_from([0.0, 0.02, 0.05, 0.3, 0.5, 1.0])
OPTIMIZERS = st.builds(
    optimizer.Optimizer,
    name=st.just("sgd"),
    learning_rate=st.sampled_from([1e-4, 0.1, 1.0]),
    schedule=st.sampled_from(optimizer.SCHEDULES),
    warmup=SHARES,
    final=SHARES,
    weight_decay=st.just(0.0),
    clip=st.just(0.0),
    momentum=st.just(0.0),
)


# Rates.


@quick
@given(OPTIMIZERS, st.integers(1, 40))
def test_every_step_takes_the_rate_of_the_schedule(options, steps):
    chain, rate = optimizer.build(options, steps), optimizer.schedule(options, steps)
    state = chain.init(jnp.zeros(()))
    for step in range(steps + 3):
        updates, state = chain.update(jnp.ones(()), state, jnp.zeros(()))
        assert -float(updates) == pytest.approx(float(rate(step)))
        assert 0 <= float(rate(step)) <= options.learning_rate * (1 + 1e-6)
    assert float(rate(0)) > 0
    warmup = round(options.warmup * steps)
    if options.schedule != "rsqrt" and warmup:
        assert float(rate(0)) == pytest.approx(options.learning_rate / warmup)
        assert float(rate(warmup - 1)) == pytest.approx(options.learning_rate)


@quick
@given(
    OPTIMIZERS,
    st.integers(1, 24),
    st.sampled_from(["darts", "single_level", "sigmoid"]),
    st.sampled_from([0.0, 0.25, 0.33, 0.9, 1.0]),
)
def test_alphas_take_the_rate_that_is_logged(options, steps, name, share):
    slope = jnp.array([1.0, 0.0])
    strategy = make(name, {"warmup": share, "spread": 0.0})
    problem = Problem(
        lambda weights, mixture, batch, key: (jnp.sum(mixture * slope) + jnp.sum(weights), {}),
        (1, 1, 2),
        (1, 1, 2),
        optimizer.build(options, steps),
        optimizer.build(options, steps),
        steps,
    )
    search = strategy(problem)
    step = jax.jit(search.step)
    state = search.init(jax.random.key(0), jnp.ones(1))
    rate = strategy.alphas_rate(optimizer.schedule(options, steps), steps)
    rates = []
    for number in range(steps):
        slopes = jax.jacobian(lambda a, s=state: search.mixture(s._replace(alphas=a))[0, 0, 0])(
            state.alphas
        )
        moved, _ = step(state, jnp.zeros(1), jnp.zeros(1))
        change = float((state.alphas - moved.alphas)[0, 0, 0])
        taken = float(rate(number))
        if name != "sigmoid":  # whose own penalty adds to the gradient
            assert change == pytest.approx(taken * float(slopes[0, 0, 0]), rel=1e-3, abs=1e-6)
        assert (change == 0) == (taken == 0)
        rates.append(taken)
        state = moved
    resting = strategy.warmup_steps(steps)
    assert rates[:resting] == [0.0] * resting
    if resting < steps:
        # The schedule begins where the alphas do, not in its middle.
        assert rates[resting] == pytest.approx(float(optimizer.schedule(options, steps)(0)))
    assert all(map(math.isfinite, rates))
