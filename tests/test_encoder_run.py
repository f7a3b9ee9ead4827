"""A placement in an encoder as a user runs it: `new --from`, `run`, `derive`, `report`."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_sentence import LENGTH, sentence, switches, with_tokenizer, write_modules

import dartformer as df
from dartformer.cli.main import main
from dartformer.placement.records import PlacementResults
from dartformer.placement.study import PlacementStudy
from dartformer.report import placement as page

CHEAP = "--config.checkpoint.cheap=local(window=2)"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An encoder, documents, and the config that `new --from` writes for them."""
    folder = tmp_path_factory.mktemp("encoder")
    with_tokenizer(folder / "model")
    write_modules(folder / "model", switches("mean_tokens"), "Normalize")
    (folder / "texts.txt").write_text("\n".join(sentence(seed, 70) for seed in range(15)))
    return folder


@pytest.fixture(scope="module")
def config(home):
    printed = io.StringIO()
    command = ["new", f"--from={home}/model", f"--data={home}/texts.txt", CHEAP]
    with contextlib.redirect_stdout(printed):
        assert main([*command, "--config.checkpoint.rules=path,swap,restore"]) == 0
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
    assert main(["new", f"--from={home}/model", f"--data={home}/texts.txt", CHEAP]) == 0
    captured = capsys.readouterr()
    assert "bert, 2 layers of 4 heads, 64 tokens at most; embeddings are pooled by mean" in (
        captured.err
    )
    assert "12 documents are read, cut after 64 tokens; the shortest has 64" in captured.err
    assert "config.checkpoint.keep = 1" in captured.out
    assert "flops=" in captured.out
    compile(captured.out, "mine.py", "exec")


def test_a_run_compares_embeddings(workdir, home):
    results = results_of(workdir)
    assert results.encodes
    assert (results.quantity, results.kv_bytes, results.kinds) == ("flops", 0, ("text",))
    names = [placed.name for placed in results.placements]
    for name in ("full", "none", "uniform", "first", "last", "random_0", "swap", "restore"):
        assert name in names
    assert "path_text" not in names
    assert results.answer.count == 1
    assert results.answer.price <= results.limit
    # The distance of the answer by the embeddings of its own model.
    study = PlacementStudy(df.config.load_any(home / "mine.py"))
    model, held_out = study.model, study.kinds["text"].held_out
    net = df.transformer(model.config, df.Genotype.from_dict(results.genotype.to_dict()))
    distances = []
    for tokens in held_out.tokens:
        valid = np.ones((1, LENGTH), bool)
        ours = np.asarray(net.apply(model.weights, tokens[None], valid))[0].mean(0)
        theirs = np.asarray(model(tokens[None]))[0].mean(0)
        cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
        distances.append(1 - cosine)
    assert results.answer.loss("text") == pytest.approx(np.mean(distances), abs=1e-5)
    assert results.named["full"].loss("text") == pytest.approx(0, abs=1e-6)


def test_texts_speak_of_distances(workdir):
    results = results_of(workdir)
    lines = [*results.verdict, *results.warnings, page.render(page.read(workdir))]
    assert "FLOP for a text of 64 tokens" in results.verdict[0]
    assert "from the checkpoint's (1 - cosine" in results.verdict[1]
    assert "at the same cost, the cosine distance is" in results.verdict[2]
    for line in lines:
        for word in (" nats", "cache", "KV group", "passage", "KL divergence"):
            # The config and the links stand at the end of the page.
            assert word not in line.partition("How this was made")[0], (word, line[:200])


