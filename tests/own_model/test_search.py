"""`df.search`, `df.derive`, `df.replace` and `df.race` in a module that is not this package's."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dartformer as df
from dartformer.modules.derive import derive, fine_tuner
from dartformer.modules.functions import Functions
from dartformer.modules.places import places_of, set_mixtures
from dartformer.report.models import title_of
from dartformer.strategies import STRATEGIES, make
from dartformer.training.callbacks import Stopped
from dartformer.training.loop import Diverged

CANDIDATES = ("full", "uniform", "identity")
N, F, E = 5, 3, 8

pytestmark = pytest.mark.usefixtures("compile_quickly")


class Block(nnx.Module):
    def __init__(self, heads, rngs, candidates=CANDIDATES):
        self.attention = df.nn.MixedAttention(candidates, E, heads, rngs=rngs)
        self.norm = nnx.BatchNorm(E, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(self.norm(self.attention(x)))


class Model(nnx.Module):
    """Two mixed layers, in a list and under a name, with 2 and 4 heads, batch norms and dropout."""

    def __init__(self, rngs, heads=(4, 2)):
        self.embed = nnx.Linear(F, E, rngs=rngs)
        self.zeroth = nnx.List([Block(heads[0], rngs)])
        self.last = Block(heads[1], rngs)
        self.head = nnx.Linear(E, 2, rngs=rngs)

    def __call__(self, x):
        x = self.last(self.zeroth[0](self.embed(x)))
        return self.head(x.mean(1))


class Small(nnx.Module):
    """One mixed layer and nothing else to compile, for what is not about the module."""

    def __init__(self, rngs):
        self.attention = df.nn.MixedAttention(("identity", "uniform"), F, 1, rngs=rngs)

    def __call__(self, x):
        return self.attention(x).mean(1)[:, :2]


def loss(model, batch, rngs):
    x, labels = batch
    return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()


def examples(count, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, N, F)).astype(np.float32)
    return x, (x[:, :, 0].mean(1) > 0).astype(np.int32)


DATA = {"train": examples(64), "valid": examples(32, 1)}


def run(model=None, data=DATA, **options):
    options = {"steps": 6, "eval_every": 3, "log_every": 2, "batch_size": 16, **options}
    return df.search(model or Model(nnx.Rngs(0)), options.pop("loss", loss), data, **options)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A finished search with a workdir."""
    return run(workdir=tmp_path_factory.mktemp("search"), space="head")


def test_what_a_search_gives_and_writes(found):
    assert found.places == ("last.attention", "zeroth.0.attention")
    # The greatest common divisor of 4 and 2 heads.
    assert found.mixture.shape == found.alphas.shape == (2, 2, 3)
    np.testing.assert_allclose(found.mixture.sum(-1), 1, atol=1e-6)
    assert [line["step"] for line in found.history] == [2, 3, 3, 4, 6, 6]
    lines = (found.path / "search/metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(found.history)
    assert set(found.diagnosis.alone) == set(CANDIDATES)
    assert found.verdict
    record = json.loads((found.path / "search/alphas.json").read_text())
    np.testing.assert_allclose(record["mixture"], found.mixture, atol=1e-6)


def test_the_same_call_continues_and_gives_the_same(found, tmp_path):
    again = run(workdir=found.path, space="head")
    assert again.compile_seconds == found.compile_seconds
    np.testing.assert_array_equal(again.mixture, found.mixture)
    with pytest.raises(Stopped, match="step 3 of 6"):
        run(workdir=tmp_path, space="head", on_evaluation=lambda moment: moment.step < 3)
    resumed = run(workdir=tmp_path, space="head")
    np.testing.assert_allclose(resumed.mixture, found.mixture, atol=1e-6)
    assert [line["step"] for line in resumed.history] == [2, 3, 3, 4, 6, 6]
    with pytest.raises(df.InputError, match="made with something else"):
        run(workdir=tmp_path, space="layer")


def test_a_step_is_called_with_its_loss():
    seen = []
    with pytest.raises(Stopped, match="without a workdir nothing is saved"):
        run(
            Small(nnx.Rngs(0)),
            on_step=lambda moment: seen.append(moment.numbers["loss"]) or len(seen) < 2,
        )
    assert len(seen) == 2
    assert all(map(math.isfinite, seen))


def test_the_module_stays_as_it_is():
    model = Model(nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(nnx.clone(model), nnx.Param))
    run(model, steps=2)
    jax.tree.map(
        np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model, nnx.Param)), before
    )


