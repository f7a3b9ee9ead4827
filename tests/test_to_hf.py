"""Export to Hugging Face folders: the same tensors, hybrids as transformers reads them, and folders
of our own where it has no class."""

import dataclasses
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dartformer as df
from dartformer.attention import parse
from dartformer.cli.main import main
from dartformer.errors import InputError
from dartformer.models.transformer import transformer
from dartformer.pretrained import FAMILIES, to_hf
from dartformer.pretrained.base import Layout, Tensor
from dartformer.space.genotype import Genotype
from dartformer.training.checkpoint import named_leaves

FOLDERS = Path(__file__).parent / "oracles/checkpoints"
HYBRIDS = Path(__file__).parent / "oracles/hybrids"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A copy of a Llama, whose files a test changes."""
    shutil.copytree(FOLDERS / "llama", tmp_path / "ckpt")
    return tmp_path / "ckpt"


def settings(folder, **changes):
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in values.items() if v != "delete"}))


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def genotype(*layers, heads=4):
    """Each layer one attention, or a list of one for each head."""
    rows = []
    for layer in layers:
        texts = layer
        if isinstance(layer, str):
            texts = [layer] * heads
        rows.append(tuple(map(parse, texts)))
    return Genotype(tuple(rows))


def tensors_of(folder):
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors.update(load_file(file))
    return tensors


def require_same_tensors(found, want):
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert found[name].tobytes() == tensor.tobytes(), name


def require_close(found, want):
    """Of one network that is compiled twice."""
    np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


# The table in the other direction.


@pytest.mark.parametrize("name", FAMILIES.builtin)
def test_nothing_changed_gives_the_same_tensors(name, tmp_path):
    saved = df.save_pretrained(df.load_pretrained(FOLDERS / name), tmp_path / "out")
    assert saved == (tmp_path / "out", name, "")
    require_same_tensors(tensors_of(tmp_path / "out"), load_file(FOLDERS / name / WEIGHTS))
    config = config_of(tmp_path / "out")
    assert config.pop("dartformer_version") == df.__version__
    assert config == config_of(FOLDERS / name)
    assert not (tmp_path / "out" / "genotype.json").exists()
    assert {file.name for file in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_types_of_numbers_stay(folder, dtype, tmp_path):
    tensors = {name: x.astype(dtype) for name, x in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    df.save_pretrained(df.load_pretrained(folder), tmp_path / "out")
    require_same_tensors(tensors_of(tmp_path / "out"), tensors)


def test_types_may_be_mixed_and_other_tensors_are_copied(tmp_path):
    """Norms in float32 beside bfloat16, a buffer of whole numbers, and a pooler."""
    shutil.copytree(FOLDERS / "bert", tmp_path / "ckpt")
    tensors = {}
    for name, x in load_file(FOLDERS / "bert" / WEIGHTS).items():
        tensors[name] = x
        if x.ndim == 2:
            tensors[name] = x.astype(ml_dtypes.bfloat16)
    tensors["embeddings.position_ids"] = np.arange(16)[None]
    save_file(tensors, tmp_path / "ckpt" / WEIGHTS)
    df.save_pretrained(df.load_pretrained(tmp_path / "ckpt"), tmp_path / "out")
    require_same_tensors(tensors_of(tmp_path / "out"), tensors)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_keep_their_prefix(folder, prefix, tmp_path):
    tensors = {}
    for name, x in load_file(folder / WEIGHTS).items():
        tensors[name.replace("model.", prefix)] = x
    save_file(tensors, folder / WEIGHTS)
    df.save_pretrained(df.load_pretrained(folder), tmp_path / "out")
    require_same_tensors(tensors_of(tmp_path / "out"), tensors)


def test_a_tied_head_is_not_written(tmp_path):
    shutil.copytree(FOLDERS / "qwen2", tmp_path / "ckpt")
    tensors = load_file(tmp_path / "ckpt" / WEIGHTS)
    tied = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"]}
    save_file(tied, tmp_path / "ckpt" / WEIGHTS)
    df.save_pretrained(df.load_pretrained(tmp_path / "ckpt"), tmp_path / "out")
    require_same_tensors(tensors_of(tmp_path / "out"), tensors)


@pytest.mark.parametrize("shard_bytes", [1, 5_000, 10_000, 10**9])
def test_shards_are_as_small_as_told(shard_bytes, tmp_path):
    model = df.load_pretrained(FOLDERS / "llama")
    df.save_pretrained(model, tmp_path / "out", shard_bytes=shard_bytes)
    files = list((tmp_path / "out").glob("*.safetensors"))
    for file in files:
        shard = load_file(file)
        assert len(shard) == 1 or sum(x.nbytes for x in shard.values()) <= shard_bytes
    want = load_file(FOLDERS / "llama" / WEIGHTS)
    require_same_tensors(tensors_of(tmp_path / "out"), want)
    if len(files) == 1:
        assert files[0].name == WEIGHTS
    else:
        index = json.loads((tmp_path / "out" / INDEX).read_text())
        assert index["weight_map"].keys() == want.keys()
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in want.values())
        assert f"model-00001-of-{len(files):05}.safetensors" in index["weight_map"].values()
    again = df.load_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.weights, model.weights)


def test_changed_weights_are_written(tmp_path):
    model = df.load_pretrained(FOLDERS / "gpt2")
    changed = jax.tree.map(lambda x: x * 1.5 + 0.1, model.weights)
    df.save_pretrained(dataclasses.replace(model, weights=changed), tmp_path / "out")
    again = df.load_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.weights, changed)


# Attentions.

HALVES = [
    ("llama", "ministral"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("ministral", "ministral"),
    ("smollm3", "smollm3"),
]


@pytest.mark.parametrize(("name", "model_type"), HALVES)
@pytest.mark.parametrize("layers", [("full", "local(window=3)"), ("local(window=1)",) * 2])
def test_windows_by_layer_have_a_class(name, model_type, layers, tmp_path):
    model = df.load_pretrained(FOLDERS / name)
    hybrid = genotype(*layers)
    saved = df.save_pretrained(model, tmp_path / "out", genotype=hybrid)
    assert saved == (tmp_path / "out", model_type, "")
    again = df.load_pretrained(tmp_path / "out")
    assert (again.genotype, again.config) == (hybrid, model.config)
    require_same_tensors(tensors_of(tmp_path / "out"), load_file(FOLDERS / name / WEIGHTS))
    ids = np.load(FOLDERS / name / "expected.npz")["ids"]
    net = transformer(model.config, hybrid)
    want = net.apply(model.weights, jnp.asarray(ids), jnp.ones(ids.shape, bool))
    require_close(again(ids), want)
    # And back: the class with full attention in all layers.
    df.save_pretrained(again, tmp_path / "back", genotype=genotype("full", "full"))
    full = df.load_pretrained(tmp_path / "back")
    assert full.genotype == genotype("full", "full")


@pytest.mark.parametrize(("name", "model_type"), HALVES)
def test_transformers_gives_the_same_logits_of_a_hybrid(name, model_type, tmp_path):
    """`tests/oracles/hybrids.py` opened that `config.json` with the checkpoint's tensors."""
    hybrid = genotype("full", "local(window=4)")
    df.save_pretrained(df.load_pretrained(FOLDERS / name), tmp_path / "out", genotype=hybrid)
    config, opened = config_of(tmp_path / "out"), config_of(HYBRIDS / name)
    del config["dartformer_version"], opened["dartformer_version"]
    assert config == opened
    want = np.load(HYBRIDS / name / "expected.npz")
    assert want["kept"].tolist() == [10, 4]
    found = np.asarray(df.load_pretrained(tmp_path / "out")(want["ids"], want["valid"]))
    wanted = want["outputs"][want["valid"]]
    np.testing.assert_allclose(found[want["valid"]], wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_llama_with_biases_is_written_as_smollm3(folder, tmp_path):
    settings(folder, attention_bias=True, mlp_bias=True)
    tensors, rng = load_file(folder / WEIGHTS), np.random.default_rng(0)
    for name in list(tensors):
        if "_proj." in name:
            bias = rng.normal(size=len(tensors[name])).astype(np.float32)
            tensors[name.replace("weight", "bias")] = bias
    save_file(tensors, folder / WEIGHTS)
    model = df.load_pretrained(folder)
    hybrid = genotype("local(window=2)", "full")
    assert df.save_pretrained(model, tmp_path / "out", genotype=hybrid).model_type == "smollm3"
    again = df.load_pretrained(tmp_path / "out")
    assert (again.genotype, again.config) == (hybrid, model.config)
    require_same_tensors(tensors_of(tmp_path / "out"), tensors)


def test_what_the_class_would_take_for_something_else_is_written(folder, tmp_path):
    """A `config.json` of an older transformers, which leaves to the class what it can."""
    settings(
        folder,
        rope_parameters="delete",
        rope_theta="delete",
        head_dim="delete",
        bos_token_id="delete",
        eos_token_id="delete",
        pad_token_id="delete",
        num_key_value_heads="delete",
        max_position_embeddings="delete",
        tie_word_embeddings="delete",
        rms_norm_eps="delete",
        num_attention_heads=2,
    )
    # As many heads of keys and values as of queries: 2 of width 12 have the tensors of 4 of 6.
    tensors = load_file(folder / WEIGHTS)
    for layer in range(2):
        for part in "kv":
            name = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            tensors[name] = np.concatenate([tensors[name]] * 2)
    save_file(tensors, folder / WEIGHTS)
    model = df.load_pretrained(folder)
    df.save_pretrained(
        model, tmp_path / "out", genotype=genotype("full", "local(window=2)", heads=2)
    )
    config = config_of(tmp_path / "out")
    assert (config["num_key_value_heads"], config["head_dim"]) == (2, 12)
    assert config["max_position_embeddings"] == 2048
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 10_000.0}
    tokens = (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"])
    assert tokens == (1, 2, None)
    assert df.load_pretrained(tmp_path / "out").config == model.config


OWN = [
    ("llama", ("sink(window=3, sinks=1)", "full"), r"no class with sink\(window=3, sinks=1\)"),
    ("llama", ("uniform", "full"), "no class with uniform"),
    ("llama", ("full", ["full"] * 2 + ["local(window=3)"] * 2), "heads differ within a layer"),
    ("qwen3", ("local(window=3)", "local(window=2)"), "one window for all layers.* 2, 3"),
    ("smollm3", ("local(window=0)", "full"), "no window of the token alone"),
    ("gpt2", ("local(window=3)", "full"), "no GPT-2 with windows"),
    ("bert", ("local(window=3)", "full"), "no BERT with windows"),
    ("ministral", ("gated_delta", ["ssd", "full"] * 2), "no class with gated_delta"),
]


@pytest.mark.parametrize(("name", "layers", "message"), OWN)
def test_what_has_no_class_is_a_folder_of_our_own(name, layers, message, tmp_path):
    plain, hybrid = df.load_pretrained(FOLDERS / name), genotype(*layers)
    net = transformer(plain.config, hybrid)
    # The checkpoint's weights, and what the attentions have beside them.
    weights = net.init(jax.random.key(1))
    loaded = dict(named_leaves(plain.weights))
    weights = jax.tree_util.tree_map_with_path(
        lambda path, leaf: loaded.get(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
        weights,
    )
    model = dataclasses.replace(plain, weights=weights)
    saved = df.save_pretrained(model, tmp_path / "out", genotype=hybrid)
    assert saved.model_type == f"dartformer-{name}"
    assert re.search(message, saved.reason)
    again = df.load_pretrained(tmp_path / "out")
    assert (again.genotype, again.family) == (hybrid, name)
    jax.tree.map(np.testing.assert_array_equal, again.weights, weights)
    ids = np.load(FOLDERS / name / "expected.npz")["ids"]
    want = net.apply(weights, jnp.asarray(ids), jnp.ones(ids.shape, bool))
    require_close(again(ids), want)
    # Nothing that reads a class by its name takes it for one of transformers.
    config = config_of(tmp_path / "out")
    assert all(name.startswith("Dartformer") for name in config["architectures"])
    assert saved.reason[1:] in (tmp_path / "out" / "README.md").read_text()
    # And back.
    df.save_pretrained(again, tmp_path / "back", genotype=plain.genotype)
    require_same_tensors(tensors_of(tmp_path / "back"), load_file(FOLDERS / name / WEIGHTS))
    assert (
        config_of(tmp_path / "back")["architectures"] == config_of(FOLDERS / name)["architectures"]
    )


def test_a_folder_of_our_own_is_checked(folder, tmp_path):
    model = df.load_pretrained(folder)
    hybrid = genotype("sink(window=3, sinks=1)", "full")
    out = tmp_path / "out"
    df.save_pretrained(model, out, genotype=hybrid)
    file = out / "genotype.json"
    for text, message in (
        ("{", "is damaged"),
        ("{}", "genotype.json: not a genotype"),
        ('{"format": 1, "layers": [["full"]]}', "genotype.json: the genotype has 1 layers of 1"),
        (genotype("linformer", "full").to_json(), "genotype.json: .*linformer"),
        (None, "there is no"),
    ):
        file.unlink()
        if text is not None:
            file.write_text(text)
            with pytest.raises(InputError, match=message) as caught:
                df.load_pretrained(out)
            assert "\n" not in str(caught.value)
            continue
        with pytest.raises(InputError, match=message):
            df.load_pretrained(out)


def test_a_folder_of_our_own_continues_texts_and_is_inspected(folder, tmp_path, capsys):
    words = {f"w{number}": number for number in range(48)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "w0"}
    tokenizer = {"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    plain, hybrid = df.load_pretrained(folder), genotype("sink(window=3, sinks=1)", "full")
    df.save_pretrained(plain, tmp_path / "out", genotype=hybrid)
    (found,) = df.generate(tmp_path / "out", "w3 w14 w15 w9 w2 w6", max_tokens=3)
    ids = [3, 14, 15, 9, 2, 6]
    for _ in range(3):
        ids.append(int(df.load_pretrained(tmp_path / "out")([ids])[0, -1].argmax()))
    assert found.text.split() == [f"w{number}" for number in ids[6:]]
    assert main(["inspect", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "(dartformer-llama)" in shown
    assert "sink(window=3, sinks=1) in 0, full in 1" in shown
    assert main(["generate", str(tmp_path / "out"), "--prompt=w3 w14", "--max-tokens=2"]) == 0


# Files.


def test_texts_terms_and_settings_come_along(folder, tmp_path):
    copied = {
        "tokenizer.json": "{}",
        "generation_config.json": '{"eos_token_id": 2}',
        "README.md": "---\nlicense: mit\n---\nA model.\n",
        "LICENSE": "MIT",
    }
    for name, text in copied.items():
        (folder / name).write_text(text)
    for name in ("modeling.py", "pytorch_model.bin", "optimizer.pt", "expected.npz"):
        (folder / name).write_bytes(b"0")
    model = df.load_pretrained(folder)
    df.save_pretrained(model, tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {*copied, "config.json", WEIGHTS}
    for name, text in copied.items():
        assert (tmp_path / "out" / name).read_text() == text
    # The card says what differs, below what it said.
    df.save_pretrained(model, tmp_path / "out", genotype=genotype("full", "local(window=2)"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith(copied["README.md"])
    assert "| 1 | local(window=2) |" in card
    assert str(tmp_path) not in card


def test_nothing_is_overwritten_but_an_earlier_export(folder, tmp_path):
    model = df.load_pretrained(folder)
    before = sorted(folder.iterdir())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    shutil.copytree(folder, tmp_path / "copy")
    for place, message in (
        (folder, "is the checkpoint itself"),
        (tmp_path / "copy", "holds other files"),
        (tmp_path / "other", "holds other files"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(InputError, match=message):
            df.save_pretrained(model, place)
    assert sorted(folder.iterdir()) == before
    (tmp_path / "empty").mkdir()
    df.save_pretrained(model, tmp_path / "empty", shard_bytes=5000)
    df.save_pretrained(model, tmp_path / "empty")
    assert [file.name for file in (tmp_path / "empty").glob("*.safetensors")] == [WEIGHTS]


def test_a_small_disk_is_one_line_and_nothing_is_written(folder, tmp_path, monkeypatch):
    model = df.load_pretrained(folder)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6, 1000))
    with pytest.raises(InputError, match=r"needs 1\.\d+ MiB, and its disk has 1000 bytes free"):
        df.save_pretrained(model, tmp_path / "some" / "out")
    assert not (tmp_path / "some").exists()


def test_an_error_on_the_way_leaves_nothing(folder, tmp_path, monkeypatch):
    model = df.load_pretrained(folder)
    written = []

    def full_disk(source, weights):
        written.append(source)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return np.zeros(source.bytes, np.uint8)

    monkeypatch.setattr(to_hf, "_content", full_disk)
    with pytest.raises(OSError, match="No space left"):
        df.save_pretrained(model, tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} == {"ckpt"}


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    model = df.load_pretrained(folder)
    with pytest.raises(InputError, match="the genotype has 1 layers of 4 heads"):
        df.save_pretrained(model, tmp_path / "out", genotype=genotype("full"))
    with pytest.raises(InputError, match="the weights lack blocks/0/mixer/own"):
        df.save_pretrained(model, tmp_path / "out", genotype=genotype("gated_delta", "full"))
    large = jax.tree.map(lambda x: x * 1e6, model.weights)
    tensors = {name: x.astype(np.float16) for name, x in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InputError, match="too large for float16"):
        df.save_pretrained(dataclasses.replace(model, weights=large), tmp_path / "out")
    assert {file.name for file in tmp_path.iterdir()} == {"ckpt"}


def test_a_layout_that_copies_is_refused(folder, tmp_path, monkeypatch):
    """A family of another package may convert by more than views, and is then not written wrongly."""
    copies = Layout(lambda ours: ours, lambda x, ours: x + 0)
    llama = FAMILIES["llama"]

    def tensors(config):
        table = llama.tensors(config)
        return [Tensor(table[0].ours, table[0].theirs, copies), *table[1:]]

    families = {"llama": dataclasses.replace(llama, tensors=tensors)}
    with pytest.raises(InputError, match="because the layout of embed/embedding copies"):
        to_hf.save(df.load_pretrained(folder), tmp_path / "out", families)
