"""The tabular benchmark scores choices and rankings as it says, on a table made up here."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"))
import mixes
import tabular

from dartformer.tables import load_table


@pytest.fixture
def table(tmp_path):
    made = tabular.Table(tmp_path / "table.json")
    for parts in made.tasks.values():
        for values in parts.values():
            values[:] = np.arange(64)[:, None] / 100 + np.array([-0.01, 0, 0.01])
    return made


def test_a_table_comes_back_and_holds_its_place(table):
    table.tasks["relay"]["test"][5, 1] = np.nan
    table.save()
    again = tabular.Table(table.file)
    for kind, what in itertools.product(tabular.KINDS, ("valid", "test")):
        np.testing.assert_allclose(again.tasks[kind][what], table.tasks[kind][what])
    assert [table.number(table.genotype(i)) for i in range(64)] == list(range(64))
    assert len({table.genotype(i) for i in range(64)}) == 64
    with pytest.raises(SystemExit, match="lacks 1 genotypes of relay"):
        tabular.score(again, "proxies", 1, ("relay",))


def test_regret_and_tau(table):
    genotypes = [table.genotype(i) for i in range(64)]
    right = {g: float(i) for i, g in enumerate(genotypes)}
    assert table.score("recall", right) == pytest.approx({"regret_points": 0, "tau": 1})
    wrong = {g: -value for g, value in right.items()}
    assert table.score("recall", wrong) == pytest.approx({"regret_points": 63, "tau": -1})
    assert table.score("recall", {genotypes[60]: 1.0})["regret_points"] == pytest.approx(3)
    assert table.score("recall", dict.fromkeys(genotypes, 1.0)) == {
        "regret_points": pytest.approx(31.5),
        "tau": None,
    }


def test_the_regret_of_random_choices_by_counting_them():
    test = np.array([0.3, 0.1, 0.9, 0.5, 0.5])
    for n in (1, 2, 5):
        want = np.mean([0.9 - max(drawn) for drawn in itertools.combinations(test, n)])
        assert tabular.random_regret(test, n) == pytest.approx(100 * want)


@pytest.mark.parametrize("whole", [False, True])
def test_two_answers_of_a_search_lead_to_the_best_model_of_a_table(whole):
    table = load_table("mqar_2")
    names = [str(candidate).split("(")[0] for candidate in table.space.candidates]

    def by_layer(*layers):
        return table.space.genotype(np.array([[names.index(layer)] for layer in layers]))

    answers = [by_layer("retention", "gated_delta"), by_layer("conv", "gated_delta")]
    result = mixes.looked_up(table, 0, answers, whole)
    assert result["regret"] == 0
    assert 0 < result["race_share"] < 0.3