@pytest.mark.parametrize("name", [name for name in STRATEGIES.names() if name != "race"])
def test_every_strategy_runs_on_a_module(name):
    """Through the interface alone: a step changes weights, and the mixture is `[L, H, K]`."""
    strategy = make(name, {})
    model = nnx.List([df.nn.MixedAttention(CANDIDATES, E, 2, rngs=nnx.Rngs(0)) for _ in range(2)])

    def square(model, batch, rngs):
        for layer in model:
            batch = layer(batch)
        return (batch**2).mean()

    x = examples(16)[0][..., :1].repeat(E, -1)
    found = df.search(
        model, square, {"train": x, "valid": x}, strategy=strategy, steps=2, batch_size=4
    )
    assert found.mixture.shape == (2, 2, 3)
    assert math.isfinite(found.history[0]["loss"])
    genotype = df.derive(found)
    assert (len(genotype.layers), genotype.heads) == (2, 2)


@pytest.mark.parametrize("extra", ["drop(keep=1, stages=2)", "beta_decay", "entropy", "smoothing"])
def test_extras(extra):
    found = run(strategy={"name": "darts", "warmup": 0.0, "extras": [extra]}, steps=3)
    assert np.isfinite(found.mixture).all()


@pytest.mark.parametrize("rule", ["argmax", "masked_drop(fine_tune=2)", "sample", "top_k(2)"])
def test_rules(found, rule):
    genotype = df.derive(found, rule)
    assert len(genotype.layers) == 2
    assert (found.path / "genotype.json").read_text() == genotype.to_json()
    plain = df.replace(found.model, genotype)
    assert not [node for _, node in nnx.iter_graph(plain) if isinstance(node, df.nn.MixedAttention)]


def test_fine_tuning_is_compiled_once_for_all_mixtures(monkeypatch):
    """`masked_drop` fine-tunes at many mixtures."""
    small, traces = run(Small(nnx.Rngs(0)), steps=2), []

    def counted(*given):
        traces.append(1)
        return loss(*given)

    monkeypatch.setattr(small.searched.functions, "loss_of", counted)
    tune, before = fine_tuner(small), small.searched.weights
    uniform, hard = small.mixture, np.array([[[1.0, 0.0]]], np.float32)
    tuned = [tune(before, mixture, 2, 0) for mixture in (uniform, hard)]
    assert len(traces) == 1
    # The weights of the search stay, and each mixture has its own.
    assert not jax.tree.leaves(before)[0].is_deleted()
    same = jax.tree.map(lambda a, b: bool((a == b).all()), *tuned)
    assert not all(jax.tree.leaves(same))


def test_ties_go_by_the_margin_of_the_search(found):
    for margin, tied in ((1.0, 4), (0.0, 0)):
        searched = dataclasses.replace(found.searched, tie_margin=margin)
        derived = derive(dataclasses.replace(found, searched=searched), "argmax")
        assert len(derived.ties) == tied


def test_plain_layers_give_the_outputs_of_the_one_hot_mixture(found):
    genotype = df.derive(found, "argmax")
    model, x = found.model, jnp.asarray(examples(8)[0])
    set_mixtures(model, found.space.mixture(genotype))
    plain = df.replace(model, genotype)
    np.testing.assert_allclose(plain(x), model(x), atol=1e-5)
    for old, new in (
        (model.last.norm, plain.last.norm),
        (model.zeroth[0].norm, plain.zeroth[0].norm),
    ):
        np.testing.assert_array_equal(old.mean[...], new.mean[...])
        assert np.asarray(old.mean[...]).any()  # taken from training batches before evaluation
    assert [type(block.attention) for block in (plain.zeroth[0], plain.last)] == [
        df.nn.Attention
    ] * 2
    # With a row for each head of a layer, too.
    equal = Model(nnx.Rngs(0), heads=(2, 2))
    full = df.Genotype((("full", "uniform"), ("identity", "full")))
    rows = tuple(tuple(map(df.parse, row)) for row in full.layers)
    plain = df.replace(equal, df.Genotype(rows))
    assert plain.last.attention.row == rows[0]
    assert plain.zeroth[0].attention.row == rows[1]


