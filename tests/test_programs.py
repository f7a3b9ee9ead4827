"""One program for a whole space trains and evaluates as each genotype's own."""

import jax
import numpy as np
import pytest

from dartformer import config as configs
from dartformer.data.batches import batches
from dartformer.errors import InputError
from dartformer.stages.study import Study
from dartformer.training.step import begin

CANDIDATES = ("full", "linear", "conv", "synthesizer")
STEPS = 4


def study_of(tiny, program, granularity):
    values = {
        "space.candidates": CANDIDATES,
        "space.granularity": granularity,
        "retrain.program": program,
        "retrain.steps": STEPS,
    }
    configs.override(tiny, values)
    return Study(tiny)


def trained(study, genotype):
    """The weights after a few steps, as they are kept, and their scores on valid."""
    program = study.program(genotype)
    state = program.form.enter(begin(program.network, program.optimizer, 0))
    stream = program.feed(batches(study.parts["train"], 4, 0, 1))
    losses = []
    for _ in range(STEPS):
        state, metrics = program.step(state, next(stream))
        losses.append(float(metrics["loss"]))
    state = program.form.leave(state)
    return state, losses, program.evaluator.evaluate(state.weights, study.parts["valid"])


@pytest.mark.parametrize("granularity", ["layer", "head"])
def test_a_shared_program_trains_as_an_own_one(tiny, granularity):
    own, shared = study_of(tiny, "own", granularity), study_of(tiny, "shared", granularity)
    rng = np.random.default_rng(1)
    for genotype in (own.space.random(rng), own.space.mixed()):
        expected_state, expected_losses, expected = trained(own, genotype)
        state, losses, evaluation = trained(shared, genotype)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
        # Moments, too: a training that goes on in another program must not notice.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-4),
            (state.weights, state.optimizer),
            (expected_state.weights, expected_state.optimizer),
        )
        np.testing.assert_allclose(
            evaluation.examples["loss"], expected.examples["loss"], rtol=2e-3
        )


def test_one_program_serves_all_genotypes(tiny):
    study = study_of(tiny, "shared", "layer")
    steps = {id(study.program(genotype).step) for genotype in study.space.homogeneous()}
    assert len(steps) == 1


def test_short_trainings_of_many_candidates_share_a_program(tiny):
    assert study_of(tiny, "auto", "layer").shares_program
    configs.override(tiny, {"retrain.steps": 10**9})
    assert not Study(tiny).shares_program
    configs.override(tiny, {"retrain.steps": 4, "space.candidates": ("full", "linear")})
    assert not Study(tiny).shares_program


def test_a_program_that_does_not_exist_is_refused(tiny):
    with pytest.raises(InputError, match=r"retrain\.program.*'both'"):
        study_of(tiny, "both", "layer")
