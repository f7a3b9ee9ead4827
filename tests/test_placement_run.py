"""A placement in a checkpoint as a user runs it: `new --from`, `run`, `derive`, `report`, `export`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dartformer as df
from dartformer.cli.main import main
from dartformer.config import build_placement, checkpoint_defaults
from dartformer.errors import InputError
from dartformer.placement.choose import affordable, choose, combined
from dartformer.placement.records import PlacementResults, ScoreFile, Scores
from dartformer.placement.study import Limit, PlacementStudy, limit_of
from dartformer.report import placement as page

FOLDERS = Path(__file__).parent / "oracles/checkpoints"
VOCABULARY = 48
QUICK = ("--config.checkpoint.points=2", "--config.checkpoint.sequences=2")


def words(count, vocabulary=VOCABULARY, seed=0):
    """A text of words, each of which is a token."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, count)
    return " ".join(f"w{token}" for token in ids)


def with_tokenizer(folder, name="llama", vocabulary=VOCABULARY):
    """A small checkpoint with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    shutil.copytree(FOLDERS / name, folder)
    vocabulary_of = {f"w{token}": token for token in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary_of, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A checkpoint, a text, and the config that `new --from` writes for them."""
    folder = tmp_path_factory.mktemp("placement")
    with_tokenizer(folder / "model")
    (folder / "text.txt").write_text(words(400))
    return folder


@pytest.fixture(scope="module")
def config(home):
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["new", f"--from={home}/model", f"--data={home}/text.txt", *QUICK]) == 0
    file = home / "mine.py"
    file.write_text(printed.getvalue())
    return file


@pytest.fixture(scope="module")
def workdir(home, config):
    assert main(["run", f"--config={config}", f"--workdir={home}/run", "--quiet"]) == 0
    return home / "run"


@pytest.fixture
def copy(workdir, tmp_path):
    return Path(shutil.copytree(workdir, tmp_path / "copy"))


def results_of(workdir):
    return PlacementResults.from_dict(json.loads((workdir / "results.json").read_text()))


def test_new_says_what_it_found(home, capsys):
    assert main(["new", f"--from={home}/model", f"--data={home}/text.txt"]) == 0
    captured = capsys.readouterr()
    # 2 layers, 2 groups, keys and values of 6 numbers of 4 bytes, 32 tokens: 6,144 bytes.
    assert "llama, 2 layers of 4 heads in 2 KV groups, 32 tokens at most" in captured.err
    assert "6.14 kB with full attention" in captured.err
    assert "of cache at 32 tokens" in captured.err
    assert "dartformer.checkpoint_defaults(" in captured.out
    compile(captured.out, "mine.py", "exec")


def test_a_run_leaves_what_it_found(workdir):
    results = results_of(workdir)
    genotype = df.Genotype.from_dict(json.loads((workdir / "genotype.json").read_text()))
    names = [placed.name for placed in results.placements]
    for name in ("full", "none", "uniform", "first", "last", "random_0", "random_groups"):
        assert name in names
    assert {"path", "path_layers", "path_text", "path_again"} <= set(names)
    answer = results.answer
    assert answer.name == "path"
    assert answer.kv_bytes <= results.kv_bytes
    kept = np.repeat(answer.kept, 2, axis=1)  # two heads share a group
    full = [[attention == df.parse("full") for attention in row] for row in genotype.layers]
    assert np.array_equal(kept == 1, full)
    assert "Keep full attention in" in results.verdict[0]
    page_text = (workdir / "report.html").read_text()
    assert "What keeps full attention" in page_text
    assert results.verdict[0] in page_text.replace("&#39;", "'")


def test_baselines_have_the_budget(workdir):
    """Equal cache for all: no placement with the budget's role costs more than it."""
    results = results_of(workdir)
    for placed in results.placements:
        if placed.role in ("answer", "derived", "baseline"):
            assert placed.kv_bytes <= results.kv_bytes
    layers = results.named["uniform"].kept.sum()
    assert layers == results.named["first"].kept.sum() == results.named["random_1"].kept.sum()


def test_qualities_are_those_of_the_library(workdir, home):
    """The mean loss of the answer, by the placement of the library on the same sequences."""
    results = results_of(workdir)
    study = PlacementStudy(df.config.load_any(home / "mine.py"))
    held_out = study.kinds["again"].held_out
    quality = study.placement.evaluate([results.answer.kept], held_out)
    assert results.answer.loss("again") == pytest.approx(float(quality.nll.mean()), rel=1e-5)
    assert results.named["full"].divergence("again") == pytest.approx(0, abs=1e-5)


