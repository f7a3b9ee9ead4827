"""Callbacks: when they are called, what they see, and that False stops without losing anything."""

import jax
import pytest
from test_train import run

import dartformer as df
from dartformer.training.callbacks import Moment, Stopped, calling
from dartformer.training.checkpoint import Checkpoints


def scores(state):
    return {"loss": 1.0, "accuracy": float(state.total) / 1000}


def test_a_training_calls_after_every_step_and_every_evaluation(tmp_path):
    steps, evaluations = [], []

    def on_step(moment):
        steps.append((moment.training, moment.step, moment.steps, moment.numbers["loss"]))

    def on_evaluation(moment):
        # Its checkpoint is on the disk, and whole.
        with Checkpoints(moment.folder / "checkpoints") as checkpoints:
            saved = checkpoints.extra()["evaluations"][-1]
        assert saved["step"] == moment.step == moment.numbers["step"]
        evaluations.append((moment.step, moment.numbers["accuracy"]))

    with calling(on_step, on_evaluation):
        # More often than it would save by itself.
        fitted = run(tmp_path, 10, scores, checkpoint_every=100)
    assert [step for _, step, _, _ in steps] == list(range(1, 11))
    assert {name for name, _, _, _ in steps} == {"toy"}
    assert steps[-1][3] == float(fitted.state.total)
    assert [step for step, _ in evaluations] == [4, 8, 10]
    # Outside, nothing is called.
    run(tmp_path, 14, scores)
    assert len(steps) == 10


@pytest.mark.parametrize("at", [1, 3, 4, 9, 10])
@pytest.mark.parametrize("name", ["on_step", "on_evaluation"])
def test_false_stops_and_the_same_call_goes_on(tmp_path, name, at):
    """As if nothing had happened, wherever it was."""
    whole = run(tmp_path / "whole", 10, scores)

    def refuse(moment):
        return moment.step < at

    with pytest.raises(Stopped, match="everything is saved") as caught, calling(**{name: refuse}):
        run(tmp_path / "parts", 10, scores)
    stopped = caught.value.moment
    assert isinstance(stopped, Moment)
    step = at
    if name == "on_evaluation":
        step = min(end for end in (4, 8, 10) if end >= at)
    assert (stopped.training, stopped.step, stopped.steps) == ("toy", step, 10)
    continued = run(tmp_path / "parts", 10, scores)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(continued.state), strict=True):
        assert (a == b).all()
    assert continued.evaluations == whole.evaluations


@pytest.mark.parametrize("answer", [None, True, 0, ""])
def test_only_false_stops(tmp_path, answer):
    with calling(lambda moment: answer, lambda moment: answer):
        assert int(run(tmp_path, 4, scores).state.step) == 4


def test_an_error_of_a_callback_is_the_users(tmp_path):
    """Such as Optuna's TrialPruned; the checkpoint of the evaluation is there."""

    def prune(moment):
        raise LookupError("pruned")

    with pytest.raises(LookupError, match="pruned"), calling(on_evaluation=prune):
        run(tmp_path, 10, scores)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.extra()["evaluations"][-1]["step"] == 4
    assert int(run(tmp_path, 10, scores).state.step) == 10


def test_callbacks_do_not_mix():
    """Those of an inner call are its own, and the outer ones are back after it."""
    from dartformer.training.callbacks import current

    def outer(moment):
        pass

    def inner(moment):
        pass

    with calling(on_step=outer):
        with calling():
            assert current().on_step is outer
        with calling(on_evaluation=inner):
            assert current() == (None, inner)
        assert current() == (outer, None)
    assert current() == (None, None)
    assert df.Stopped is Stopped
