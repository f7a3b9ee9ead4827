"""The training loop and its checkpoints, on a problem without a network."""

import dataclasses
import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dartformer.data.batches import batches
from dartformer.data.splits import ArraySplit
from dartformer.errors import InputError
from dartformer.models.transformer import Network
from dartformer.training import devices
from dartformer.training.checkpoint import Checkpoints
from dartformer.training.devices import MeshLayout, MeshShape, resolved
from dartformer.training.evaluate import Evaluator
from dartformer.training.finite import not_finite
from dartformer.training.log import read_metrics
from dartformer.training.loop import Diverged, Schedule, ZippedStream, fit
from dartformer.training.metric import ACCURACY
from dartformer.training.step import CompiledStep


class Toy(NamedTuple):
    step: jax.Array
    key: jax.Array
    total: jax.Array
    moments: optax.OptState


def toy_step(state, batch):
    total = state.total + batch["label"].sum() * 0.5
    finite = jnp.isfinite(total)
    return state._replace(step=state.step + 1, total=total), {"loss": total, "finite": finite}


def toy():
    moments = optax.adam(0.1).init({"w": jnp.arange(3.0), "n": {0: jnp.ones(2)}})
    return Toy(jnp.zeros((), jnp.int32), jax.random.key(7), jnp.zeros(()), moments)


def stream(seed=0):
    split = ArraySplit(np.ones((10, 4), np.int32), np.full(10, 4), np.arange(10))
    return ZippedStream(batches(split, 3, seed), batches(split, 3, seed + 1))


def first(step):
    return CompiledStep(lambda state, pair: step(state, pair[0]))


def run(folder, steps, evaluate=None, step=toy_step, **schedule):
    return fit(
        "toy",
        first(step),
        toy(),
        stream(),
        Schedule(steps, **{"log_every": 2, "eval_every": 4, "checkpoint_every": 4, **schedule}),
        folder,
        evaluate=evaluate,
        rates={"rate": optax.constant_schedule(0.5)},
    )


def test_stopping_and_continuing_is_as_if_nothing_had_happened(tmp_path):
    whole = run(tmp_path / "whole", 20)
    run(tmp_path / "parts", 8)
    continued = run(tmp_path / "parts", 20)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(continued.state), strict=True):
        assert (a == b).all()
    logs = [
        [{k: v for k, v in line.items()} for line in read_metrics(tmp_path / p / "metrics.jsonl")]
        for p in ("whole", "parts")
    ]
    assert logs[0] == logs[1]
    again = run(tmp_path / "parts", 20)  # finished: nothing is run
    assert float(again.state.total) == float(whole.state.total)


@pytest.mark.parametrize("pauses", [(), (8, 12), (3, 10, 13)])
@pytest.mark.parametrize(
    ("scores", "patience", "end"),
    [
        ([1, 2, 3, 4, 5], 1, 20),  # it improves to the end
        ([1, 3, 2, 2, 5], 2, 16),
        ([1, 3, 2, 3, 5], 2, 16),  # an equal score is no better one
        ([1, 3, 2, 4, 5], 2, 20),
        ([5, 4, 3, 2, 1], 1, 8),
        ([5, 4, 3, 2, 1], 0, 20),
    ],
)
def test_patience_ends_a_training_wherever_it_paused(tmp_path, scores, patience, end, pauses):
    def evaluate(state):
        # Between the evaluations of the schedule only those of a pause stand, which do not count.
        number, rest = divmod(int(state.step), 4)
        if rest:
            return {"accuracy": 9.0}
        return {"accuracy": float(scores[number - 1])}

    for pause in (*pauses, None, None):  # twice: it stays where it ended
        fitted = run(tmp_path, 20, evaluate, pause=pause, patience=patience)
    assert int(fitted.state.step) == end
    assert fitted.evaluations[-1]["step"] == end


