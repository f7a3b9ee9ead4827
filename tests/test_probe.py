"""The probe suite: what it trains, what its score is, that it resumes, and what it refuses."""

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dartformer as df
from dartformer.cli import terminal
from dartformer.cli.main import main
from dartformer.config import build, load_config
from dartformer.errors import InputError
from dartformer.report.probes import by_state, headline
from dartformer.stages import probe as suite
from dartformer.statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"))
import probes as benchmark

VALUES = {
    "model.layers": 1,
    "model.heads": 1,
    "model.head_dim": 4,
    "model.model_dim": 8,
    "model.mlp_dim": 8,
    "model.positions": "none",
    "space.candidates": ("conv(width=2)", "identity"),
    "space.granularity": "model",
    "retrain.seeds": (0, 1),
    "retrain.steps": 3,
    "log.eval_every": 3,
    "log.checkpoint_every": 3,
}


def config(**values):
    made = df.defaults("parity")
    df.config.override(made, {**VALUES, **values})
    return build(made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("probes")


@pytest.fixture(scope="module")
def probed(folder):
    return df.probe(config(), folder, probes=("memorization", "parity"), lengths=(1, 2))


def test_every_model_has_the_best_training_of_each_probe(probed, folder):
    assert sorted(model.name for model in probed.models) == ["conv(width=2)", "identity"]
    assert probed.rates == (config().retrain.optimizer.learning_rate,)
    for model in probed.models:
        assert [score.probe for score in model.probes] == ["memorization", "parity"]
        assert model.score == mean([score.test for score in model.probes])
        for score in model.probes:
            assert len(score.per_training) == 2
            assert score.test == score.per_training[score.seed]
            assert score.at_lengths[str(score.length)] == score.test
            assert list(score.at_lengths) == [str(score.length), str(2 * score.length)]
    scores = [model.score for model in probed.models]
    assert scores == sorted(scores, reverse=True)
    states = {model.name: model.state_bytes for model in probed.models}
    assert states["conv(width=2)"] > states["identity"]
    assert json.loads((folder / "probes.json").read_text()) == json.loads(
        json.dumps(probed.to_dict())
    )
    assert suite.Probed.from_dict(json.loads((folder / "probes.json").read_text())) == probed


def test_every_probe_has_its_chance_and_its_rules(probed):
    memory, parity = probed.tasks
    assert (memory.probe, memory.labels, memory.chance) == ("memorization", 127, 1 / 127)
    assert set(memory.rules) == {"majority", "own_token"}
    assert parity.chance == 0.5
    # The bit itself is right about the first of 32 bits, and about half of the others.
    assert parity.rules["own_token"] == pytest.approx((1 + 31 / 2) / 32, abs=0.01)
    assert parity.best_rule == max(parity.rules, key=parity.rules.get)


def test_probes_of_a_length_share_their_programs():
    programs = suite.Programs("small")
    studies = []
    for name in ("parity", "context_recall", "compression"):
        setting = suite.config_of(config(), name, "small", 0.01)
        studies.append(programs.study(setting))
    first, second, pooled = studies
    genotype = df.Genotype.homogeneous(df.parse("identity"), 1, 1)
    assert first.program(genotype) is second.program(genotype)
    assert first.program(genotype) is not pooled.program(genotype)
    assert first.model.classes == 127
    again = programs.study(suite.config_of(config(), "parity", "small", 0.02))
    assert again.program(genotype) is not first.program(genotype), "the rate is in the program"


def test_rates_are_trained_once_each(tmp_path):
    """A rate that is named twice is one training, and rates that are close are two."""
    models = {"identity": df.Genotype.homogeneous(df.parse("identity"), 1, 1)}
    rates = (0.01, 0.010000001, 0.01)
    probed = df.probe(config(), tmp_path, models, probes=("parity",), rates=rates)
    assert probed.rates == (0.01, 0.010000001)
    (score,) = probed.models[0].probes
    assert len(score.per_training) == 4
    assert len(list((tmp_path / "parity").iterdir())) == 2


def test_the_headline_names_all_that_are_tied():
    names = {"full": 0.9, "conv": 0.9, "identity": 0.2}
    task = suite.ProbeTask("parity", 32, 2, 0.5, {"majority": 0.5})
    models = []
    for name, score in names.items():
        probe = suite.ProbeScore("parity", 32, score, score, 0.01, 0, (score,), 1.0, {})
        models.append(suite.ProbedModel(name, (), score, 1.0, 1.0, (probe,)))
    drawn = suite.Probed("small", 1, (0,), (0.01,), (task,), tuple(models))
    assert headline(drawn) == "full and conv score highest, 90.0% on parity."
    alone = replace(drawn, models=drawn.models[1:])
    assert headline(alone).endswith("identity follows with 20.0%.")


def test_one_program_for_all_candidates_serves_all_probes(tmp_path):
    """Whether genotypes share a program or have their own, they are the same models."""
    values = {
        "space.candidates": ("conv(width=2)", "identity", "uniform"),
        "retrain.seeds": (0,),
    }
    scores = {}
    for program in ("own", "shared"):
        setting = config(**values, **{"retrain.program": program})
        probed = df.probe(setting, tmp_path / program, probes=("parity", "memorization"))
        for model in probed.models:
            for score in model.probes:
                scores.setdefault((model.name, score.probe), []).append(score.valid)
    assert len(scores) == 6
    for own, shared in scores.values():
        assert own == pytest.approx(shared, abs=0.01)


def test_at_the_published_size_models_have_the_tokens_of_their_task():
    setting = suite.config_of(config(), "parity", "published", 0.01)
    study = suite.Programs("published").study(setting)
    assert (study.model.vocabulary, study.model.classes) == (3, 2)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1)), min_size=1, max_size=22))