def test_a_race(found):
    race = df.race(
        found, lambda genotype, seed: Model(nnx.Rngs(seed)), steps=4, seeds=(0, 1), neighbours=1
    )
    names = {entrant.name for entrant in race.record.entrants}
    assert {"derived", "random"} <= names
    assert sum(name.startswith("homogeneous.") for name in names) >= 2
    assert any(name.startswith("neighbour") for name in names)
    assert race.record.winner in race.scores
    assert race.verdict[0].startswith(f"{race.record.winner} wins the race")
    x = jnp.asarray(examples(8)[0])
    assert race.model(x).shape == (8, 2)
    assert not [n for _, n in nnx.iter_graph(race.model) if isinstance(n, df.nn.MixedAttention)]
    assert 0 < race.record.share < 1
    rows = records(race.table())
    assert {row["name"] for row in rows} == names
    assert [row["name"] for row in rows if row["winner"]] == [race.record.winner]


def records(table):
    """The rows of a table, with and without pandas."""
    if isinstance(table, list):
        return table
    return table.to_dict("records")


def test_the_table_of_a_search(found):
    rows = records(found.table())
    assert len(rows) == 4
    assert {name: rows[3][name] for name in ("layer", "place", "head")} == {
        "layer": 1,
        "place": "zeroth.0.attention",
        "head": 1,
    }
    assert [rows[3][name] for name in CANDIDATES] == found.mixture[1, 1].tolist()


def test_a_search_shows_itself(found, tmp_path):
    cells = found._repr_html_()
    assert cells.count("<svg") == 2
    assert "loss on valid" in cells
    file = found.report()
    assert file == found.path / "report.html"
    page = file.read_text()
    assert "The search gives the largest weights to" in page
    assert "df.race" in page
    for place in found.places:
        assert f"<code>{place}</code>" in page
    assert 'data-chart="trajectories"' in page
    assert 'data-chart="search_curves"' in page
    assert "Can you trust this search?" in page
    assert "of processor time" in page
    assert "http://" not in page.split("<script", 1)[0]
    assert found.report(tmp_path) == tmp_path / "report.html"
    shorter = dataclasses.replace(found, path=None)
    with pytest.raises(df.InputError, match="has no workdir"):
        shorter.report()


@pytest.mark.parametrize("evaluate", [None, lambda module, batches: 0.5])
def test_a_race_shows_itself(found, tmp_path, evaluate):
    race = df.race(
        found,
        lambda genotype, seed: Model(nnx.Rngs(seed)),
        steps=2,
        seeds=(0, 1),
        neighbours=1,
        finalists=2,
        evaluate=evaluate,
    )
    page = race.report(tmp_path / "page.html").read_text()
    assert page.index("wins the race") < page.index("The winner of the race")
    assert "homogeneous." not in page.split("<script", 1)[0].lower()
    for entrant in race.record.entrants:
        assert title_of(entrant.name) in page
    assert 'data-chart="race"' in page
    assert "cost of the race" in page
    cells = race._repr_html_()
    assert "wins the race" in cells
    assert "<th>entrant</th>" in cells


def test_a_strategy_without_architecture_weights_shows_no_mixture(tmp_path):
    single = run(Small(nnx.Rngs(0)), strategy="spos", steps=2)
    page = single.report(tmp_path / "page.html").read_text()
    assert 'data-chart="trajectories"' not in page
    assert "the derivation decides" in page
    assert "<svg" not in single._repr_html_()


def test_a_race_of_plain_models_by_a_score(found):
    """`make_model` may build the plain layers itself; training is then the same."""

    def make(genotype, seed):
        return df.replace(Model(nnx.Rngs(seed)), genotype)

    def accuracy(model, batches):
        right = [np.argmax(model(x), -1) == labels for x, labels in batches]
        return float(np.mean(np.concatenate(right)))

    options = {
        "steps": 2,
        "seeds": (0,),
        "rungs": (),
        "neighbours": 0,
        "genotype": df.derive(found),
    }
    plain = df.race(found, make, evaluate=accuracy, **options)
    assert all(0 <= score <= 1 for scores in plain.scores.values() for score in scores)
    own = df.race(found, make, **options)
    shared = df.race(found, lambda genotype, seed: Model(nnx.Rngs(seed)), **options)
    for name, scores in own.scores.items():
        np.testing.assert_allclose(scores, shared.scores[name], rtol=1e-3)


# Data.


def batches(count=3, seed=0):
    for i in range(count):
        yield examples(8, seed + i)


class Loader:
    """Re-iterable, and can say where it is."""

    def __init__(self, count=3):
        self.count = count

    def __iter__(self):
        return Position(self.count)


class Position:
    def __init__(self, count):
        self.at, self.count = 0, count

    def __iter__(self):
        return self

    def __next__(self):
        if self.at >= self.count:
            raise StopIteration
        self.at += 1
        return examples(8, self.at)

    def get_state(self):
        return b"%d" % self.at

    def set_state(self, state):
        self.at = int(state)