def test_a_finished_run_computes_nothing_again(copy, config, monkeypatch):
    def refuse(*_):
        raise AssertionError("computed again")

    before = (copy / "results.json").read_text()
    monkeypatch.setattr("dartformer.pretrained.placement.Placement.path", refuse)
    monkeypatch.setattr("dartformer.pretrained.placement.Placement.evaluate", refuse)
    monkeypatch.setattr("dartformer.placement.study.load_pretrained", refuse)
    assert main(["run", f"--config={config}", f"--workdir={copy}", "--quiet"]) == 0
    assert (copy / "results.json").read_text() == before


def test_a_stopped_run_goes_on(copy, config):
    """Half of the scores of one kind are there; the rest is computed, to the same end."""
    before = results_of(copy)
    scores = json.loads((copy / "scores.json").read_text())
    del scores["checksum"]
    last = scores["scores"][-1]
    last["scores"], last["totals"] = last["scores"][:1], last["totals"][:1]
    (copy / "scores.json").write_text(json.dumps(scores))
    (copy / "evaluation.json").unlink()
    (copy / "results.json").unlink()
    assert main(["run", f"--config={config}", f"--workdir={copy}", "--quiet"]) == 0
    after = results_of(copy)
    np.testing.assert_allclose(after.scores["again"], before.scores["again"], rtol=1e-4)
    assert np.array_equal(after.answer.kept, before.answer.kept)


