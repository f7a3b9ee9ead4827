"""The race: who is compared when, who stops, who wins, and that nothing is trained twice."""

import types
from types import MappingProxyType

import numpy as np
import pytest

import dartformer as df
from dartformer import api
from dartformer import config as configs
from dartformer.attention import to_text
from dartformer.config.sections import Race
from dartformer.errors import InputError
from dartformer.fields import FieldError
from dartformer.results import Look
from dartformer.space.genotype import parse_candidates
from dartformer.space.search_space import SearchSpace
from dartformer.stages import race as race_stage
from dartformer.stages.bracket import Bracket, Entrant, neighbours, rung_steps
from dartformer.stages.layout import Workdir
from dartformer.stages.study import Study

CANDIDATES = ("full", "uniform", "linear")
STEPS = 18


@pytest.fixture
def config(tiny):
    configs.override(
        tiny,
        {
            "space.candidates": CANDIDATES,
            "space.granularity": "layer",
            "model.layers": 2,
            "retrain.steps": STEPS,
            "retrain.seeds": (0, 1),
            "baselines.random": False,
            "race.rungs": (1 / 9, 1 / 3),
            "race.keep": 0.5,
        },
    )
    return tiny


def by_layer(*names):
    space = SearchSpace(parse_candidates(CANDIDATES), 2, 2)
    return space.genotype(np.array([[CANDIDATES.index(name)] for name in names]))


@pytest.fixture
def raced(config, tmp_path, monkeypatch):
    """(scores, answer, **race options) -> the record of a race whose scores are looked up."""

    def run(scores, answer, losses=MappingProxyType({}), **options):
        configs.override(config, {f"race.{name}": value for name, value in options.items()})
        looked = []

        def look(self, entrant, step):
            score = scores(entrant.genotype, step)
            looked.append((entrant.name, step))
            examples = (np.arange(1000) < round(1000 * score)).astype(int)
            loss = losses.get(to_text(entrant.genotype.layers[0][0]), 1.0)
            return Look(step, score, "".join(map(str, examples)), loss)

        def trained(study, workdir, genotype, name):
            model = types.SimpleNamespace(
                genotype=genotype, valid={"accuracy": scores(genotype, STEPS)}
            )
            return [model] * 2

        monkeypatch.setattr(race_stage._Trainings, "_look", look)
        monkeypatch.setattr(race_stage, "retrain", trained)
        with Workdir(tmp_path / str(len(options)), config) as workdir:
            outcome = race_stage.race(Study(config), workdir, {"derived": answer})
        return outcome.record, looked

    return run


def fates(record):
    return {entrant.name: entrant.stopped_at for entrant in record.entrants}


def test_equal_scores_are_ordered_by_loss(raced):
    record, _ = raced(
        lambda genotype, step: 0.0,
        by_layer("full", "full"),
        {"linear(feature='elu')": 0.5},
        neighbours=0,
    )
    stopped = {}
    for entrant in record.entrants:
        stopped[entrant.genotype.layers[0][0]] = entrant.stopped_at
    assert stopped["linear(feature='elu')"] is None
    assert stopped["uniform"] == 2


def test_rungs_are_steps_of_a_training():
    assert rung_steps((1 / 9, 1 / 3), 405) == [45, 135]
    assert rung_steps((), 405) == []
    assert rung_steps((0.1, 0.2), 4) == [1]
    assert rung_steps((0.5,), 1) == []


@pytest.mark.parametrize(
    "values",
    [
        {"rungs": (1 / 3, 1 / 9)},
        {"rungs": (0.0, 0.5)},
        {"rungs": (0.5, 1.0)},
        {"rungs": (0.5, 0.5)},
        {"keep": 0.0},
        {"keep": 1.5},
        {"finalists": 0},
        {"neighbours": -1},
        {"metric": "f1"},
    ],
)
def test_races_that_cannot_be(values):
    with pytest.raises(FieldError, match=next(iter(values))):
        Race(**values)


@pytest.mark.parametrize("granularity", ["model", "layer", "head"])
def test_neighbours_differ_in_one_place(granularity):
    space = SearchSpace(parse_candidates(CANDIDATES), 2, 2, granularity)
    center = space.random(np.random.default_rng(0))
    near = neighbours(space, center, None, 100)
    rows, columns, candidates = space.alphas_shape
    assert len(near) == len(set(near)) == rows * columns * (candidates - 1)
    for genotype in near:
        changed = space.choice(genotype) != space.choice(center)
        assert changed[:rows, :columns].sum() == 1


def test_the_closest_neighbours_come_first():
    space = SearchSpace(parse_candidates(CANDIDATES), 2, 2)
    mixture = np.tile([[[0.5, 0.1, 0.4]], [[0.6, 0.3, 0.1]]], (1, 2, 1))
    near = neighbours(space, by_layer("full", "full"), mixture, 2)
    assert near == [by_layer("linear", "full"), by_layer("full", "uniform")]