@pytest.mark.parametrize("kind", ["lists", "functions", "loaders"])
def test_iterables_begin_again(kind):
    made = {"lists": list(batches()), "functions": batches, "loaders": Loader()}[kind]
    data = {"weights": made, "alphas": made, "valid": made}
    found = run(Small(nnx.Rngs(0)), data, steps=5)
    assert math.isfinite(found.history[-1]["valid_loss"])


def test_a_loader_that_says_where_it_is_continues_there(tmp_path, capsys):
    data = {"weights": Loader(4), "alphas": Loader(4), "valid": Loader(1)}
    whole = run(Small(nnx.Rngs(0)), data)
    with pytest.raises(Stopped):
        run(Small(nnx.Rngs(0)), data, workdir=tmp_path / "a", on_evaluation=lambda moment: False)
    resumed = run(Small(nnx.Rngs(0)), data, workdir=tmp_path / "a")
    np.testing.assert_allclose(resumed.mixture, whole.mixture, atol=1e-6)
    assert "cannot say where it was" not in capsys.readouterr().err
    data = {name: list(batches()) for name in ("weights", "alphas", "valid")}
    with pytest.raises(Stopped):
        run(Small(nnx.Rngs(0)), data, workdir=tmp_path / "b", on_evaluation=lambda moment: False)
    run(Small(nnx.Rngs(0)), data, workdir=tmp_path / "b")
    assert "data['weights'] cannot say where it was" in capsys.readouterr().err


def test_a_generator_that_ends_early_says_at_which_step():
    data = {"weights": batches(4), "alphas": list(batches()), "valid": list(batches(1))}
    with pytest.raises(df.InputError, match=r"data\['weights'\] ended after 4 batches, at step 5"):
        run(Small(nnx.Rngs(0)), data)


# Bad input: one line each.


class Sharing(nnx.Module):
    def __init__(self):
        self.first = df.nn.MixedAttention(CANDIDATES, E, 2, rngs=nnx.Rngs(0))
        self.second = self.first


class Tied(nnx.Module):
    def __init__(self):
        self.first = df.nn.MixedAttention(CANDIDATES, E, 2, rngs=nnx.Rngs(0))
        self.second = df.nn.MixedAttention(CANDIDATES, E, 2, rngs=nnx.Rngs(0))
        self.second.heads.projections[0].q = self.first.heads.projections[0].q


def with_a_gap(name):
    """The data with one missing number in row 3 of a part."""
    x, labels = DATA[name]
    x = x.copy()
    x[3, 0, 0] = np.nan
    return {**DATA, name: (x, labels)}