class Counted:
    """A stream that ends, and counts what was drawn of it."""

    def __init__(self, batches):
        self.batches, self.count = batches, 0

    def __next__(self):
        if self.count == self.batches:
            raise InputError(f"ended after {self.count} batches")
        self.count += 1
        return ({"label": np.full(3, self.count)},)

    def get_state(self):
        return self.count

    def set_state(self, state):
        self.count = state


def test_one_batch_is_drawn_ahead_and_checkpoints_do_not_count_it(tmp_path):
    """A stream that ends too early costs no step: the last one is reported and saved first."""
    source, step, seen = Counted(6), first(toy_step), []

    def evaluate(state):
        seen.append((int(state.step), source.count))
        return {"loss": 0.0, "accuracy": 0.0}

    def train(steps):
        schedule = Schedule(steps, log_every=1, eval_every=2, checkpoint_every=2)
        return fit("toy", step, toy(), source, schedule, tmp_path / "run", evaluate=evaluate)

    train(4)
    assert seen == [(2, 3), (4, 4)]  # nothing is drawn behind the last step
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.latest(toy()).extra["stream"] == 4
    with pytest.raises(InputError, match="ended after 6 batches"):
        train(8)
    assert seen[2:] == [(6, 6)]
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        restored = checkpoints.latest(toy())
    assert (restored.step, restored.extra["stream"]) == (6, 6)
    assert float(restored.state.total) == 0.5 * 3 * sum(range(1, 7))


def test_both_streams_advance():
    both = stream()
    seen = [next(both) for _ in range(6)]
    for i in (0, 1):
        assert len({tuple(pair[i]["label"]) for pair in seen}) > 3