def test_names_in_the_chart_do_not_overlap(places):
    """Names of a column are a line apart, in the order of their accuracy, and on the chart."""
    models = []
    for i, (state, score) in enumerate(places):
        models.append(suite.ProbedModel(f"m{i}", (), score, state, 1.0, ()))
    task = suite.ProbeTask("parity", 32, 2, 0.5, {"majority": 0.5})
    drawn = suite.Probed("small", 1, (0,), (0.01,), (task,), tuple(models))
    rows = [row for row in by_state(drawn).rows if row[0] == "mean"]
    assert sorted(row[1] for row in rows) == sorted(model.name for model in models)
    columns = {}
    for _, _, state, accuracy, rule, x, y in rows:
        assert rule == 50
        assert x > state
        assert 0 <= y <= 102
        columns.setdefault(x, []).append((y, accuracy))
    for column in columns.values():
        column.sort(reverse=True)
        for (above, better), (below, worse) in itertools.pairwise(column):
            assert above - below >= 4 - 1e-6
            assert better >= worse


def test_the_page_and_the_terminal_show_every_score(probed, folder, capsys):
    page = (folder / "probes.html").read_text()
    for model in probed.models:
        assert model.name in page
        for score in model.probes:
            assert f'data-value="{score.test}"' in page
    assert "At more lengths" in page
    for task in probed.tasks:
        assert f'data-value="{task.chance}"' in page
        assert f'data-value="{task.rules[task.best_rule]}"' in page
    drawn = {(row[0], row[1]): row[2:4] for row in by_state(probed).rows}
    for model in probed.models:
        assert drawn["mean", model.name] == (model.state_bytes, 100 * model.score)
        for score in model.probes:
            assert drawn[score.probe, model.name] == (score.state_bytes, 100 * score.test)
    terminal.show_probes(probed)
    out = capsys.readouterr().out
    assert "M memorization, P parity" in out
    assert probed.models[0].name in out
    assert "best rule" in out
    assert "chance" in out


def test_it_goes_on_where_it_stopped(probed, folder, tmp_path, capsys):
    """A second run trains nothing again and scores the same."""
    (tmp_path / "space.py").write_text(
        "import dartformer\ndef get_config():\n    c = dartformer.defaults('parity')\n"
        + "".join(f"    c.{name} = {value!r}\n" for name, value in VALUES.items())
        + "    return c\n"
    )
    before = sorted(folder.rglob("checkpoints/steps/3"))
    times = [step.stat().st_mtime_ns for step in before]
    assert len(before) == 8
    arguments = [f"--config={tmp_path / 'space.py'}", f"--workdir={folder}"]
    words = ["probe", *arguments, "--probes=memorization,parity", "--lengths=1,2", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(probed.to_dict()))
    assert [step.stat().st_mtime_ns for step in before] == times


