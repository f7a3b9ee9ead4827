"""Checkpoints on disk: eight families against transformers, and folders that are refused.

The folders of `tests/oracles/checkpoints` are made by `tests/oracles/checkpoints.py`."""

import json
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import dartformer as df
from dartformer.errors import InputError
from dartformer.models.decode import decoding
from dartformer.models.transformer import transformer
from dartformer.pretrained import FAMILIES
from dartformer.training.checkpoint import named_leaves

FOLDERS = Path(__file__).parent / "oracles/checkpoints"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def expected(name):
    return np.load(FOLDERS / name / "expected.npz")


@pytest.mark.parametrize("name", FAMILIES.builtin)
def test_logits_are_those_of_transformers(name):
    model, want = df.load_pretrained(FOLDERS / name), expected(name)
    found = np.asarray(model(want["ids"], want["valid"]))
    assert found.shape == want["outputs"].shape
    wanted = want["outputs"][want["valid"]]
    np.testing.assert_allclose(found[want["valid"]], wanted, atol=1e-5 * np.abs(wanted).max())


def test_every_fixture_is_of_a_family_and_small():
    assert {folder.name for folder in FOLDERS.iterdir()} == set(FAMILIES.builtin)
    for folder in FOLDERS.iterdir():
        assert sum(file.stat().st_size for file in folder.iterdir()) < 100_000


def test_sizes_and_attentions_are_read():
    qwen3 = df.load_pretrained(FOLDERS / "qwen3")
    assert (qwen3.config.head_dim, qwen3.config.kv_heads) == (8, 2)
    assert qwen3.config.qk_norm_shared
    smollm3 = df.load_pretrained(FOLDERS / "smollm3")
    assert smollm3.config.nope_layers == (1,)
    # A window of 3 counts the token itself.
    assert [str(smollm3.genotype.layers[l][0]) for l in (0, 1)] == ["local(window=2)", "full"]
    bert = df.load_pretrained(FOLDERS / "bert")
    assert bert.left_out == ("pooler.dense.bias", "pooler.dense.weight")
    assert bert.config.length == 16
    assert df.load_pretrained(FOLDERS / "roberta").config.length == 16


def test_the_weights_are_those_of_our_model():
    """The same names and shapes, so that they train, export and are counted like any others."""
    for name in FAMILIES.builtin:
        model = df.load_pretrained(FOLDERS / name)
        net = transformer(model.config, model.genotype)
        fresh = dict(named_leaves(jax.eval_shape(net.init, jax.random.key(0))))
        loaded = dict(named_leaves(model.weights))
        assert list(loaded) == list(fresh)
        assert {k: (v.shape, v.dtype) for k, v in loaded.items()} == {
            k: (v.shape, v.dtype) for k, v in fresh.items()
        }


CAUSAL = sorted(FAMILIES.builtin.keys() - {"bert", "roberta"})


@pytest.mark.parametrize("name", CAUSAL)
def test_token_by_token_a_decoder_gives_the_logits_of_transformers(name):
    model, want = df.load_pretrained(FOLDERS / name), expected(name)
    run = decoding(model.config, model.genotype)
    ids, valid = jnp.asarray(want["ids"]), jnp.asarray(want["valid"])
    cache = run.init_cache(2, ids.shape[1], jnp.float32)
    logits, cache = run.prefill(model.weights, ids[:, :4], valid[:, :4], cache)
    found, step = [logits], jax.jit(run.step)
    for t in range(4, ids.shape[1]):
        logits, cache = step(model.weights, ids[:, t : t + 1], valid[:, t : t + 1], cache)
        found.append(logits)
    # The logits after a prompt of 4 tokens, then after each token.
    wanted, mask = want["outputs"][:, 3:], want["valid"][:, 3:]
    found = np.stack(found, 1)
    np.testing.assert_allclose(found[mask], wanted[mask], atol=1e-5 * np.abs(wanted).max())


# Texts.


