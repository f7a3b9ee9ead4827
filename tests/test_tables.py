"""Tables of spaces that were trained whole: written, read, and asked as a race asks."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dartformer as df
from dartformer.attention import parse
from dartformer.config.sections import Race
from dartformer.errors import InputError
from dartformer.space.search_space import SearchSpace
from dartformer.statistics import paired
from dartformer.tables import CHECKED_IN, Provenance, Table, write_tables

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments" / "tables"))
import pack
import regret
import train

CANDIDATES = ("local(window=8)", "linear", "conv")
STEPS = (5, 10, 15)
PROVENANCE = Provenance("0.2.0", "0.11", "3.13", "a processor", "2026-11-30", 3.5, 40, 100)


def table_of(name="tiny", metric="accuracy", layers=2, seeds=2, candidates=CANDIDATES):
    """A table of random scores."""
    space = SearchSpace(tuple(map(parse, candidates)), layers, 2, "layer")
    genotypes = tuple(train.genotypes(space))
    models, looks = len(genotypes), len(STEPS)
    rng = np.random.default_rng(0)

    def numbers(*shape):
        return rng.uniform(size=shape).astype(np.float32)

    pairs = models * (models - 1) // 2
    return Table(
        name=name,
        config={
            "space": {"candidates": list(candidates), "granularity": "layer"},
            "model": {"layers": layers, "heads": 2},
        },
        space=space,
        metric=metric,
        genotypes=genotypes,
        steps=STEPS,
        seeds=tuple(range(seeds)),
        valid=numbers(models, seeds, looks),
        valid_loss=numbers(models, seeds, looks),
        test=numbers(models, seeds),
        test_loss=numbers(models, seeds),
        seconds=numbers(models, seeds),
        noise=numbers(seeds, looks, pairs).astype(np.float16),
        provenance=PROVENANCE,
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "tables.npz"
    write_tables(path, [table_of(), table_of("bits", "bits_per_character", layers=1)])
    return path


@pytest.mark.parametrize(("name", "size"), [("tiny", 9), ("bits", 3)])
def test_a_table_comes_back(file, name, size):
    table = df.load_table(name, file)
    assert table.space.size == len(table.genotypes) == size
    assert table.provenance == PROVENANCE
    expected = table_of()
    if name == "tiny":
        assert table.genotypes == expected.genotypes
        for array in ("valid", "valid_loss", "test", "test_loss", "seconds", "noise"):
            np.testing.assert_array_equal(getattr(table, array), getattr(expected, array))
    for number, genotype in enumerate(table.genotypes):
        assert table.number(genotype) == number


def test_noise_is_of_the_pair(file):
    table = df.load_table("tiny", file)
    models = len(table.genotypes)
    for i, (a, b) in enumerate(zip(*np.triu_indices(models, 1), strict=True)):
        for seed, look in np.ndindex(2, 3):
            expected = float(table.noise[seed, look, i])
            assert table.noise_of(a, b, seed, look) == table.noise_of(b, a, seed, look) == expected
            gap = abs(table.valid[a, seed, look] - table.valid[b, seed, look])
            assert table.tied(a, b, seed, look) == (gap <= expected)
    assert table.tied(4, 4, 0, 0)


def test_regret_has_the_sign_and_unit_of_the_metric(file):
    for name, best in (("tiny", np.argmax), ("bits", np.argmin)):
        table = df.load_table(name, file)
        means = table.test.mean(1)
        assert table.best == best(means)
        assert table.regret(table.genotypes[table.best]) == 0
        regrets = [table.regret(genotype) for genotype in table.genotypes]
        np.testing.assert_allclose(regrets, 100 * np.abs(means - means[table.best]), rtol=1e-4)


def test_what_a_table_lacks_is_an_error(file):
    table = df.load_table("tiny", file)
    with pytest.raises(InputError, match="not in the table tiny"):
        table.number(df.Genotype.homogeneous(parse("full"), 2, 2))
    with pytest.raises(InputError, match="no scores after 7 steps, only after 5, 10, 15"):
        table.look(7)
    with pytest.raises(InputError, match="tiny"):
        df.load_table("tinny", file)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="there are no tables at"):
        df.load_table("tiny", tmp_path / "no.npz")
    with pytest.raises(InputError, match="there are no tables at"):
        df.load_table("tiny", tmp_path)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_is_an_error(file, tmp_path, data):
    """Cut anywhere, or with other bytes anywhere: an error of the user, or the same table."""
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + 8] = data.draw(st.binary(min_size=8, max_size=8))
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(content)
    try:
        table = df.load_table("tiny", damaged)
    except InputError:
        return
    np.testing.assert_array_equal(table.valid, table_of().valid)


def test_a_table_of_other_shapes_is_an_error():
    table = table_of()
    fields = {name: getattr(table, name) for name in Table.__dataclass_fields__}
    with pytest.raises(InputError, match=r"test of the table tiny has the shape"):
        Table(**{**fields, "test": table.test[:, :1]})


def test_the_noise_of_lines_is_that_of_their_examples():
    rng = np.random.default_rng(1)
    grid = []
    for genotype in table_of().genotypes[:4]:
        examples = rng.uniform(size=(pack.NINTHS, 20))
        grid.append([pack.Line(genotype, 0, [], [], 0.0, 0.0, 0.0, examples)])
    for metric, unit in (("accuracy", 1), ("bits_per_character", np.log(2))):
        noise = pack.noise_of(grid, metric)
        for i, (a, b) in enumerate(itertools.combinations(range(4), 2)):
            for look in range(pack.NINTHS):
                _, expected = paired(grid[a][0].examples[look], grid[b][0].examples[look])
                assert noise[0, look, i] == pytest.approx(expected / unit, rel=1e-3)


THIRDS = Race(rungs=(1 / 3, 2 / 3), keep=0.5, neighbours=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_race_is_replayed(file, seed):
    """Successive halving of all nine models, worked out from the arrays."""
    table = df.load_table("tiny", file)
    choice = regret.raced(table, THIRDS, seed, regret.entrants_of(table.genotypes))
    first, second = table.valid[:, seed, 0], table.valid[:, seed, 1]
    kept = np.argsort(-first)[:5]
    leader = kept[second[kept].argmax()]
    close = [model for model in kept if table.tied(model, leader, seed, 1)]
    assert choice.chosen == str(table.genotypes[leader])
    assert choice.regret == table.regret(table.genotypes[leader])
    assert choice.entered == 9
    assert choice.tied == len(close)
    assert choice.best_tied == (table.best in close)
    seconds = table.seconds.min(1)
    spent = seconds.sum() + seconds[kept].sum() + seconds[leader]
    assert choice.cost == pytest.approx(spent / 3 / seconds.sum(), rel=1e-5)


def test_a_race_without_rungs_trains_all(file):
    table = df.load_table("tiny", file)
    everything = regret.entrants_of(table.genotypes)
    choice = regret.raced(table, Race(rungs=(), neighbours=0), 0, everything)
    assert choice.chosen == str(table.genotypes[table.valid[:, :, -1].mean(1).argmax()])
    assert choice.cost_final == pytest.approx(1)


@pytest.mark.parametrize("most", [0.2, 0.5, 1.0])
def test_random_ways_keep_to_their_price(file, most):
    table = df.load_table("tiny", file)
    for draw in range(6):
        choice = regret.random_search(table, draw, most)
        assert choice.cost <= most + 1e-6 or choice.entered == 1
        raced = regret.random_race(table, THIRDS, draw, most)
        assert raced.cost <= most or raced.entered == 1
        assert raced.entered >= choice.entered
    if most == 1.0:
        assert choice.entered == 9


def test_the_answer_of_a_search_is_looked_up(monkeypatch):
    candidates = ("uniform", "identity")

    def config(data):
        config = df.defaults(task="planted")
        config.task.length, config.task.train = 32, 64
        config.task.valid = config.task.test = 16
        config.data.batch_size = 8
        config.model.layers, config.model.heads, config.model.head_dim = 1, 2, 4
        config.model.model_dim = config.model.mlp_dim = 8
        config.space.candidates = candidates
        config.search.steps = config.retrain.steps = 3
        return config

    monkeypatch.setitem(regret.SPACES, "tiny", config)
    table = table_of(layers=1, candidates=candidates)
    choices = list(regret.searched(table, "single_level", Path(), seeds=[3, 4]))
    assert [choice.seed for choice in choices] == [3, 4]
    for choice in choices:
        by_name = {str(genotype): genotype for genotype in table.genotypes}
        assert choice.regret == table.regret(by_name[choice.chosen])
        assert choice.cost > table.shares[table.number(by_name[choice.chosen])]


def test_an_undefined_score_is_the_worst(file):
    table = df.load_table("tiny", file)
    everything = regret.entrants_of(table.genotypes)
    leader = regret.raced(table, THIRDS, 0, everything).chosen
    number = [str(genotype) for genotype in table.genotypes].index(leader)
    table.valid[number, 0, 0] = np.nan
    assert regret.raced(table, THIRDS, 0, everything).chosen != leader


def test_the_tables_of_the_repository_are_sane():
    with np.load(CHECKED_IN, allow_pickle=False) as stored:
        names = {key.partition("/")[0] for key in stored.files}
    assert names <= set(train.SPACES)
    assert "mqar_2" in names
    for name in names:
        table = df.load_table(name)
        assert len(table.genotypes) == table.space.size
        assert table.steps[-1] == table.config["retrain"]["steps"]
        assert np.isfinite(table.valid).all()
        assert np.isfinite(table.test).all()
        assert (table.noise >= 0).all()
        assert (table.seconds > 0).all()
        # Test and valid scores of a whole training agree, far beyond what models differ by.
        gap = np.abs(table.valid[:, :, -1] - table.test).mean()
        assert gap < max(0.2 * np.ptp(table.test), 0.05)
    assert CHECKED_IN.stat().st_size < 2_000_000