def test_a_better_neighbour_is_climbed_to(raced):
    values = {("full", "full"): 0.3, ("linear", "full"): 0.5, ("linear", "uniform"): 0.9}

    def score(genotype, step):
        names = tuple(genotype.describe_layer(layer).split("(")[0] for layer in range(2))
        return values.get(names, 0.2) * (0.5 + 0.5 * step / STEPS)

    record, _ = raced(score, by_layer("full", "full"))
    assert record.winner == "neighbour linear(feature='elu') | uniform"
    assert record.rungs == (2, 6)
    stopped = fates(record)
    assert stopped["derived"] is None  # what the search chose is trained to the end
    assert stopped["homogeneous.uniform"] == 6  # the first of two equals
    assert stopped["homogeneous.linear(feature='elu')"] == 2
    assert 0 < record.share <= 1
    assert not record.ties


def test_the_neighbours_of_all_answers_enter():
    """The best is a neighbour of the second answer alone, which starts slowly."""
    space = SearchSpace(parse_candidates(CANDIDATES), 2, 2)
    best = by_layer("linear", "uniform")

    class Track:
        def prepare(self, entrants, step=None):
            pass

        def look(self, entrant, step):
            early = {by_layer("full", "full"): 0.5, best: 0.6}
            return Look(step, early.get(entrant.genotype, 0.1))

        def merit(self, look):
            return look.score

        def tied(self, ours, theirs):
            return ours.score == theirs.score

        def final_merit(self, entrant):
            return self.look(entrant, STEPS).score

        def affordable(self, genotype):
            return True

    bracket = Bracket(space, Race(), STEPS, Track())
    bracket.enter(Entrant("first", by_layer("full", "full"), straight=True))
    bracket.enter(Entrant("second", by_layer("uniform", "uniform"), straight=True))
    assert bracket.run().winner.genotype == best


def test_every_entrant_is_looked_at_once(raced):
    rng = np.random.default_rng(0)
    table = {}

    def score(genotype, step):
        return table.setdefault((genotype, step), rng.uniform(0.1, 0.9))

    record, looked = raced(score, by_layer("full", "uniform"))
    assert len(looked) == len(set(looked))
    finalists = [entrant for entrant in record.entrants if entrant.finalist]
    best = max(finalists, key=lambda entrant: entrant.valid)
    assert best.name == record.winner
    for entrant in record.entrants:
        assert entrant.test is None
        assert (entrant.stopped_at is None) == entrant.finalist
        assert [look.step for look in entrant.looks] == sorted(
            {look.step for look in entrant.looks}
        )


def test_without_rungs_all_are_trained_to_the_end(raced):
    record, looked = raced(lambda genotype, step: 0.5, by_layer("full", "uniform"), rungs=())
    assert not looked
    assert all(entrant.finalist for entrant in record.entrants)
    assert len(record.entrants) == 1 + len(CANDIDATES)
    assert record.share == 1.0
    assert len(record.ties) == len(CANDIDATES)


def test_models_above_the_budget_are_references(raced, monkeypatch):
    """They stop none that can win, and none of them wins."""
    cheap = {by_layer("uniform", "uniform"), by_layer("linear", "uniform")}
    monkeypatch.setattr(Study, "affordable", lambda self, genotype: genotype in cheap)

    def score(genotype, step):
        return 0.1 if genotype in cheap else 0.9

    record, _ = raced(score, by_layer("linear", "uniform"))
    outside = {entrant.name for entrant in record.entrants if entrant.outside_budget}
    assert outside == {"homogeneous.full", "homogeneous.linear(feature='elu')"}
    stopped = fates(record)
    assert record.winner in ("derived", "homogeneous.uniform")
    assert stopped["homogeneous.uniform"] is None or stopped["derived"] is None
    # The best homogeneous model is shown beside it, marked.
    assert stopped["homogeneous.full"] is None


def test_a_race_of_models_above_the_budget_is_refused(raced, monkeypatch):
    monkeypatch.setattr(Study, "affordable", lambda self, genotype: False)
    with pytest.raises(InputError, match=r"within search\.budget"):
        raced(lambda genotype, step: 0.5, by_layer("linear", "uniform"))


def test_a_genotype_above_the_budget_can_be_judged(config, tmp_path, monkeypatch):
    """Who evaluates a genotype is told how good it is, whatever it costs."""
    configs.override(config, {"baselines.homogeneous": False, "retrain.seeds": (0,)})
    monkeypatch.setattr(Study, "affordable", lambda self, genotype: False)
    genotype = by_layer("linear", "uniform")
    with Workdir(tmp_path, config) as workdir:
        answers = {"derived": genotype}
        outcome = race_stage.race(Study(config), workdir, answers, decides=False)
    assert outcome.genotype == genotype
    assert outcome.record.entrants[0].outside_budget


def test_ties_at_a_cut_are_named(raced):
    record, _ = raced(
        lambda genotype, step: 0.5, by_layer("full", "uniform"), neighbours=0, finalists=1
    )
    assert "stopped after 2 steps within the noise of" in record.cuts[0]
    assert "race.finalists=1" in record.cuts[-1]