@pytest.fixture
def speaking(tmp_path):
    """A decoder with a tokenizer of 48 words."""
    folder = tmp_path / "speaking"
    shutil.copytree(FOLDERS / "llama", folder)
    words = {f"w{number}": number for number in range(47)}
    tokenizer = tokenizers.Tokenizer(WordLevel({**words, "<unk>": 47}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(2)  # as sentence encoders have it, and generation must not
    tokenizer.save(str(folder / "tokenizer.json"))
    settings(folder, eos_token_id=None)
    return folder


def test_a_checkpoint_continues_texts(speaking):
    """Greedy, as the whole model at each step says."""
    model = df.load_pretrained(speaking)
    ids = [3, 14, 15]
    for _ in range(5):
        ids.append(int(model([ids])[0, -1].argmax()))
    words = [f"w{number}" for number in ids]
    (found,) = df.generate(speaking, "w3 w14 w15", max_tokens=5)
    assert found.text.split() == words[3:]
    assert (found.tokens, found.finish) == (5, "length")
    batch = df.generate(model, ["w9", "w3 w14 w15"], max_tokens=5)
    assert batch[1].text == found.text
    # A text ends at the checkpoint's own end, in one number or in a list.
    for ends in (ids[5], [ids[5], 99]):
        settings(speaking, eos_token_id=ends)
        (ended,) = df.generate(speaking, "w3 w14 w15", max_tokens=5)
        assert ended.finish == "stop"
        assert ended.tokens == ids.index(ids[5], 3) - 2


def test_a_message_is_answered_by_the_chat_template(speaking):
    pytest.importorskip("jinja2", reason="needs the extra chat")
    template = "{% for m in messages %}w1 {{ m['content'] }} w2{% endfor %}"
    chat = {"chat_template": template + "{% if add_generation_prompt %} w5{% endif %}"}
    (speaking / "tokenizer_config.json").write_text(json.dumps(chat))
    (answer,) = df.generate(speaking, "w7", max_tokens=4, chat=True)
    (plain,) = df.generate(speaking, "w1 w7 w2 w5", max_tokens=4)
    assert answer.text == plain.text
    assert answer.prompt == "w7"
    for wrong, message in (
        ("{{ raise_exception('only once') }}", "only once"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% for", "fails"),
    ):
        (speaking / "chat_template.jinja").write_text(wrong)
        with pytest.raises(InputError, match=message) as caught:
            df.generate(speaking, "w7", max_tokens=4, chat=True)
        assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_one_line(speaking):
    words = {f"w{number}": number for number in range(60)}
    tokenizer = tokenizers.Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(speaking / "tokenizer.json"))
    assert df.generate(speaking, "w47", max_tokens=1)
    with pytest.raises(InputError, match="has the token 48, and the model has 48"):
        df.generate(speaking, "w1 w48", max_tokens=1)


def test_what_cannot_be_continued_is_one_line(speaking, folder):
    for arguments, message in (
        ((speaking, ""), "the prompt is empty"),
        ((speaking, "w3 " * 32), "has 32 tokens, and the model has 32 positions"),
        ((FOLDERS / "bert", "w3"), "generation needs a causal model"),
        ((folder, "w3"), r"has no tokenizer\.json"),
    ):
        with pytest.raises(InputError, match=message):
            df.generate(*arguments)
    with pytest.raises(InputError, match="has no chat template"):
        df.generate(speaking, "w3", max_tokens=2, chat=True)
    with pytest.raises(InputError, match="cannot spell the stop text 'nothing'"):
        df.generate(speaking, "w3", max_tokens=2, stop="nothing")


# Folders that are changed.


@pytest.fixture
def folder(tmp_path):
    """A copy of a Llama, whose files a test changes."""
    shutil.copytree(FOLDERS / "llama", tmp_path / "ckpt")
    return tmp_path / "ckpt"


def settings(folder, **changes):
    file = folder / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in values.items() if v != "delete"}))


def in_shards(folder, names=("a-1.safetensors", "a-2.safetensors")):
    """The weights in two files and an index."""
    tensors = load_file(folder / WEIGHTS)
    index = {}
    for number, file in enumerate(names):
        part = {name: tensors[name] for name in sorted(tensors)[number :: len(names)]}
        save_file(part, folder / file)
        index.update(dict.fromkeys(part, file))
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return index


def outputs(folder):
    want = expected("llama")
    return np.asarray(df.load_pretrained(folder)(want["ids"], want["valid"]))


