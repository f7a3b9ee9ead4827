"""What is seen of a supernet's branches is what an independent computation gives."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer import config as configs
from dartformer import diagnostics
from dartformer.attention import parse
from dartformer.attention.full import Full
from dartformer.models.branches import observer, squared_norm
from dartformer.models.mixers import Projections
from dartformer.models.sizes import TransformerConfig
from dartformer.models.supernet import supernet
from dartformer.space.search_space import SearchSpace
from dartformer.stages.layout import Workdir
from dartformer.stages.search import search
from dartformer.stages.study import Study
from dartformer.training.metric import ACCURACY

CONFIG = TransformerConfig(
    vocabulary=8, classes=3, length=6, layers=1, heads=2, head_dim=4, model_dim=8, mlp_dim=8
)


def batch():
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(1, 8, (3, 6)).astype(np.int32),
        "valid": np.arange(6) < np.array([[6], [4], [1]]),
        "label": np.array([0, 1, 2], np.int32),
    }


def test_the_squared_norm_is_of_each_head():
    x = jnp.arange(16.0).reshape(1, 2, 2, 4)
    np.testing.assert_allclose(squared_norm(x), jnp.sum(x**2, (0, 1, 3)))
    assert squared_norm(x.astype(jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("projections", ["shared", "separate"])
def test_branches_against_another_way(projections, monkeypatch):
    space = SearchSpace(tuple(map(parse, ("full", "identity", "uniform"))), 1, 2, "layer")
    mixture = jnp.array([[[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]])
    net, given = supernet(CONFIG, space, projections), batch()
    weights = net.init(jax.random.key(0))
    seen = jax.jit(observer(CONFIG, space, projections, ACCURACY.losses, ACCURACY.of_batch))(
        weights, mixture, given
    )
    assert seen.rms.shape == (1, 3, 2)
    assert np.isnan(seen.gradient[0, 2]).all()
    np.testing.assert_array_equal(seen.gradient[0, 1], 0)

    # Of these only `full` reads queries and keys: its gradients are those of all. `identity` gives
    # the values back.
    inputs, values = Projections.inputs, []

    # What is differentiated here goes into the branches from outside, which the sum that skips does
    # not allow.
    def plain(branches, active, given, own, fixed):
        return sum(branch(given, mine, fixed) for branch, mine in zip(branches, own, strict=True))

    monkeypatch.setattr(sys.modules["dartformer.models.supernet"], "sum_of_active", plain)

    def total(q, k):
        def shifted(self, *arguments, **options):
            made = inputs(self, *arguments, **options)
            values.append(made.v)
            return dataclasses.replace(made, q=made.q + q, k=made.k + k)

        monkeypatch.setattr(Projections, "inputs", shifted)
        outputs = net.apply(weights, given["tokens"], given["valid"], mixture)
        return ACCURACY.mean(outputs, given["label"]), values[0]

    zeros = jnp.zeros((3, 6, 2, 4))
    (dq, dk), v = jax.jit(jax.grad(total, (0, 1), has_aux=True))(zeros, zeros)
    want = jnp.sqrt(jnp.sum(dq**2 + dk**2, (0, 1, 3))) / mixture[0, :, 0]
    np.testing.assert_allclose(seen.gradient[0, 0], want, rtol=1e-4)
    if projections == "shared":
        np.testing.assert_allclose(
            seen.rms[0, 1], jnp.sqrt(jnp.mean(v[given["valid"]] ** 2, (0, 2))), rtol=1e-5
        )


def test_a_search_logs_what_it_observes(tiny, tmp_path):
    configs.override(
        tiny,
        {
            "search.observe": True,
            "model.layers": 1,
            "search.steps": 6,
            "log.eval_every": 3,
            "space.granularity": "layer",
        },
    )
    with Workdir(tmp_path, tiny) as workdir:
        found = search(Study(tiny), workdir)
        lines = [line for line in found.history if "branch_rms" in line]
        assert [line["step"] for line in lines] == [3, 6]
        assert np.shape(lines[0]["branch_gradient"]) == (1, 3)
        assert np.isfinite([line["curvature"] for line in lines]).all()
        names = [finding.name for finding in found.diagnostics.findings]
        assert names[-3:] == ["output RMS", "query and key gradients", "curvature"]
        assert found.diagnostics.curvature == pytest.approx(lines[-1]["curvature"], rel=1e-5)
        assert (
            np.shape(found.history[0]["entropy_rows"])
            == np.shape(found.history[0]["margin_rows"])
            == (1, 1)
        )
        assert any("valid_discretisation_gap" in line for line in found.history)


def test_a_branch_rescaled_changes_its_rms_and_no_normalised_mixture(monkeypatch):
    """Without a norm the mixture measures scale; with one a constant is nothing."""
    given, mixture, call = batch(), jnp.full((1, 2, 3), 1 / 3), Full.__call__
    space = SearchSpace(tuple(map(parse, ("full", "identity", "uniform"))), 1, 2, "layer")
    net, outputs, seen, verdicts = supernet(CONFIG, space), {}, {}, {}
    weights = net.init(jax.random.key(0))
    for by in (1.0, 1e2, 1e-5):
        monkeypatch.setattr(Full, "__call__", lambda *a, by=by, **options: by * call(*a, **options))
        if by >= 1:
            outputs[by] = jax.jit(lambda *a: net.apply(*a))(
                weights, given["tokens"], given["valid"], mixture
            )
        seen[by] = jax.jit(observer(CONFIG, space, "shared", ACCURACY.losses, ACCURACY.of_batch))(
            weights, mixture, given
        ).rms
        verdicts[by] = [
            diagnostics.loudness(seen[by].mean(-1), space, norm).fine for norm in (True, False)
        ]
    np.testing.assert_allclose(outputs[1e2], outputs[1.0], rtol=1e-3)
    np.testing.assert_allclose(seen[1e2][0, 0], 1e2 * seen[1.0][0, 0], rtol=1e-4)
    np.testing.assert_allclose(seen[1e2][0, 1:], seen[1.0][0, 1:], rtol=1e-4)
    assert verdicts == {1.0: [True, True], 1e2: [True, False], 1e-5: [False, False]}