def test_divergence_names_the_step_and_the_rate_and_keeps_the_last_good_checkpoint(tmp_path):
    def bad(state, batch):
        return toy_step(
            state._replace(total=jnp.where(state.step == 9, jnp.nan, state.total)), batch
        )

    with pytest.raises(Diverged, match=r"not finite at step 10 \(loss nan; rate 0\.5\)"):
        run(tmp_path, 20, step=bad)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored = checkpoints.latest(toy())
    assert restored.step == 8
    assert np.isfinite(restored.state.total)
    assert max(line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")) == 8


@pytest.mark.parametrize("leaf", ["total", "moments"])
def test_a_finite_loss_saves_no_state_that_is_not(tmp_path, leaf):
    def bad(state, batch):
        state, _ = toy_step(state, batch)
        broken = jnp.where(state.step == 8, jnp.inf, state.total)
        if leaf == "moments":
            adam, rest = state.moments
            broken = adam._replace(mu=jax.tree.map(lambda mu: mu + 0 * broken, adam.mu)), rest
        return state._replace(**{leaf: broken}), {"loss": jnp.ones(()), "finite": jnp.array(True)}

    for _ in range(2):  # the second run resumes from the checkpoint before, not from the bad one
        with pytest.raises(Diverged, match=rf"toy: {leaf}.* is not finite at step 8 \(loss 1"):
            run(tmp_path, 20, step=bad)
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            restored = checkpoints.latest(toy())
        assert restored.step == 4
        assert not not_finite(restored.state)


def test_a_training_in_memory_is_checked_at_its_end():
    def bad(state, batch):
        state, _ = toy_step(state, batch)
        total = jnp.where(state.step == 6, jnp.nan, state.total)
        return state._replace(total=total), {"loss": jnp.ones(()), "finite": jnp.array(True)}

    with pytest.raises(Diverged, match=r"total is not finite at step 6 .* Try a lower") as error:
        run(None, 6, step=bad)
    assert "checkpoint" not in str(error.value)


def test_a_saved_state_that_is_not_finite_is_named(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(4, toy()._replace(total=jnp.array(jnp.nan)), {})
    with pytest.raises(InputError, match=r"total is not finite in the checkpoint of step 4"):
        run(tmp_path, 8)


def test_an_undefined_score_picks_no_checkpoint(tmp_path):
    def evaluate(state):
        accuracy = {4: 0.5, 8: float("nan"), 12: 0.4}.get(int(state.step))
        return {"loss": 1.0, "accuracy": accuracy}

    run(tmp_path, 12, evaluate=evaluate)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.best(toy()).step == 4


def test_checkpoints_give_back_every_leaf_and_keep_last_and_best(tmp_path):
    state = toy()
    scores = {1: 0.1, 2: 0.9, 3: 0.2, 4: 0.3, 5: 0.3}
    with Checkpoints(tmp_path) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(
                step, state._replace(total=jnp.array(float(step))), {"at": step}, score
            )
    with Checkpoints(tmp_path) as checkpoints:
        latest, best = checkpoints.latest(state), checkpoints.best(state)
    assert (latest.step, latest.extra) == (5, {"at": 5})
    assert (best.step, float(best.state.total)) == (2, 2.0)
    assert jax.tree.structure(latest.state) == jax.tree.structure(state)
    assert (jax.random.bits(latest.state.key) == jax.random.bits(state.key)).all()
    assert sorted(int(p.name) for p in (tmp_path / "steps").iterdir()) == [2, 4, 5]


@pytest.mark.parametrize(
    ("damage", "files_of"),
    [
        # A third of the files each; saving a step for each of them takes minutes.
        ("truncate", slice(0, None, 3)),
        ("flip", slice(1, None, 3)),
        pytest.param("truncate", slice(None), marks=pytest.mark.slow),
        pytest.param("flip", slice(None), marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage, files_of, capfd):
    with Checkpoints(tmp_path / "kept") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, toy()._replace(total=jnp.array(float(step))), {})
    files = [
        p.relative_to(tmp_path / "kept")
        for p in (tmp_path / "kept/steps/2").rglob("*")
        if p.is_file()
    ]
    assert len(files) > 4
    for file in sorted(files)[files_of]:
        shutil.copytree(tmp_path / "kept", tmp_path / "copy")
        data = bytearray((tmp_path / "copy" / file).read_bytes())
        if damage == "truncate":
            data = data[: len(data) // 2]
        else:
            data[len(data) // 2] ^= 0x55
        (tmp_path / "copy" / file).write_bytes(data)
        said = []
        with Checkpoints(tmp_path / "copy") as checkpoints:
            restored = checkpoints.latest(toy(), warn=said.append)
            assert (restored.step, float(restored.state.total)) == (1, 1.0)
            assert "checkpoint of step 2" in said[0]
            assert "falling back to the one before" in said[0]
            checkpoints.save(2, toy(), {})  # the step is made again
        with Checkpoints(tmp_path / "copy") as checkpoints:
            assert checkpoints.latest(toy()).step == 2
        shutil.rmtree(tmp_path / "copy")
    assert "Traceback" not in capfd.readouterr().err


def test_the_log_is_json_without_nan(tmp_path):
    run(tmp_path, 6, evaluate=lambda state: {"accuracy": 0.5, "loss": float("nan")})
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the log"))
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_a_step_is_compiled_for_each_shape_of_a_batch():
    step = CompiledStep(lambda state, batch: (state + batch.sum(), {}))
    state = jnp.zeros(())
    for n in (2, 3, 2, 3):
        state, _ = step(state, jnp.ones(n))
    assert float(state) == 10
    assert len(step.programs) == 2


def test_cross_entropy_leaves_negative_labels_out():
    logits = jnp.array([[2.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    losses, correct, weight = ACCURACY.losses(logits, jnp.array([0, 0, -1]))
    np.testing.assert_allclose(losses, [np.log1p(np.exp(-2)), np.log1p(np.exp(2)), 0], rtol=1e-6)
    np.testing.assert_array_equal(correct, [1, 0, 0])
    np.testing.assert_array_equal(weight, [1, 1, 0])


@pytest.mark.parametrize("size", [1, 3, 4, 10, 50])
def test_evaluation_counts_every_example_once(size):
    """Whatever the batch size: the accuracy is the share of examples whose label is their first
    token."""
    tokens = np.array([[1, 1], [2, 1], [0, 1], [1, 1], [2, 2], [2, 2], [1, 1]])
    labels = np.array([1, 1, 0, 0, 2, 2, 0])
    net = Network(
        lambda key: {}, lambda weights, tokens, valid, mixture: jax.nn.one_hot(tokens[:, 0], 3)
    )
    found = Evaluator(net, size)({}, ArraySplit(tokens, np.full(7, 2), labels))
    assert found["accuracy"] == pytest.approx(4 / 7)


@pytest.mark.parametrize("size", [2, 3, 50])
def test_evaluation_in_buckets_is_that_of_whole_examples_in_their_order(size):
    tokens = np.array([[1, 0, 0, 0], [3, 1, 1, 1], [2, 1, 0, 0], [0, 0, 0, 0], [1, 2, 2, 0]])
    seen = set()

    def apply(weights, tokens, valid, mixture):
        seen.add(tokens.shape[1])
        return jax.nn.one_hot(jnp.sum(tokens * valid, 1), 9)

    split = ArraySplit(tokens, np.array([1, 4, 2, 0, 3]), np.array([1, 6, 0, 0, 0]))
    found = [
        Evaluator(Network(lambda key: {}, apply), size, buckets=buckets).per_example({}, split)
        for buckets in (1, 2)
    ]
    np.testing.assert_array_equal(found[1]["accuracy"], [1, 1, 0, 1, 0])
    np.testing.assert_array_equal(found[0]["loss"], found[1]["loss"])
    assert seen == ({2, 4} if size < 5 else {4})


@pytest.mark.parametrize(
    ("wanted", "processes", "shape"),
    [
        (MeshShape(), 1, MeshShape(8, 1, 1)),
        (MeshShape(3), 1, MeshShape(3, 1, 1)),
        (MeshShape(fsdp=0), 2, MeshShape(1, 8, 1)),
        (MeshShape(fsdp=2), 2, MeshShape(4, 2, 1)),
        (MeshShape(2, 0, 2), 2, MeshShape(2, 2, 2)),
    ],
)
def test_meshes(wanted, processes, shape):
    assert resolved(wanted, 24, 8, processes) == shape


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a slice that is not here."""

    id: int
    slice_index: int
    process_index: int = 0
    # JAX asks a TPU where its chips stand.
    platform: str = "none"
    device_kind: str = "none"


def on_slices(monkeypatch, shape, slices=2, seeds_lead=False):
    """The slices of the devices of a mesh of eight, which come in any order."""
    chips = [Chip(number, number % slices) for number in range(8)]
    monkeypatch.setattr(devices, "devices", lambda: chips)
    mesh = MeshLayout(shape, seeds_lead=seeds_lead).mesh
    return np.vectorize(lambda chip: chip.slice_index)(mesh.devices).tolist()


def test_what_exchanges_least_lies_across_slices(monkeypatch):
    assert on_slices(monkeypatch, MeshShape(4, 2, 1)) == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert on_slices(monkeypatch, MeshShape(2, 4, 1)) == [[0] * 4, [1] * 4]
    seeds = on_slices(monkeypatch, MeshShape(1, 4, 2), seeds_lead=True)
    assert seeds == [[[0] * 4], [[1] * 4]]
    assert on_slices(monkeypatch, MeshShape(1, 8, 1), slices=1) == [[0] * 8]
    # Copies of the state do not suffice for all slices, so that a state is divided across them.
    divided = on_slices(monkeypatch, MeshShape(2, 4, 1), slices=4)
    assert divided == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert on_slices(monkeypatch, MeshShape(1, 8, 1)) == [[0] * 4 + [1] * 4]
    with pytest.raises(InputError, match=r"in each slice or host, got \[2, 3, 3\]"):
        on_slices(monkeypatch, MeshShape(1, 8, 1), slices=3)


def test_one_process_uses_the_devices_that_divide_a_batch():
    assert resolved(MeshShape(), 12, 8) == MeshShape(6, 1, 1)
    assert resolved(MeshShape(), 7, 4) == MeshShape(1, 1, 1)


@pytest.mark.parametrize(
    ("wanted", "processes", "message"),
    [
        (MeshShape(3, 1, 3), 1, "needs 9 devices, and there are 8"),
        (MeshShape(9), 1, "needs 9 devices, and there are 8"),
        (MeshShape(2, 2), 2, "uses 4 devices, and the 2 processes have 8"),
        (MeshShape(5), 1, "must be a multiple of 5"),
        (MeshShape(fsdp=5), 1, "must be a multiple of 5"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(wanted, processes, message):
    with pytest.raises(InputError, match=message):
        resolved(wanted, 32, 8, processes)


@pytest.mark.parametrize(("broken", "latest"), [(3, 2), (2, 3), (1, 3)])
def test_a_checkpoint_with_an_empty_score_is_passed_over(tmp_path, broken, latest):
    with Checkpoints(tmp_path) as kept:
        for step, score in ((1, 0.9), (2, 0.5), (3, 0.4)):
            kept.save(step, {"w": jnp.full(4, float(step))}, {}, score)
    (tmp_path / f"steps/{broken}/metrics/metrics").write_bytes(b"")
    with Checkpoints(tmp_path) as kept:
        assert kept.latest({"w": jnp.zeros(4)}).step == latest
    assert (tmp_path / f"damaged/{broken}-0").exists()


def test_a_disk_that_fails_for_a_moment_damages_no_checkpoint(tmp_path, monkeypatch):
    def stale(self, step):
        raise OSError(116, "Stale file handle")

    with Checkpoints(tmp_path) as kept:
        kept.save(1, {"w": jnp.ones(4)}, {})
    with Checkpoints(tmp_path) as kept:
        monkeypatch.setattr(Checkpoints, "_files", stale)
        with pytest.raises(InputError, match=r"step 1 in .*: Stale file handle. Try again"):
            kept.latest({"w": jnp.zeros(4)})
        monkeypatch.undo()
        assert kept.latest({"w": jnp.zeros(4)}).step == 1


def test_checkpoints_of_another_structure_stay_where_they_are(tmp_path):
    with Checkpoints(tmp_path) as kept:
        for step in (1, 2):
            kept.save(step, {"w": jnp.ones((4, 2))}, {}, 0.5)
    for like, problem in (
        ({"w": jnp.ones((4, 2)), "x": jnp.ones(3)}, "x is expected and not saved"),
        ({"v": jnp.ones((4, 2))}, "w is saved and not expected"),
        ({"w": jnp.ones((4, 3))}, r"w is float32\[4, 2\], expected float32\[4, 3\]"),
        ({"w": jnp.ones((4, 2), jnp.bfloat16)}, r"expected bfloat16\[4, 2\]"),
    ):
        with Checkpoints(tmp_path) as kept, pytest.raises(InputError, match=problem):
            kept.latest(like)
    assert not (tmp_path / "damaged").exists()


def test_the_next_best_checkpoint_replaces_a_damaged_one(tmp_path):
    state = {"w": jnp.ones(4)}
    with Checkpoints(tmp_path) as kept:
        for step, score in ((1, 0.9), (2, 0.5), (3, 0.4)):
            kept.save(step, state, {}, score)
    (tmp_path / "steps/1/state/manifest.ocdbt").write_bytes(b"")
    lines = []
    with Checkpoints(tmp_path) as kept:
        assert kept.best(state, lines.append).step == 2
        assert kept.latest(state).step == 3
    assert len(lines) == 1
    assert "checkpoint of step 1" in lines[0]