def test_shards_are_read_as_one(folder):
    before = outputs(folder)
    in_shards(folder)
    np.testing.assert_array_equal(outputs(folder), before)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_other_types_of_numbers_are_widened(folder, dtype):
    tensors = {name: x.astype(dtype) for name, x in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    model = df.load_pretrained(folder)
    assert {w.dtype for w in jax.tree.leaves(model.weights)} == {jnp.dtype("float32")}
    embedding = tensors["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(model.weights["embed"]["embedding"], embedding)


def test_activations_may_be_bfloat16():
    want = expected("llama")
    model = df.load_pretrained(FOLDERS / "llama", dtype="bfloat16")
    found = np.asarray(model(want["ids"], want["valid"]))
    np.testing.assert_allclose(
        found[want["valid"]], want["outputs"][want["valid"]], atol=0.15 * np.abs(found).max()
    )


@pytest.mark.parametrize("prefix", ["", "model."])
def test_names_may_have_a_prefix_or_none(folder, prefix):
    before = outputs(folder)
    tensors = {}
    for name, x in load_file(folder / WEIGHTS).items():
        tensors[name.replace("model.", prefix)] = x
    save_file(tensors, folder / WEIGHTS)
    np.testing.assert_array_equal(outputs(folder), before)


def test_configs_of_older_transformers_are_read(folder):
    before = outputs(folder)
    settings(folder, rope_parameters="delete", rope_theta=5000, rope_scaling=None, head_dim=None)
    np.testing.assert_array_equal(outputs(folder), before)
    settings(folder, rope_theta=10_000.0)
    assert np.abs(outputs(folder) - before).max() > 1e-3


def test_a_tied_head_may_be_stored_all_the_same(tmp_path):
    shutil.copytree(FOLDERS / "qwen2", tmp_path / "ckpt")
    tensors = load_file(tmp_path / "ckpt" / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_file(tensors, tmp_path / "ckpt" / WEIGHTS)
    model, want = df.load_pretrained(tmp_path / "ckpt"), expected("qwen2")
    assert model.left_out == ("lm_head.weight",)
    np.testing.assert_allclose(
        model(want["ids"])[0], want["outputs"][0], atol=1e-5 * np.abs(want["outputs"]).max()
    )


def refused(folder, message):
    with pytest.raises(InputError, match=message) as caught:
        df.load_pretrained(folder)
    assert "\n" not in str(caught.value)


OF_CONFIG = [
    (
        {"model_type": "mamba"},
        r"unknown family of checkpoints .*'mamba'.*Known: bert, roberta, gpt2",
    ),
    ({"model_type": "delete"}, "unknown family of checkpoints"),
    ({"auto_map": {"AutoModel": "modeling.Mine"}}, "needs code of its own .auto_map"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantized .'gptq'."),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "has the type 'yarn'"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "has the type 'linear'"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}, "0.25 does not"),
    ({"hidden_act": "mish"}, "unknown activation .*'mish'.*Known: gelu, gelu_new"),
    ({"hidden_size": "delete"}, "has no 'hidden_size'"),
    ({"hidden_size": "24"}, "hidden_size is '24', which is no int"),
    ({"hidden_size": 25}, r"has shape \(.*\), and config.json needs \(.*25"),
    (
        {"vocab_size": 50},
        r"embed_tokens.weight has shape \(48, 24\), and config.json needs \(50, 24",
    ),
    ({"num_hidden_layers": 3}, r"lacks 9 tensors: 'layers.2.input_layernorm.weight'.* and 4 more"),
    ({"num_hidden_layers": 10**9}, "model.layers must be at most 1000"),
    ({"num_hidden_layers": 1}, r"has 9 tensors: 'layers.1.*and 4 more, which .* has no place for"),
    ({"num_attention_heads": 0}, "num_attention_heads must be at least 1, got 0"),
    ({"num_key_value_heads": 3}, "model.kv_heads must divide"),
    ({"attention_bias": True}, r"lacks 8 tensors: .*k_proj.bias"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', which is no bool"),
    ({"rms_norm_eps": 0.0}, "norm_eps must be between"),
]


@pytest.mark.parametrize(("changes", "message"), OF_CONFIG)
def test_a_config_that_cannot_be_is_one_line(folder, changes, message):
    settings(folder, **changes)
    refused(folder, message)


OF_FAMILIES = [
    ("bert", {"is_decoder": True}, "is_decoder=True does not work here"),
    ("bert", {"position_embedding_type": "relative_key"}, "positions are 'absolute' here"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False does not work here"),
    ("ministral", {"head_dim": None}, "has no 'head_dim'"),
    ("ministral", {"layer_types": ["chunked_attention"] * 2}, "unknown layer type .*chunked"),
    ("ministral", {"layer_types": ["full_attention"]}, "layer_types must be a list of 2"),
    ("smollm3", {"layer_types": None}, "layer_types does not say which layers have a window"),
]


@pytest.mark.parametrize(("family", "changes", "message"), OF_FAMILIES)
def test_what_a_family_cannot_be_is_one_line(family, changes, message, tmp_path):
    shutil.copytree(FOLDERS / family, tmp_path / "ckpt")
    settings(tmp_path / "ckpt", **changes)
    refused(tmp_path / "ckpt", message)


def pickled(folder):
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def without_a_tensor(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.norm.weight"]
    save_file(tensors, folder / WEIGHTS)


def with_a_tensor(folder):
    save_file({**load_file(folder / WEIGHTS), "extra": np.ones(3, np.float32)}, folder / WEIGHTS)


def twice(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "norm.weight": tensors["model.norm.weight"]}, folder / WEIGHTS)


def truncated(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-100])


def overlong(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + data[8:])


def quantized(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    save_file(tensors, folder / WEIGHTS)


def shard_outside(folder):
    index = in_shards(folder)
    outside = dict.fromkeys(index, "../a-1.safetensors")
    shutil.copy(folder / "a-1.safetensors", folder.parent)
    (folder / INDEX).write_text(json.dumps({"weight_map": outside}))


def shard_elsewhere(folder):
    index = in_shards(folder)
    file = str(folder.absolute() / "a-1.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(index, file)}))


def pickled_shard(folder):
    index = in_shards(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(index, "a.bin")}))


def shard_missing(folder):
    in_shards(folder)
    (folder / "a-2.safetensors").unlink()


def in_two_shards(folder):
    in_shards(folder)
    first = load_file(folder / "a-1.safetensors")
    second = load_file(folder / "a-2.safetensors")
    name = next(iter(first))
    save_file({**second, name: first[name]}, folder / "a-2.safetensors")


def empty_index(folder):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text("{}")


def no_config(folder):
    (folder / "config.json").unlink()


def config_of_a_list(folder):
    (folder / "config.json").write_text("[]")


OF_FILES = {
    pickled: r"has its weights in pytorch_model.bin, and dartformer reads safetensors only",
    without_a_tensor: r"lacks the tensor 'norm.weight', which Llama",
    with_a_tensor: r"has the tensor 'extra', which dartformer's Llama.* has no place for",
    twice: r"has the tensor norm.weight twice, once with a prefix",
    truncated: "is damaged",
    overlong: "is damaged",
    quantized: "has tensors of the type I8, and dartformer reads F64, F32, F16, BF16",
    shard_outside: r"lists the shard '../a-1.safetensors', which is no safetensors file in",
    shard_elsewhere: r"lists the shard '/.*, which is no safetensors file in",
    pickled_shard: r"lists the shard 'a.bin', which is no safetensors file in",
    shard_missing: r"lacks the shard a-2.safetensors, which .* lists",
    in_two_shards: r"has the tensor .* twice, in a-1.safetensors and a-2.safetensors",
    empty_index: "is damaged: it lists no shards",
    no_config: r"is no checkpoint: it has no config.json",
    config_of_a_list: "must be an object",
}


@pytest.mark.parametrize("change", OF_FILES, ids=lambda change: change.__name__)
def test_files_that_cannot_be_are_one_line(folder, change):
    change(folder)
    refused(folder, OF_FILES[change])


def test_a_folder_that_is_none(tmp_path):
    refused(tmp_path / "none", "there is no folder")
    refused(tmp_path, "is no checkpoint")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"')
    refused(tmp_path, "is damaged")


def test_what_is_asked_of_a_model_is_checked(folder):
    model = df.load_pretrained(folder)
    for tokens, message in (
        ([1, 2], r"tokens must be whole numbers \[B, N\]"),
        ([[0.5]], "tokens must be whole numbers"),
        ([[48]], "tokens must be from 0 to 47, got 48 to 48"),
        ([[-1]], "tokens must be from 0 to 47"),
        ([[1] * 33], "the model takes at most 32 tokens, got 33"),
    ):
        with pytest.raises(InputError, match=message):
            model(tokens)
    with pytest.raises(InputError, match="valid must have the shape of tokens"):
        model([[1, 2]], [[True]])
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        model.encode(["a"])


def test_random_damage_is_one_line_or_the_same_tensors(tmp_path):
    """Bytes of the header changed at random: never another error than `InputError`."""
    rng = np.random.default_rng(0)
    data = (FOLDERS / "llama" / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    shutil.copytree(FOLDERS / "llama", tmp_path / "ckpt")
    messages = []
    for _ in range(25):
        changed = bytearray(data)
        for place in rng.integers(0, 8 + length, 3):
            changed[place] = rng.integers(256)
        (tmp_path / "ckpt" / WEIGHTS).write_bytes(bytes(changed))
        try:
            df.load_pretrained(tmp_path / "ckpt")
        except InputError as error:
            messages.append(str(error))
    assert not any("\n" in message for message in messages)
