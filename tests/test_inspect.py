"""The verb inspect: sizes and prices without weights, and every reason for which a folder is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dartformer as df
from dartformer.cli.main import main
from dartformer.models.decode import decoding
from dartformer.pretrained import FAMILIES
from dartformer.pretrained.inspection import inspect

FOLDERS = Path(__file__).parent / "oracles/checkpoints"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A copy of a Llama, whose files a test changes."""
    shutil.copytree(FOLDERS / "llama", tmp_path / "ckpt")
    return tmp_path / "ckpt"


def settings(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("name", FAMILIES.builtin)
def test_what_is_said_of_a_checkpoint_is_what_is_loaded(name):
    seen, model = inspect(FOLDERS / name, FAMILIES), df.load_pretrained(FOLDERS / name)
    assert not seen.refused
    assert (seen.config, seen.genotype) == (model.config, model.genotype)
    tensors = load_file(FOLDERS / name / WEIGHTS)
    assert seen.files.bytes == sum(tensor.nbytes for tensor in tensors.values())
    stored = sum(tensor.size for key, tensor in tensors.items() if key not in model.left_out)
    assert seen.files.parameters == stored


@pytest.mark.parametrize("name", sorted(FAMILIES.builtin.keys() - {"bert", "roberta"}))
def test_the_price_of_a_cache_is_what_it_takes(name):
    seen, model = inspect(FOLDERS / name, FAMILIES), df.load_pretrained(FOLDERS / name)
    ((length, price),) = seen.kv_bytes.items()
    assert length == model.config.length
    cache = decoding(model.config, model.genotype).init_cache(1, length, np.float32)
    layers = [leaf for layer in cache["layers"] for leaf in _arrays(layer)]
    assert sum(array.nbytes for array in layers) == price


def _arrays(tree):
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _arrays(value)
    elif hasattr(tree, "nbytes"):
        yield tree


def test_all_reasons_are_listed_at_once(folder, capsys):
    """Each as loading says it once those before it are fixed."""
    settings(
        folder,
        auto_map={"AutoModel": "modeling.Mine"},
        quantization_config={"quant_method": "gptq"},
        rope_parameters={"rope_type": "yarn", "factor": 4.0},
        hidden_act="mish",
        intermediate_size=41,
    )
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    del tensors["lm_head.weight"]
    save_file({**tensors, "extra": np.ones(3, np.float32)}, folder / WEIGHTS)
    refused = inspect(folder, FAMILIES).refused
    for message in (
        "needs code of its own",
        "quantized ('gptq')",
        "unknown activation",
        "has the type 'yarn'",
        "lacks the tensor 'lm_head.weight'",
        "has the tensor 'extra'",
        "and config.json needs (41, 24). Of 5 more tensors the shape differs",
        "of the type I8",
    ):
        assert sum(message in reason for reason in refused) == 1
    assert len(refused) == 8
    assert main(["inspect", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert shown.count("\n  refused ") == 8
    assert "  use " not in shown


def test_an_unknown_family_has_its_files_listed(folder):
    settings(folder, model_type="mamba")
    seen = inspect(folder, FAMILIES)
    assert seen.config is None
    assert seen.files.dtypes == ("F32",)
    assert len(seen.refused) == 1


def test_a_tokenizer_beyond_the_vocabulary_is_told(folder):
    words = {f"w{number}": number for number in range(60)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    seen = inspect(folder, FAMILIES)
    assert seen.vocabulary == (60, 59)
    (generate, placement, encode) = seen.uses
    assert generate.reason == "its tokenizer.json has ids up to 59, and its vocabulary ends at 47."
    assert not placement.reason
    assert encode.reason


def test_the_verb_prints_layers_and_prices(capsys):
    assert main(["inspect", str(FOLDERS / "ministral")]) == 0
    shown = capsys.readouterr().out
    assert "2 of width 24, 4 heads of 6 in 2 KV groups" in shown
    assert "local(window=2) in 0, full in 1" in shown
    assert "3.281 KiB at 32 tokens" in shown
    assert main(["inspect", str(FOLDERS / "bert"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["attention"] == ["full", "full"]
    assert data["kv_bytes"] == {}
    assert [use["works"] for use in data["uses"]] == [False, True, False]


def test_folders_that_are_no_checkpoints_are_one_line(tmp_path, capsys):
    for path, message in (
        (tmp_path / "none", "there is no folder"),
        (tmp_path, "is no checkpoint: it has no config.json"),
        (FOLDERS / "llama" / "config.json", "there is no folder"),
    ):
        assert main(["inspect", str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    (tmp_path / "config.json").write_text("{")
    assert main(["inspect", str(tmp_path)]) == 2


def test_folders_of_our_own_are_named(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checksums.json").write_text("{}")
    (tmp_path / "genotype.json").write_text('{"format": 1, "layers": [["full", "linear"]]}')
    assert main(["inspect", str(tmp_path)]) == 0
    assert "is an export of dartformer, with full x1 + linear" in capsys.readouterr().out
    (tmp_path / "checksums.json").unlink()
    (tmp_path / "results.json").write_text("{}")
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "workdir"
