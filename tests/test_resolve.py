"""A finished search answered again for a budget: against trying every genotype, and through the
command line."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from dartformer import config as configs
from dartformer.attention import parse
from dartformer.cli.main import main
from dartformer.cost.budget import Budget, Price
from dartformer.cost.integer_program import near_ties, solve, within
from dartformer.errors import InputError
from dartformer.machine.workdir import read_json, write_json
from dartformer.results import FrontPoint, GenotypeRecord
from dartformer.space.search_space import SearchSpace
from dartformer.stages.budget import Problem, Solution, _improved, cheaper_and_better
from dartformer.stages.derive import derive
from dartformer.stages.layout import Workdir
from dartformer.stages.search import keep_prices, search
from dartformer.stages.study import Study

CANDIDATES = tuple(parse(t) for t in ("full", "conv(width=3)", "uniform"))
UNEVEN = Price("flops", 5.0, np.array([[0, 7, 8.5, 9], [0, 1, 4, 8], [0, 2, 3, 4.5]]))


@pytest.mark.parametrize("granularity", ["head", "layer", "model"])
@pytest.mark.parametrize("largest", [False, True])
def test_programme_against_trying_every_genotype(granularity, largest):
    space, rng = SearchSpace(CANDIDATES, 2, 3, granularity), np.random.default_rng(0)
    rows, columns, _ = space.alphas_shape
    price = Price("flops", 5.0, UNEVEN.groups, largest)
    other = Price("parameters", 0.0, np.array([[0, 1, 2, 3], [0, 2, 3, 4], [0, 1, 1, 1]]))
    every = [
        np.reshape(c, (rows, columns)) for c in itertools.product(range(3), repeat=rows * columns)
    ]
    for limit in (14.0, 18.0, 23.5):
        scores = np.log(rng.dirichlet(np.ones(3), (rows, columns)))
        limits = [(price, limit), (other, 7.0)]
        worth = [
            np.take_along_axis(scores, c[..., None], -1).sum()
            for c in every
            if within(space, c, limits)
        ]
        if not worth:
            with pytest.raises(InputError, match="no genotype"):
                solve(space, scores, limits)
            continue
        choice = solve(space, scores, limits)
        assert within(space, choice, limits)
        assert np.take_along_axis(scores, choice[..., None], -1).sum() == pytest.approx(max(worth))


def test_ties_are_named_where_both_are_within_the_budget():
    space = SearchSpace(CANDIDATES, 1, 3, "layer")
    mixture = np.array([[[0.36, 0.34, 0.30]]])
    limits = [(UNEVEN, 13.5)]
    choice = solve(space, np.log(mixture), limits)
    assert choice == [[1]]
    assert near_ties(space, mixture, choice, limits, 0.05) == [
        "layer 0: conv(width=3) (0.340) and uniform (0.300) are within 0.05, and both within the budget"
    ]
    assert near_ties(space, mixture, choice, [(UNEVEN, 13.0)], 0.03) == []


def test_what_costs_no_more_and_scores_more_is_better():
    every = SearchSpace(CANDIDATES, 1, 1, "layer").homogeneous()
    points = []
    for genotype, cost, accuracy in zip(every, (2, 1, 3), (0.5, 0.6, 0.7), strict=True):
        layers = GenotypeRecord.from_dict(genotype.to_dict()).layers
        text = str(genotype)
        points.append(FrontPoint("accuracy", cost, accuracy, 1.0, layers, text, None, False, False))
    assert cheaper_and_better(points, every[0]) == every[1]
    assert cheaper_and_better(points, every[1]) is None
    assert cheaper_and_better(points, every[2]) is None


@pytest.mark.parametrize("granularity", ["head", "layer", "model"])
def test_a_better_model_of_the_front_has_a_choice_for_each_place(granularity):
    """As the programme has it: one for what shares alphas, so that ties can be looked up."""
    space = SearchSpace(CANDIDATES, 2, 3, granularity)
    full, _, uniform = space.homogeneous()
    points = []
    for genotype, accuracy in ((full, 0.5), (uniform, 0.6)):
        layers = GenotypeRecord.from_dict(genotype.to_dict()).layers
        text = str(genotype)
        points.append(FrontPoint("accuracy", 1, accuracy, 1.0, layers, text, None, False, False))
    budget = Budget.of({"flops": 1e9})
    problem = Problem(SimpleNamespace(space=space), budget, {"flops": UNEVEN}, np.zeros(0))
    programme = Solution(full, np.zeros(space.alphas_shape[:2], int), {}, {})
    solution = _improved(problem, points, programme)
    assert solution.genotype == uniform
    assert solution.choice.shape == space.alphas_shape[:2]
    mixture = np.full(space.alphas_shape, 1 / 3)
    assert near_ties(space, mixture, solution.choice, [(UNEVEN, 1e9)], 0.05)


def test_damaged_prices_are_refused_by_name(tiny, tmp_path):
    configs.override(tiny, {"search.budget": "flops=19000"})
    with Workdir(tmp_path / "run", tiny) as opened:
        keep_prices(Study(tiny), opened)
        again = Study(tiny)
        keep_prices(again, opened)
        assert again.prices["flops"].groups.shape[0] == len(again.space.candidates)
        kept = read_json(opened.prices)
        del kept["prices"][0]["rest"]
        opened.prices.write_text(json.dumps(kept))
        with pytest.raises(InputError, match=r"prices.json: prices\[0\] lacks the key 'rest'"):
            keep_prices(Study(tiny), opened)


class Foretells:
    """A process that says of every program one millisecond a layer of its genotype."""

    def __init__(self, device, module):
        self.device = device

    def ask(self, request):
        yield {"seconds": len(request["genotype"]["layers"]) / 1e3}

    def close(self):
        self.device = None


def test_a_search_under_a_budget_and_its_answers_to_others(tiny, tmp_path, capsys, monkeypatch):
    configs.override(
        tiny,
        {
            "search.budget": "flops=19000",
            "space.candidates": ("full", "uniform"),
            "search.strategy.warmup": 0.0,
            "derive.second_opinion": "",
        },
    )
    workdir = tmp_path / "run"
    study = Study(tiny)
    with Workdir(workdir, tiny) as opened:
        found = search(study, opened)
        price = study.prices["flops"]
        least, most = price.cheapest(study.space)[0], price.most_expensive(study.space)[0]
        assert least < 19000 < most
        kept = read_json(workdir / "search/prices.json")
        assert kept["budget"]["flops"] == 19000
        assert any({"flops_of_budget", "flops_multiplier"} <= line.keys() for line in found.history)
        genotype = derive(found, opened).genotype
        assert price.of(genotype, study.space) <= 19000
        assert opened.read_genotype() == genotype
    config = tmp_path / "config.py"
    config.write_text(
        "import dartformer\ndef get_config():\n"
        f"    return dartformer.config.from_dict({configs.to_dict(tiny)!r})\n"
    )
    flags = [f"--config={config}", f"--workdir={workdir}"]
    plot = tmp_path / "front.svg"
    assert main(["derive", *flags, f"--budget=flops={most}", "--json", f"--plot={plot}"]) == 0
    data = json.loads(capsys.readouterr().out)
    points = read_json(workdir / "pareto.json")["points"]
    assert points == data["front"]
    costs = [p["cost"] for p in points]
    best = [p["accuracy"] for p in points if p["front"]]
    assert costs == sorted(costs)
    assert best == sorted(set(best))
    assert sum(p["chosen"] for p in points) == 1
    assert {"full", "uniform"} <= {p["name"] for p in points}
    (limit,) = data["limits"]
    assert limit["met"]
    assert limit["slack"] == pytest.approx(most - limit["predicted"])
    # With room for everything the choice is the largest weight in each place.
    assert data["programme"] == str(study.space.genotype(found.mixture.argmax(-1)))
    own, chosen = (
        next(p for p in points if p["text"] == data[key]) for key in ("programme", "text")
    )
    assert chosen["chosen"]
    assert chosen == own or (chosen["cost"] <= own["cost"] and chosen["accuracy"] > own["accuracy"])
    assert plot.stat().st_size > 1000
    for wrong, said in (
        (["--budget=flops=100"], "below the cheapest genotype"),
        (["--budget=flop=1"], "Did you mean"),
        (["--budget=flops=0"], "above 0"),
        (["--table=x"], "go with --budget"),
        (["--budget=flops=1e9,length=999"], "at most"),
        (["--budget=flops=1e9", "--plot=a.b"], "draw"),
    ):
        assert main(["derive", *flags, *wrong]) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert said in line, line
    table = tmp_path / "table.json"
    write_json(table, {"format": 1, "device": "gpu: another", "versions": {}, "entries": []})
    assert main(["derive", *flags, "--budget=latency_ms=9", f"--table={table}"]) == 2
    assert "were measured on another device (gpu: another" in capsys.readouterr().err
    assert (
        main(["derive", *flags, "--budget=latency_ms=9", f"--table={table}", "--trust-table"]) == 2
    )
    assert "it can only be measured there" in capsys.readouterr().err
    # Latencies of a device that is not here, where nothing is measured.
    monkeypatch.setattr("dartformer.cost.predict.Process", Foretells)
    foretold = f"--table={tmp_path / 'foretold.json'}"
    assert main(["derive", *flags, "--budget=latency_ms=9,on=h100", foretold]) == 0
    assert "latencies are predicted for h100" in capsys.readouterr().out
    curve = read_json(workdir / "pareto.json")
    assert (curve["device"], curve["budget"]["on"]) == ("predicted for h100", "h100")
    assert read_json(workdir / "budget.json")["limits"][0]["measured"] is None