def test_derive_answers_another_budget(copy, capsys):
    results = results_of(copy)
    full, none = results.named["full"].price, results.named["none"].price
    command = ["derive", f"--workdir={copy}"]
    assert main([*command, f"--budget=flops={full},length=64", "--json"]) == 0
    assert np.sum(json.loads(capsys.readouterr().out)["kept"]) == 2
    assert main([*command, f"--budget=flops={none * 1.0001},length=64"]) == 0
    assert "Keep full attention in 0 of 2 layers" in capsys.readouterr().out
    for budget, message in (
        ("kv_bytes=1MB,length=64", "because an encoder keeps no cache"),
        ("memory_bytes=1MB,length=64", "differ in computation alone"),
        (f"flops={full}", "needs a length"),
        (f"flops={none / 2},length=64", "is below"),
        (f"flops={full},length=65", "at most 64 tokens, because its table of positions"),
        (f"flops={full},latency_ms=3,length=64", "Limit one of them"),
        (f"flops={full},length=64,batch=2", "is of one text"),
        (f"flops={full},length=32", "so nothing is saved"),
    ):
        assert main([*command, f"--budget={budget}"]) == 2
        line = capsys.readouterr().err.strip()
        assert message in line, (budget, line)
        assert "\n" not in line


def test_a_latency_is_a_budget(copy, capsys, tmp_path):
    """Measured here; any limit far above it keeps everything."""
    budget = f"--budget=latency_ms=1e6,length=64,table={tmp_path}/table.json"
    code = main(["derive", f"--workdir={copy}", budget, "--json"])
    captured = capsys.readouterr()
    if code == 2:
        # On so small a model a window may take longer than full attention.
        assert "takes as long as full attention" in captured.err
    else:
        answer = json.loads(captured.out)
        assert np.sum(answer["kept"]) == 2
        assert answer["quantity"] == "latency_ms"
        assert answer["cost"] == answer["full_cost"] > 0


def test_bad_input_is_one_line(home, tmp_path, capsys):
    model, data = f"--from={home}/model", f"--data={home}/texts.txt"
    (tmp_path / "short.txt").write_text("w3 w4\nw5 w6\n")
    option = "--config.checkpoint."
    cases = [
        ([model], "or plain text that its layers are scored with"),
        ([model, f"--data={tmp_path}/short.txt", CHEAP], "has 2 documents, and 12 are needed"),
        ([model, data, f"{option}length=65", CHEAP], "its table of positions has no more rows"),
        ([model, data, f"{option}cheap=local(window=63)"], "so nothing is saved"),
        ([model, data, CHEAP, "--config.space.granularity=kv_group"], "keeps no keys that heads"),
        ([model, data, CHEAP, "--config.search.budget=kv_bytes=9,length=64"], "keeps no cache"),
        ([model, data, CHEAP, f"{option}keep=3"], "at most the 2 places, got 3"),
    ]
    for command, message in cases:
        assert main(["new", *command]) == 2, command
        line = capsys.readouterr().err.strip()
        assert message in line, (command, line)
        assert "\n" not in line


def test_export_is_a_folder_that_embeds(copy, home, capsys):
    assert main(["export", f"--workdir={copy}"]) == 0
    printed = capsys.readouterr().out
    assert "model_type dartformer-bert" in printed
    assert "no BERT with windows in some layers" in printed
    exported = df.load_pretrained(copy / "export")
    assert exported.genotype == df.Genotype.from_dict(
        json.loads((copy / "genotype.json").read_text())
    )
    # The distance in the results is that of the embeddings of the folder.
    study = PlacementStudy(df.config.load_any(home / "mine.py"))
    texts = (home / "texts.txt").read_text().splitlines()
    ours, theirs = exported.embed(texts), study.model.embed(texts)
    assert (1 - np.sum(ours * theirs, 1)).mean() == pytest.approx(
        results_of(copy).answer.loss("text"), rel=0.5
    )
    assert main(["generate", str(copy), "--prompt=w3"]) == 2
    assert "\n" not in capsys.readouterr().err.strip()


def test_tuning_is_refused(home, capsys):
    command = ["new", f"--from={home}/model", f"--data={home}/texts.txt", CHEAP]
    assert main([*command, "--config.tune.steps=5"]) == 2
    assert "an encoder predicts no tokens to tune on" in capsys.readouterr().err