def vector(model, batch, rngs):
    return model(batch[0]).mean(-1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), "Linear has no mixed layer"),
        (lambda: places_of(Sharing()), "first and second share parameters"),
        (lambda: places_of(Tied()), "first and second share parameters"),
        (
            lambda: places_of(
                nnx.List([Block(2, nnx.Rngs(0)), Block(2, nnx.Rngs(0), ("full", "linear"))])
            ),
            "must have the same candidates",
        ),
        (lambda: run(loss=vector), r"the loss must be a scalar, got an array \[16\]"),
        (lambda: run(space="heads"), "space must be one of"),
        (lambda: run(strategy="dart"), "dart"),
        (lambda: run(strategy="race"), "Use df.race"),
        (lambda: run(steps=0), "steps must be a whole number"),
        (
            lambda: run(data={"train": examples(8), "valid": examples(8)}),
            "Use a smaller batch_size",
        ),
        (lambda: run(data={"train": examples(64)}), "data needs 'valid'"),
        (lambda: run(data={"weights": examples(64), "valid": examples(8)}), "data needs 'alphas'"),
        (lambda: run(data={"trian": 0}), "no part 'trian'"),
        (lambda: run(data=examples(64)), "data must be a dict"),
        (
            lambda: run(data={"train": (np.zeros((4, 2)), np.zeros(3)), "valid": examples(8)}),
            r"arrays of one length, at least 1, got \[3, 4\]",
        ),
        (
            lambda: run(data={"train": np.array([None]), "valid": examples(8)}),
            "array of Python objects",
        ),
        (
            lambda: run(data={"train": np.array(["a", "b"]), "valid": np.zeros(4)}),
            r"array of texts.*'a'",
        ),
        (
            lambda: run(data={"weights": [["a"]], "alphas": [[0]], "valid": [[0]]}),
            r"data\['weights'\] holds an array of texts",
        ),
        (
            lambda: run(data={"train": np.float32(1), "valid": np.zeros(4)}),
            "must be arrays or an iterable",
        ),
        (
            lambda: run(data={"train": (np.zeros(4), np.float32(1)), "valid": np.zeros(4)}),
            r"data\['train'\] holds a single number",
        ),
        (lambda: run(data={"train": "digits.npz", "valid": np.zeros(4)}), "got str"),
        (lambda: run(data={"train": examples(1), "valid": examples(8)}), "has one example"),
        (
            lambda: run(data={"train": examples(64), "alphas": examples(8), "valid": examples(8)}),
            "data has 'train' and 'alphas'",
        ),
        (
            lambda: run(data=dict.fromkeys(("weights", "alphas", "valid"), examples(32))),
            "hold the same array",
        ),
        (
            lambda: run(data=with_a_gap("train")),
            r"data\['train'\]\[0\] has missing values.*1 of 64",
        ),
        (lambda: run(data=with_a_gap("valid")), r"data\['valid'\]\[0\].*row 3 of batch 1"),
        (lambda: run(loss=lambda *_: None), "got a NoneType"),
        (lambda: run(loss=lambda *given: (loss(*given), {})), "got a tuple"),
        (lambda: run(loss=lambda *given: loss(*given) * 1j), "must be a real number"),
        (lambda: run(loss="mse"), "loss must be a function"),
        (lambda: df.search(Model, loss, DATA), "a flax NNX module, a loss and data; got <class"),
        (lambda: df.race(Model, loss), "race takes a config"),
        (lambda: run(seed=-1), "seed must be a whole number of at least 0"),
        (lambda: run(seed=2**32), "a seed has 32 bits"),
        (lambda: run(strategy={"name": "darts", "extras": ["drop(keep=9)"]}), "drop"),
        (lambda: run(strategy=3), "strategy must be a name"),
        (lambda: run(weights_optimizer="adam"), "weights_optimizer must be an optimizer"),
        (lambda: run(alphas_optimizer=0.1), "alphas_optimizer must be an optimizer"),
        (lambda: run(trackers=["wandbb"]), "unknown trackers 'wandbb'"),
        (lambda: run(on_step=3), "on_step must be a function"),
        (lambda: run(tie_margin="wide"), "tie_margin must be a number"),
        (lambda: run(data={"train": list(batches()), "valid": examples(8)}), "Pass 'weights'"),
        (lambda: run(data={"train": examples(64), "valid": 3}), "iterable of batches"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(df.InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_missing_values_in_batches_of_a_list():
    made = list(batches(4))
    made[2][0][5] = np.nan
    data = {"weights": list(batches(4)), "alphas": made, "valid": list(batches(1))}
    with pytest.raises(df.InputError, match=r"data\['alphas'\]\[0\].*first in row 5 of batch 3"):
        run(Small(nnx.Rngs(0)), data, strategy={"name": "darts", "warmup": 0.0})


def test_a_loss_may_leave_missing_values_out():
    def masked(model, batch, rngs):
        x, labels = batch
        return loss(model, (jnp.nan_to_num(x), labels), rngs)

    found = run(Small(nnx.Rngs(0)), with_a_gap("train"), loss=masked, steps=2)
    assert math.isfinite(found.history[0]["loss"])


def test_an_error_in_the_loss_names_the_part():
    data = {**DATA, "valid": {"x": DATA["valid"][0]}}
    with pytest.raises(ValueError, match="unpack") as error:
        run(Small(nnx.Rngs(0)), data)
    assert "data['valid'] of {x: float32[16, 5, 3]}" in " ".join(error.value.__notes__)


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path):
    run(Small(nnx.Rngs(0)), steps=np.int64(2), workdir=tmp_path)
    run(Small(nnx.Rngs(0)), steps=2, workdir=tmp_path)  # the same call


def test_a_loss_that_is_not_finite_names_the_step():
    def infinite(model, batch, rngs):
        return loss(model, batch, rngs) / 0.0

    with pytest.raises(Diverged, match="the loss is not finite at step 1"):
        run(Small(nnx.Rngs(0)), loss=infinite, steps=2)


def test_noise_differs_between_steps_and_follows_the_key():
    functions = Functions(Model(nnx.Rngs(0)), loss)
    mixture = jnp.full((2, 2, 3), 1 / 3)

    compiled = jax.jit(functions.loss)

    def value(key):
        return compiled(functions.weights, mixture, examples(8), jax.random.key(key))[0]

    assert value(0) == value(0)
    assert value(0) != value(1)