@pytest.mark.parametrize("name", suite.PROBES)
@pytest.mark.parametrize("size", suite.SIZES)
def test_a_probe_has_the_options_of_its_search_space(name, size):
    published = load_config(suite.CONFIGS / f"{name}_{size}.py")
    made = suite.config_of(config(), name, size, 0.5)
    assert made.task.to_dict() == published.task.to_dict()
    assert made.retrain.optimizer.learning_rate == 0.5
    assert made.retrain.steps == 3
    assert made.model.pooling == published.model.pooling


def test_the_benchmark_has_every_causal_type_and_reads_its_own_lines(probed, tmp_path, capsys):
    causal = set()
    for name in df.attention.BUILT_IN:
        if df.parse(name).traits.causal and name != "parallel":
            causal.add(name)
    assert {text.split("(")[0] for text in benchmark.TYPES} == causal
    benchmark.lines(probed)
    benchmark.say(name="length", probe="parity", model="full", at_lengths={"32": 1.0, "64": 0.5})
    file = tmp_path / "lines.jsonl"
    file.write_text(capsys.readouterr().out)
    again, stretched = benchmark.read([file])
    assert [model.name for model in again.models] == [model.name for model in probed.models]
    page = benchmark.put(
        f"before\n{benchmark.BEGIN}old\n{benchmark.END}after\n",
        benchmark.results(again, stretched),
    )
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old" not in page
    assert "| *chance* | 25 | 1 | 50 |" in page
    assert "| `full` | 100 | 50 |" in page


SHORT = [
    "model.layers=1",
    "model.heads=1",
    "model.head_dim=4",
    "model.model_dim=8",
    "model.mlp_dim=8",
    "space.candidates=conv(width=2),identity",
    "search.steps=4",
    "search.observe=false",
    "derive.second_opinion=",
    "retrain.steps=4",
    "retrain.seeds=0,1",
    "log.eval_every=2",
    "log.checkpoint_every=2",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*suite.PROBES, "passage"])
def test_the_search_space_of_a_probe_runs_to_its_report(name, tmp_path):
    """Search, derivation, training, evaluation and report, in a few steps."""
    words = [f"--config={suite.CONFIGS / f'{name}_small.py'}", f"--workdir={tmp_path / 'run'}"]
    words += [f"--config.{value}" for value in SHORT]
    if name == "passage":
        text = tmp_path / "text.txt"
        text.write_text("To be, or not to be, that is the question. " * 400)
        words.append(f"--config.task.path={text}")
    assert main(["run", *words]) == 0
    found = json.loads((tmp_path / "run/results.json").read_text())
    assert found["task"] == name
    assert (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": ("party",)}, "unknown probe 'party'. Did you mean 'parity'"),
        ({"probes": ()}, "Name at least one"),
        ({"size": "large"}, "unknown size 'large'"),
        ({"lengths": (0,)}, "factors of at least 1, got 0"),
        ({"lengths": (1.5,)}, "whole factors of at least 1, got 1.5"),
        ({"genotypes": {}}, "no genotype to train"),
        ({"rates": (-1.0,)}, "learning_rate"),
        ({"genotypes": {"a": df.Genotype.homogeneous(df.parse("full"), 2, 1)}}, "2 layers of 1 h"),
        ({"genotypes": {"a": df.Genotype.homogeneous(df.parse("fourier"), 1, 1)}}, "causal task"),
        ({"lengths": (2,), "positions": "learned"}, "'learned' does not work at other lengths"),
    ],
)
def test_what_cannot_be_probed(options, message, tmp_path):
    positions = options.pop("positions", "none")
    with pytest.raises(InputError, match=message):
        df.probe(config(**{"model.positions": positions}), tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_are_named(tmp_path, capsys):
    (tmp_path / "space.py").write_text(
        "import dartformer\ndef get_config():\n    return dartformer.defaults('parity')\n"
    )
    words = ["probe", f"--config={tmp_path / 'space.py'}", f"--workdir={tmp_path / 'a'}"]
    assert main([*words, "--lengths=1,two"]) == 2
    assert "'two' is none of the whole numbers between commas" in capsys.readouterr().err
