"""What docs/strategies.md says, held against the tables and done as it stands there."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dartformer
from dartformer import config as configs
from dartformer.config.presets import strategy_defaults
from dartformer.errors import InputError
from dartformer.strategies import EXTRAS, HYPERGRADIENTS, STRATEGIES, Problem, make

PAGE = (Path(__file__).resolve().parents[2] / "docs/strategies.md").read_text()


def rows(heading):
    """Cells of the table that begins with a column of that name."""
    lines = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_tables_are_those_of_the_program():
    found = {row[0].strip("`"): row[1:] for row in rows("strategy")}
    assert list(found) == list(STRATEGIES)
    for name, (_, learns, computes, together, then) in found.items():
        made = make(name, {})
        assert then == f"`{strategy_defaults(name).rule}`"
        assert learns.startswith("yes") == made.traits.alphas
        if made.traits.supernet:
            assert together.startswith("yes") == made.vectorises
            assert computes.startswith("one") == made.sampled
    assert [row[0].strip("`").split("(")[0] for row in rows("extra")] == list(EXTRAS)
    for name in HYPERGRADIENTS:
        assert f"`{name}" in PAGE
    for name, extra in EXTRAS.items():
        *_, refused = next(row for row in rows("extra") if name in row[0])
        refused = refused.replace("one-hot samples", "`gumbel`, `proxyless`")
        if refused == "the same":
            refused = "`gumbel`, `proxyless`, `sigmoid`, `single_level`"
        for strategy in STRATEGIES:
            if make(strategy, {}).traits.alphas:

                def put(strategy=strategy, extra=extra):
                    return make(strategy, {"extras": (extra(),)})

                if f"`{strategy}`" in refused:
                    with pytest.raises(InputError, match="does not work with"):
                        put()
                else:
                    put()


def test_a_strategy_of_ones_own(monkeypatch):
    monkeypatch.setattr(STRATEGIES, "registered", {})
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/strategies.md", "exec"), {"__name__": "docs"})
    config = dartformer.defaults(strategy="sharp")
    configs.override(
        config, {"search.strategy.temperature": "0.25", "search.strategy.extras": "drop"}
    )
    made = configs.build(config).search.strategy.built
    shape = (1, 1, 4)
    strategy = made(
        Problem(
            lambda w, m, b, k: (jnp.sum(w**2) - m[0, 0, 2], {}),
            shape,
            shape,
            optax.sgd(0.1),
            optax.adam(0.1),
            30,
        )
    )
    state = strategy.init(jax.random.key(0), jnp.ones(2))
    np.testing.assert_allclose(
        strategy.mixture(state._replace(alphas=jnp.array([[[0.0, 0.0, 1.0, 0.0]]])))[0, 0, 2],
        np.exp(4) / (np.exp(4) + 3),
        rtol=1e-5,
    )
    step = jax.jit(strategy.step)
    for _ in range(30):
        state, _ = step(state, None, None)
    assert strategy.mixture(state).tolist() == [[[0, 0, 1, 0]]]