def test_derive_answers_another_budget_without_weights(copy, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("read the weights")

    monkeypatch.setattr("dartformer.placement.study.load_pretrained", refuse)
    command = ["derive", f"--workdir={copy}", "--budget=kv_bytes=0.0024MB,length=32", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["limit"] == 2400
    assert np.sum(found["kept"]) == 1
    scores = results_of(copy).scores
    shares = sum(scores[kind] / scores[kind].sum() for kind in scores)
    assert np.argmax(np.ravel(found["kept"])) == np.argmax(shares)
    assert json.loads((copy / "genotype.json").read_text())["layers"] == found["genotype"]["layers"]
    assert main(["derive", f"--workdir={copy}", "--quiet"]) == 0  # that of the config again
    assert np.array_equal(
        json.loads((copy / "budget.json").read_text())["kept"], results_of(copy).answer.kept
    )


def test_the_latency_of_a_token_is_a_budget(copy, home, monkeypatch, capsys):
    """By a table in which a full group takes 2 ms and a cheap one 1, two in a layer 0.5 more."""

    def seconds(_, config, attention, heads, **at):
        assert at["phase"] == "decode"
        full = attention == df.parse("full")
        groups = heads // config.sharing
        return 1e-3 * (groups * (1 + full) + 0.5 * (groups == 1))

    monkeypatch.setattr("dartformer.cost.table.Table.attention", seconds)
    monkeypatch.setattr("dartformer.cost.table.Table.rest", lambda *_, **__: 0.01)
    # All cheap is 10 + 4, and a layer with a full and a cheap group 2 more: 1 and its grouping.
    budget = "latency_ms=16,length=32,phase=decode"
    assert main(["derive", f"--workdir={copy}", f"--budget={budget}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quantity"] == "latency_ms"
    assert found["cost"] == pytest.approx(16)
    assert found["full_cost"] == pytest.approx(18)
    # Two groups of one layer cost as much as one: the better layer is kept whole.
    scores = sum(score / score.sum() for score in results_of(copy).scores.values())
    kept = np.array(found["kept"])
    assert kept.sum(1).max() == 2
    assert (kept * scores).sum() == pytest.approx(scores.sum(1).max())
    assert main(["derive", f"--workdir={copy}", f"--budget={budget}"]) == 0
    assert "16 ms for a token at 32 tokens, 89% of 18 ms" in capsys.readouterr().out

    mine = home / "speed.py"
    text = ["new", f"--from={home}/model", f"--data={home}/text.txt", *QUICK]
    limit = "--config.search.budget=latency_ms=16,length=32,phase=decode"
    assert main([*text, limit]) == 0
    mine.write_text(capsys.readouterr().out)
    workdir = copy.parent / "speed"
    assert main(["run", f"--config={mine}", f"--workdir={workdir}", "--quiet"]) == 0
    results = results_of(workdir)
    assert not results.encodes
    for placed in results.placements:
        if placed.role in ("answer", "derived", "baseline"):
            assert placed.price <= 16 + 1e-6
            assert placed.kv_bytes > 0
    assert "16 ms for a token at 32 tokens" in results.verdict[0]
    assert "at the same speed" in (workdir / "report.html").read_text()


def test_report_and_figures(copy, capsys):
    (copy / "report.html").unlink()
    assert main(["report", str(copy), "--figures=svg", "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert {Path(file).name for file in written["figures"]} == {
        "kept.svg",
        "front.svg",
        "worth.svg",
    }
    assert (copy / "report.html").exists()
    (copy / "results.json").unlink()
    assert "not evaluated yet" in page.render(page.read(copy))


def test_generate_takes_the_workdir(copy, capsys):
    assert main(["generate", str(copy), "--prompt=w1 w2", "--max-tokens=3"]) == 0
    assert capsys.readouterr().out.startswith("w1 w2")


def test_export_is_a_folder_that_generates(copy, capsys):
    """Sinks have no class in transformers, so the folder says so and is our own."""
    assert main(["export", f"--workdir={copy}", "--format=hf"]) == 0
    assert "model_type dartformer-llama" in capsys.readouterr().out
    exported = df.load_pretrained(copy / "export")
    genotype = df.Genotype.from_dict(json.loads((copy / "genotype.json").read_text()))
    assert exported.genotype == genotype
    prompt = ["--prompt=w1 w2 w3", "--max-tokens=4"]
    assert main(["generate", str(copy), *prompt]) == 0
    text = capsys.readouterr().out
    assert main(["generate", str(copy / "export"), *prompt]) == 0
    assert capsys.readouterr().out == text
    assert main(["export", f"--workdir={copy}", "--format=onnx"]) == 2
    assert "Use --format=hf" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["clean", "compare", "predict", "search", "race", "profile"])
def test_other_verbs_refuse_in_one_line(copy, config, verb, capsys):
    commands = {
        "clean": ["clean", str(copy)],
        "compare": ["compare", str(copy), str(copy.parent)],
        "predict": ["predict", str(copy), "--text=w1"],
        "profile": ["profile", f"--config={config}"],
    }
    command = commands.get(verb, [verb, f"--config={config}", f"--workdir={copy}"])
    assert main(command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert "error" in lines[0]


def test_the_one_layer_that_reads_is_found(tmp_path, capsys):
    """Planted: the attention of the first layer writes nothing, so only the second is worth a cache."""
    folder = with_tokenizer(tmp_path / "planted")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, file)
    (tmp_path / "text.txt").write_text(words(400))
    rules = "--config.checkpoint.rules=path,swap,restore,frozen"
    layer = "--config.space.granularity=layer"
    keep = "--config.checkpoint.keep=1"
    assert (
        main(["new", f"--from={folder}", f"--data={tmp_path}/text.txt", *QUICK, layer, keep, rules])
        == 0
    )
    (tmp_path / "mine.py").write_text(capsys.readouterr().out)
    workdir = tmp_path / "run"
    assert main(["run", f"--config={tmp_path}/mine.py", f"--workdir={workdir}", "--quiet"]) == 0
    results = results_of(workdir)
    for rule in ("path", "swap", "restore", "frozen"):
        assert results.named[rule].kept.tolist() == [[0], [1]], rule
    # Nothing else is lost, so the answer predicts as the checkpoint does.
    assert results.answer.divergence("again") == pytest.approx(0, abs=1e-5)
    assert results.named["first"].divergence("again") > 0.1
    assert results.answer.count == 1


def test_learned_shares_can_decide(home, tmp_path):
    """As the first rule, of KV groups, with the path beside it in the same table."""
    config = checkpoint_defaults(
        f"{home}/model",
        f"{home}/text.txt",
        rules=("frozen", "path"),
        frozen_steps=5,
        sequences=1,
        points=1,
        length=32,
        keep=2,
        cheap="sink(window=4, sinks=1)",
    )
    results = df.place(config, tmp_path / "run")
    assert results.answer.name == "frozen"
    assert results.answer.kept.shape == (2, 2)
    assert results.answer.kept.sum() == 2
    assert {"frozen_layers", "frozen_text", "frozen_again", "path"} <= results.named.keys()
    assert not results.additivity
    stored = json.loads((tmp_path / "run/scores.json").read_text())["scores"]
    for scores in stored:
        if scores["rule"] == "frozen":
            assert np.sum(scores["scores"]) == pytest.approx(scores["totals"][0])


def new(capsys, *words_):
    """The exit code and the line that `new` prints on standard error."""
    code = main(["new", *words_])
    return code, capsys.readouterr().err.strip()


def test_bad_input_is_one_line(home, tmp_path, capsys):
    model, text = f"--from={home}/model", f"--data={home}/text.txt"
    (tmp_path / "short.txt").write_text(words(50))
    wide = with_tokenizer(tmp_path / "wide", vocabulary=60)
    (tmp_path / "wide.txt").write_text(words(2000, 60))
    encoder = with_tokenizer(tmp_path / "encoder", "bert")
    option = "--config.checkpoint."
    cases = [
        ([model], "--from needs --data=FILE"),
        ([model, f"--data={tmp_path}/none.txt"], "there is no"),
        ([model, f"--data={tmp_path}"], "must be a file"),
        ([model, f"--data={tmp_path}/short.txt"], "the text has 50 tokens, and 12 sequences"),
        ([f"--from={wide}", f"--data={tmp_path}/wide.txt"], "does not match its model"),
        ([f"--from={encoder}", text], "takes 16 tokens, of which a window saves nothing"),
        ([f"--from={tmp_path}/none", text], "there is no folder"),
        ([model, text, f"{option}rules=swop"], "Choices: path, swap, restore, frozen"),
        ([model, text, f"{option}rules=swap"], "scores whole layers"),
        ([model, text, f"{option}frozen_steps=0"], "frozen_steps must be at least 1"),
        ([model, text, "--config.space.granularity=head"], "keeps the whole KV group"),
        ([model, text, "--config.space.granularity=model"], "Choices: layer, kv_group"),
        ([model, text, f"{option}cheap=local(window=31)"], "so nothing is tested"),
        ([model, text, f"{option}cheap=full"], "must not be full itself"),
        ([model, text, f"{option}length=64"], "at most 32 tokens, got 64"),
        ([model, text, f"{option}keep=9"], "at most the 4 places, got 9"),
        ([model, text, "--config.search.budget=kv_bytes=300,length=32"], "is below 1,152 bytes"),
        ([model, text, "--config.search.budget=kv_bytes=3000"], "needs a length"),
        ([model, text, "--config.search.budget=flops=3000,length=32"], "Limit kv_bytes"),
        ([model, text, "--minutes=3"], "--minutes does not work with --from"),
    ]
    for command, message in cases:
        code, line = new(capsys, *command)
        assert code == 2, command
        assert message in line, (command, line)
        assert "\n" not in line


def test_a_checkpoint_that_changed_is_refused(home, copy, config, capsys, tmp_path):
    """Its config has the same size and another content: the time alone would not tell."""
    file = home / "model/tokenizer.json"
    before = file.read_bytes()
    try:
        file.write_bytes(before.replace(b'"w1"', b'"x1"'))
        for verb in (["derive", f"--workdir={copy}"], ["generate", str(copy), "--prompt=w2"]):
            assert main(verb) == 2
            assert "has changed since the places were scored" in capsys.readouterr().err
        assert main(["run", f"--config={config}", f"--workdir={copy}", "--quiet"]) == 2
        assert "has changed" in capsys.readouterr().err
    finally:
        file.write_bytes(before)
    # Written again as it was, it is the same one.
    assert main(["derive", f"--workdir={copy}", "--quiet"]) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_kind_that_tests_nothing_decides_nothing(seed):
    """Its scores are rounding: as shares of their tiny total they would count as much."""
    rng = np.random.default_rng(seed)
    scores = rng.random((3, 4, 2))
    noise = 1e-6 * rng.normal(size=(3, 4, 2))
    entries = (
        Scores("path", "text", noise, noise.sum((1, 2)), 0.0, 0.0),
        Scores("path", "again", scores, scores.sum((1, 2)), 0.0, 0.0),
    )
    both = combined(ScoreFile({}, entries), "path", ("text", "again"))
    alone = combined(ScoreFile({}, entries), "path", ("again",))
    np.testing.assert_allclose(both, alone, atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_any_budget_is_met_and_used(home, seed):
    """Whatever the budget and the scores: within it, and no kept place could be swapped for better."""
    rng = np.random.default_rng(seed)
    config = checkpoint_defaults(
        f"{home}/model", f"{home}/text.txt", cheap="local(window=2)", keep=1
    )
    places = PlacementStudy(build_placement(config)).places
    scores = rng.random((2, 2))
    length = int(rng.integers(8, 5000))
    full = places.bytes_of(np.ones((2, 1)), length)
    none = places.bytes_of(np.zeros((2, 1)), length)
    limit = Limit(float(rng.uniform(none, full)), length)
    kept = choose(places, scores, limit)
    assert places.bytes_of(kept, length) <= limit.amount
    assert kept.sum() == affordable(places, limit, 2)
    if 0 < kept.sum() < 4:
        assert scores[kept].min() >= scores[~kept].max()
    with pytest.raises(InputError, match="is below"):
        limit_of(df.cost.budget.Budget.of({"kv_bytes": none - 1, "length": length}), places)
