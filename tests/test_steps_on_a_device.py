"""Steps on a device: the state is donated, and between two reports nothing waits for the device."""

import jax
import pytest
from jax._src.array import ArrayImpl

from dartformer import config as configs
from dartformer.data.batches import batches
from dartformer.space.genotype import Genotype
from dartformer.stages import search
from dartformer.stages.study import Study
from dartformer.training.loop import Schedule, fit
from dartformer.training.step import begin


@pytest.fixture
def study_of(tiny):
    def of(**values):
        named = {name.replace("__", "."): value for name, value in values.items()}
        small = {"space.candidates": ("linear", "uniform"), "model.layers": 1}
        configs.override(tiny, {**small, **named})
        return Study(tiny)

    return of


def parts_of(study, kind):
    """Step, state and stream of a search or of a training."""
    if kind == "search":
        (group,) = search.groups(study)
        step = search.compiled_step(study, group)
        return step, search.initial(study, group), search.stream(study, group)
    heads = (study.space.candidates[0],) * study.model.heads
    program = study.program(Genotype((heads,) * study.model.layers))
    stream = program.feed(batches(study.parts["train"], study.config.data.batch_size, 0))
    state = program.form.enter(begin(program.network, program.optimizer, 0))
    return program.step, state, stream


def size_of(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return leaf.nbytes


@pytest.mark.parametrize("kind", ["training", "search", "second"])
def test_a_step_writes_its_state_over_the_old_one(kind, study_of, compile_quickly):
    study = study_of()
    if kind == "second":
        study = study_of(search__strategy__hypergradient="second")
    step, state, stream = parts_of(study, kind.replace("second", "search"))
    batch = next(stream)
    step.prepare(state, batch)
    (program,) = step.programs.values()
    bytes_of_state = sum(map(size_of, jax.tree.leaves(state)))
    assert program.memory_analysis().alias_size_in_bytes == bytes_of_state
    step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.weights))


class Impatient:
    """A step whose loss is read at once."""

    def __init__(self, step):
        self.step, self.prepare = step, step.prepare
        self.place, self.spread = step.place, step.spread

    @property
    def compile_seconds(self):
        return self.step.compile_seconds

    def __call__(self, state, batch):
        state, metrics = self.step(state, batch)
        float(metrics["loss"])
        return state, metrics


@pytest.mark.parametrize("kind", ["training", "search"])
def test_only_reports_wait_for_the_device(kind, study_of, tmp_path, monkeypatch, compile_quickly):
    study, steps, waits = study_of(), [], []
    step, state, stream = parts_of(study, kind)
    read = ArrayImpl._value

    def value(array):
        waits.append(len(steps))
        return read.fget(array)

    def watched(function):
        def run(*arguments):
            steps.append(None)
            return function(*arguments)

        return run

    schedule = Schedule(12, log_every=5, eval_every=12, checkpoint_every=7)
    monkeypatch.setattr(ArrayImpl, "_value", property(value))
    monkeypatch.setattr(type(step), "__call__", watched(type(step).__call__))
    fit("quick", step, state, stream, schedule, tmp_path / "quick")
    assert len(steps) == 12
    assert set(waits) - {0} == {5, 7, 10, 12}
    # The same with a loss that is read in every step, which is what this test is to find.
    step, state, stream = parts_of(study, kind)
    steps.clear()
    waits.clear()
    fit("slow", Impatient(step), state, stream, schedule, tmp_path / "slow")
    assert set(range(1, 13)) <= set(waits)