def test_a_whole_race(config, tmp_path, monkeypatch):
    """Stopped and repeated: nothing is trained twice, and the entrants that stopped go on."""
    configs.override(config, {"search.steps": 2, "race.neighbours": 1, "model.layers": 1})
    config.space.granularity = "model"
    df.derive(df.search(config, tmp_path))
    winner = df.race(config, tmp_path)
    with api.opened(config, tmp_path) as session:
        assert api.finished(session, "race")
        before = session.workdir.read_results()
        assert session.workdir.read_genotype() == winner
        monkeypatch.setattr(race_stage, "train_until", None)
        assert race_stage.read(*session, winner).record == before.race
        again = api.do(session, "race")
        assert again["entrants"] == before.race.to_dict()["entrants"]
        stopped = [entrant for entrant in before.race.entrants if not entrant.finalist]
        with pytest.raises(InputError, match="unknown entrant 'other'"):
            api.finish(session, ["other"])
        if stopped:
            short = stopped[0].name.removeprefix("homogeneous.").split("(")[0]
            record = api.finish(session, [short])
            finished = next(e for e in record.entrants if e.name == stopped[0].name)
            assert finished.stopped_at is None
            assert not finished.finalist
    results = df.evaluate(winner, config, tmp_path)
    for entrant in results["race"]["entrants"]:
        assert (entrant.get("test") is not None) == entrant["finalist"]


class Killed(Exception):
    pass


def test_a_race_that_was_killed_ends_as_if_it_had_not(config, tmp_path, monkeypatch):
    """After any of its rungs: the scores of all entrants are the same to the last bit."""
    configs.override(config, {"race.neighbours": 0, "retrain.seeds": (0,)})
    answer = by_layer("full", "linear")

    def run(folder):
        with Workdir(tmp_path / folder, config) as workdir:
            return race_stage.race(Study(config), workdir, {"derived": answer}).record

    whole = run("whole")
    train_until = race_stage.train_until
    calls = []

    def killed(*arguments):
        # Killed once in the first rung, and once in the second.
        calls.append(arguments)
        if len(calls) in (3, 6):
            raise Killed
        return train_until(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(race_stage, "train_until", killed)
        for _ in range(2):
            with pytest.raises(Killed):
                run("killed")
    again = run("killed")
    assert again.entrants == whole.entrants
    assert (again.winner, again.cuts, again.ties) == (whole.winner, whole.cuts, whole.ties)


def test_the_strategy_race_trains_no_supernet(config, tmp_path):
    configs.override(
        config,
        {
            "search.strategy.name": "race",
            "search.strategy.random": 2,
            "derive.rule": "race",
            "retrain.seeds": (0,),
        },
    )
    results = df.run_all(config, tmp_path)
    names = {entrant["name"] for entrant in results["race"]["entrants"]}
    assert {"homogeneous.full", "homogeneous.uniform"} <= names
    assert any(name.startswith(("random", "mix")) for name in names)
    assert results["genotype"]["layers"]


def test_one_attention_everywhere_is_raced_without_a_search():
    """By default; the homogeneous models alone compete."""
    config = df.defaults("listops", granularity="model")
    assert config.search.strategy.name == "race"
    names = [entrant.name for entrant in race_stage.entrants(Study(config), {})]
    assert len(names) == len(config.space.candidates)
    assert all(name.startswith("homogeneous.") for name in names)
    assert df.defaults("listops", granularity="layer").search.strategy.name == "darts"


@pytest.mark.parametrize("count", [0, 5, 8, 9, 20])
@pytest.mark.parametrize("granularity", ["model", "layer"])
def test_a_race_without_a_search_meets_each_genotype_once(config, count, granularity):
    """Random ones, or all of a space that has no more."""
    values = {
        "space.granularity": granularity,
        "search.strategy.name": "race",
        "search.strategy.random": count,
        "derive.rule": "race",
        "baselines.random": True,
    }
    configs.override(config, values)
    study = Study(config)
    bracket = Bracket(study.space, study.config.race, STEPS, None)
    names = []
    for entrant in race_stage.entrants(study, {}):
        names.append(entrant.name)
        bracket.enter(entrant)
    assert len(set(names)) == len(names)
    size, homogeneous = study.space.size, len(study.space.homogeneous())
    if count >= size or granularity == "model":
        assert len(bracket.entrants) == len(names) == size
        assert not any("random" in name for name in names)
    else:
        assert len(names) == homogeneous + count + 1
        assert sum("random" in name for name in names) == count + 1


def test_a_random_genotype_differs_where_the_space_has_another():
    space = SearchSpace(parse_candidates(CANDIDATES), 1, 1, "model")
    every = set(space.homogeneous())
    for genotype in every:
        assert race_stage.random_genotype(0, space, every - {genotype}) == genotype
    assert race_stage.random_genotype(0, space, every) in every
