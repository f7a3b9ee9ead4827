"""The stage of a placement's run that tunes the choice: resumed, raced, reported and exported."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from test_placement_run import with_tokenizer, words

import dartformer as df
from dartformer.cli.main import main
from dartformer.config import build_placement, checkpoint_defaults, override
from dartformer.errors import InputError
from dartformer.models.decode import decoding
from dartformer.placement import tune as stage
from dartformer.placement.records import Entrant, PlacementResults, Rung, TuneFile
from dartformer.placement.study import PlacementStudy
from dartformer.pretrained.tune import Tuner, measure

QUICK = {
    "checkpoint.points": 1,
    "checkpoint.sequences": 4,
    "checkpoint.held_out": 2,
    "checkpoint.cheap": "sink(window=2, sinks=1)",
    "checkpoint.keep": 1,
    "checkpoint.length": 16,
    "tune.steps": 6,
    "tune.align_steps": 2,
    "tune.rate": 3e-3,
    "tune.batch": 4,
    "tune.save_every": 2,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    with_tokenizer(folder / "model")
    (folder / "text.txt").write_text(words(600))
    return folder


def config_of(home, **values):
    config = checkpoint_defaults(f"{home}/model", f"{home}/text.txt")
    override(config, {**QUICK, **values})
    return build_placement(config)


@pytest.fixture(scope="module")
def workdir(home):
    df.place(config_of(home), home / "run")
    return home / "run"


@pytest.fixture
def copy(workdir, tmp_path):
    return Path(shutil.copytree(workdir, tmp_path / "copy"))


def results_of(workdir):
    return PlacementResults.from_dict(json.loads((workdir / "results.json").read_text()))


def leaves(folder):
    return df.load_pretrained(folder).weights


def test_a_run_tunes_its_choice(workdir, home):
    results = results_of(workdir)
    tuning = results.tuning
    assert tuning.placement == results.answer.name == "path"
    assert [len(entrant.losses) for entrant in tuning.entrants] == [6]
    assert tuning.parameters == sum(leaf.size for leaf in jax.tree.leaves(leaves(home / "model")))
    assert {row.kind for row in tuning.gaps} == {"text", "again"}
    for kind in ("text", "again"):
        np.testing.assert_array_equal(tuning.before[kind].nll, results.answer.quality[kind].nll)
        teacher, tuned = df.load_pretrained(home / "model"), df.load_pretrained(workdir / "tuned")
        held_out = PlacementStudy(config_of(home)).kinds[kind].held_out
        quality = measure(teacher, tuned, held_out)
        np.testing.assert_allclose(tuning.after[kind].kl, quality.kl[0], rtol=1e-5)
        assert not np.array_equal(tuning.after[kind].kl, tuning.before[kind].kl)
    assert any(line.startswith("Tuning all weights of the 1 KV group") for line in results.verdict)
    assert results.seconds["tune"] > 0
    # The states of the training are several times as large as the model.
    assert not (workdir / "tuning").exists()
    page = (workdir / "report.html").read_text()
    assert "What tuning changed" in page


def test_a_finished_run_tunes_nothing_again(copy, home, monkeypatch):
    def refuse(*_):
        raise AssertionError("computed again")

    before = (copy / "results.json").read_text()
    monkeypatch.setattr(Tuner, "advance", refuse)
    monkeypatch.setattr("dartformer.placement.study.load_pretrained", refuse)
    df.place(config_of(home), copy)
    assert (copy / "results.json").read_text() == before


class Killed(Exception):
    """In place of a signal."""


advance = Tuner.advance


def dying(self, state, step):
    """A step that kills the training between two checkpoints."""
    if step == 3:
        raise Killed
    return advance(self, state, step)


def test_a_killed_run_ends_with_the_same_weights(workdir, home, tmp_path, monkeypatch):
    """Killed between two checkpoints, and once more while the tuned weights are written."""
    with monkeypatch.context() as patch:
        patch.setattr(Tuner, "advance", dying)
        with pytest.raises(Killed):
            df.place(config_of(home), tmp_path / "run")

    def full(*_):
        raise Killed

    with monkeypatch.context() as patch:
        # Aligned layers are read from their checkpoint.
        patch.setattr(stage, "align", full)
        patch.setattr(stage, "save_pretrained", full)
        with pytest.raises(Killed):
            df.place(config_of(home), tmp_path / "run")
    df.place(config_of(home), tmp_path / "run")
    found, whole = leaves(tmp_path / "run/tuned"), leaves(workdir / "tuned")
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    tunings = [results_of(folder).tuning for folder in (tmp_path / "run", workdir)]
    np.testing.assert_array_equal(tunings[0].entrants[0].losses, tunings[1].entrants[0].losses)
    assert tunings[0].entrants[0].layers == tunings[1].entrants[0].layers


def test_a_changed_config_is_refused(copy, home):
    with pytest.raises(InputError, match=r"differs in tune.steps: 6 -> 7"):
        df.place(config_of(home, **{"tune.steps": 7}), copy)


def test_exports_and_generate_use_the_tuned_weights_and_say_so(copy, home, capsys):
    assert main(["export", f"--workdir={copy}", "--format=hf"]) == 0
    assert "tuned weights of" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, leaves(copy / "export"), leaves(copy / "tuned"))
    assert "tuned" in (copy / "export/README.md").read_text()
    prompt = ["--prompt=w1 w2 w3", "--max-tokens=4"]
    assert main(["generate", str(copy), *prompt]) == 0
    text = capsys.readouterr().out
    assert main(["generate", str(copy / "tuned"), *prompt]) == 0
    assert capsys.readouterr().out == text
    # Other places than the tuned ones have the weights of the checkpoint.
    assert main(["derive", f"--workdir={copy}", "--budget=kv_bytes=1MB,length=32"]) == 0
    assert main(["generate", str(copy), *prompt]) == 0
    assert "untrained weights" in capsys.readouterr().err


def test_a_race_tunes_rivals_and_keeps_the_better_half(home, tmp_path, monkeypatch):
    """Killed after the first comparison, it goes on with the same entrant."""
    values = {"tune.race": 4, "tune.adapters": 2}
    with monkeypatch.context() as patch:
        patch.setattr(Tuner, "advance", dying)
        with pytest.raises(Killed):
            df.place(config_of(home, **values), tmp_path / "run")
    results = df.place(config_of(home, **values), tmp_path / "run")
    entrants = results.tuning.entrants
    # One group, or as many layers as it affords, which are none.
    assert [entrant.name for entrant in entrants] == ["path", "path_layers"]
    # Both for 2 steps, and the better one for 6.
    assert sorted(len(entrant.losses) for entrant in entrants) == [2, 6]
    first = sorted(entrants, key=lambda entrant: entrant.rungs[0].total)
    assert len(first[-1].losses) == 2
    best = max(entrants, key=lambda entrant: len(entrant.losses))
    assert results.tuning.placement == results.recommended.name == best.name
    genotype = json.loads((tmp_path / "run/genotype.json").read_text())
    assert genotype["layers"] == results.to_dict()["genotype"]["layers"]
    assert df.load_pretrained(tmp_path / "run/tuned").genotype == df.Genotype.from_dict(genotype)


def test_a_race_that_goes_on_compares_at_the_same_step():
    """The first one is further already, and was better when both were compared."""
    first = Entrant("a", "", np.zeros((1, 1)), 0, (), np.zeros(0), (), 0.0, 0.0)
    rungs = (Rung(2, {"text": 1.0}), Rung(4, {"text": 9.0}))
    second = dataclasses.replace(first, name="b", rungs=(Rung(2, {"text": 2.0}),))
    first = dataclasses.replace(first, rungs=rungs)
    assert stage.better_half([second, first], 2)[0].name == "a"


def test_places_that_are_not_kept_learn_another_attention(home, tmp_path, capsys):
    """A state of its own per head in place of a window: another price, and other weights."""
    values = {
        "tune.attention": "gated_delta",
        "tune.align_steps": 0,
        "tune.steps": 3,
        "space.granularity": "layer",
    }
    results = df.place(config_of(home, **values), tmp_path / "run")
    exported = df.load_pretrained(tmp_path / "run/tuned")
    kept = results.answer.kept[:, 0] == 1
    for layer, row in enumerate(exported.genotype.layers):
        assert set(row) == {df.parse("full" if kept[layer] else "gated_delta")}
    assert results.to_dict()["genotype"] == exported.genotype.to_dict()
    cache = decoding(exported.config, exported.genotype).init_cache(1, 32, np.float32)
    states = [leaf.nbytes for leaf in jax.tree.leaves(cache) if leaf.ndim == 4]
    assert results.tuning.kv_bytes == sum(states)
    assert any("more than the budget" in line for line in results.warnings)
    assert main(["generate", str(tmp_path / "run"), "--prompt=w1", "--max-tokens=2"]) == 0
    assert "tuned weights" in capsys.readouterr().err


def test_tuned_windows_are_a_class_of_transformers(home, tmp_path, capsys):
    values = {
        "checkpoint.cheap": "local(window=2)",
        "space.granularity": "layer",
        "tune.steps": 1,
        "tune.align_steps": 0,
    }
    df.place(config_of(home, **values), tmp_path / "run")
    assert main(["export", f"--workdir={tmp_path}/run", "--format=hf"]) == 0
    assert "(model_type ministral)" in capsys.readouterr().out
    exported = leaves(tmp_path / "run/export")
    jax.tree.map(np.testing.assert_array_equal, exported, leaves(tmp_path / "run/tuned"))
    card = (tmp_path / "run/export/README.md").read_text()
    assert card.count("All weights were tuned on its predictions for 1 step.") == 1


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 300])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_a_race_ends_with_one_that_has_all_steps(steps, count):
    rng = np.random.default_rng(steps)
    running = [
        Entrant(str(i), "", np.zeros((1, 1)), 0, (), np.zeros(0), (), 0.0, 0.0)
        for i in range(count)
    ]
    rungs = stage.rungs(steps, count)
    assert rungs[-1] == steps
    assert rungs == sorted(set(rungs))
    for rung in rungs:
        reached = []
        for entrant in running:
            mark = Rung(rung, {"text": float(rng.random())})
            reached.append(
                Entrant(entrant.name, "", entrant.kept, 0, (), entrant.losses, (mark,), 0.0, 0.0)
            )
        running = stage.better_half(reached, rung)
        assert len(running) == -(-len(reached) // 2)
        assert running[0].rungs[-1].total == min(entrant.rungs[-1].total for entrant in reached)


BAD = [
    ({"tune.steps": -1}, "tune.steps must be at least 0"),
    ({"tune.align_steps": -1}, "tune.align_steps must be at least 0"),
    ({"tune.batch": 0}, "tune.batch must be at least 1"),
    ({"tune.positions": 0}, "tune.positions must be at least 1"),
    ({"tune.adapters": -1}, "tune.adapters must be at least 0"),
    ({"tune.race": 0}, "tune.race must be at least 1"),
    ({"tune.save_every": 0}, "tune.save_every must be at least 1"),
    ({"tune.rate": 0.0}, "tune.rate must be above 0"),
    ({"tune.seed": -1}, "tune.seed must be"),
    ({"tune.steps": "many"}, "tune.steps"),
    ({"tune.attention": "full"}, "tune.attention cannot be full"),
    ({"tune.attention": "fulll"}, "fulll"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_bad_values_are_one_line(home, values, message):
    with pytest.raises(InputError, match=message) as caught:
        config_of(home, **values)
    assert "\n" not in str(caught.value)


def test_a_tuning_that_diverges_is_one_line(home, tmp_path, monkeypatch):
    def infinite(self, state, step):
        return advance(self, state, step)[0], float("nan")

    monkeypatch.setattr(Tuner, "advance", infinite)
    with pytest.raises(InputError, match=r"diverged in step 0.*lower tune.rate, which is 0.003"):
        df.place(config_of(home), tmp_path / "run")


def test_a_disk_without_room_is_one_line(home, tmp_path, monkeypatch):
    """Nothing is trained first, and the next call goes on."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(InputError, match="and its disk has") as caught:
        df.place(config_of(home), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/tuned").exists()


def test_a_damaged_record_is_named(copy, home):
    (copy / "tuning.json").write_text("{}")
    with pytest.raises(InputError, match=r"tuning.json lacks the key 'identity'"):
        df.place(config_of(home), copy)


def test_a_tuning_of_something_else_is_refused(copy, home):
    file = copy / "tuning.json"
    data = json.loads(file.read_text())
    data["identity"]["genotype"] = "0" * 16
    del data["checksum"]
    file.write_text(json.dumps(data))
    assert TuneFile.from_dict(json.loads(file.read_text()))
    with pytest.raises(InputError, match="made with something else: the genotype"):
        df.place(config_of(home), copy)
