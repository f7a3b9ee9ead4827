"""Embeddings of texts by an encoder's checkpoint, and what sentence-transformers writes beside it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dartformer as df
from dartformer.errors import InputError
from dartformer.pretrained import described
from dartformer.pretrained.passages import documents, documents_of
from dartformer.pretrained.placement import Placement, top
from dartformer.pretrained.sentence import Sentence, sentence_of

FOLDERS = Path(__file__).parent / "oracles/checkpoints"
VOCABULARY = 48
LENGTH = 64
CHEAP = df.parse("local(window=2)")


def with_tokenizer(folder, name="bert", vocabulary=VOCABULARY):
    """A small encoder of 64 positions with a tokenizer that puts a token before and after a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    shutil.copytree(FOLDERS / name, folder)
    config = json.loads((folder / "config.json").read_text())
    rows = LENGTH + (name == "roberta") * 2
    config["max_position_embeddings"] = rows
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for key, tensor in tensors.items():
        if key.endswith("position_embeddings.weight"):
            noise = np.random.default_rng(0).normal(size=(rows, tensor.shape[1]))
            tensors[key] = (0.3 * noise).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    vocabulary_of = {f"w{token}": token for token in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary_of, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = [("w1", 1), ("w2", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="w1 $A w2", special_tokens=around
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_modules(folder, pooling, *kinds):
    """The files of sentence-transformers."""
    modules = []
    for number, kind in enumerate(("Transformer", "Pooling", *kinds)):
        path = f"{number}_{kind}" if number else ""
        kind = f"sentence_transformers.models.{kind}"
        modules.append({"idx": number, "name": str(number), "path": path, "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))


def switches(name, **others):
    """The config of a pooling."""
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    pooling = {f"pooling_mode_{mode}": mode == name for mode in names}
    return {"word_embedding_dimension": 24, **pooling, **others}


def sentence(seed, count=5):
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, count)
    return " ".join(f"w{token}" for token in ids)


@pytest.fixture
def folder(tmp_path):
    return with_tokenizer(tmp_path / "model")


@pytest.fixture(scope="module")
def placement(tmp_path_factory):
    folder = with_tokenizer(tmp_path_factory.mktemp("encoder") / "model")
    return Placement(df.load_pretrained(folder), CHEAP)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Documents of 50 to 69 words."""
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("\n".join(sentence(seed, 50 + seed) for seed in range(20)))
    return file


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_an_embedding_is_the_pooled_hidden_states(tmp_path, mode, name, normalized):
    """By hand, one text after another, so that nothing is filled up."""
    folder = with_tokenizer(tmp_path / "model", name)
    kinds = ("Normalize",) if normalized else ()
    long = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}[mode]
    write_modules(folder, switches(long), *kinds)
    model = df.load_pretrained(folder)
    texts = [sentence(0, 3), "", sentence(1, 37), sentence(2, 9)]
    found = model.embed(texts, batch=3)
    assert found.shape == (4, 24)
    for row, text in zip(found, texts, strict=True):
        ids = [1, *(int(word[1:]) for word in text.split()), 2]
        states = np.asarray(model(np.array([ids])))[0]
        wanted = {"mean": states.mean(0), "cls": states[0], "max": states.max(0)}[mode]
        if normalized:
            wanted = wanted / np.linalg.norm(wanted)
        np.testing.assert_allclose(row, wanted, atol=2e-5)


def test_the_folder_says_how_texts_are_read(folder):
    assert sentence_of(described(folder)) == Sentence("mean", False, LENGTH)
    write_modules(folder, {"word_embedding_dimension": 24, "pooling_mode": "cls"}, "Normalize")
    limits = {"max_seq_length": 6, "do_lower_case": True}
    (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    prompts = {"prompts": {"query": "w9 "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert sentence_of(described(folder)) == Sentence("cls", True, 6, "w9 ", True)
    model = df.load_pretrained(folder)
    texts = ["W3 W4 W5 W6 W7 W8"]
    tokens = np.array([[1, 9, 3, 4, 5, 2]])
    wanted = np.asarray(model(tokens))[0, 0]
    np.testing.assert_allclose(model.embed(texts)[0], wanted / np.linalg.norm(wanted), atol=1e-5)
    longer = np.asarray(model(np.array([[1, 9, 3, 4, 5, 6, 7, 8, 2]])))[0, 0]
    np.testing.assert_allclose(
        model.embed(texts, length=LENGTH)[0], longer / np.linalg.norm(longer), atol=1e-5
    )
    # The model has 64 positions, whatever the file says.
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 512}))
    assert sentence_of(described(folder)).length == LENGTH


def test_bad_folders_are_one_line(folder):
    model = df.load_pretrained(folder)
    cases = [
        (switches("mean_sqrt_len_tokens"), ("Normalize",), "pools by pooling_mode_mean_sqrt_len"),
        (switches("mean_tokens", pooling_mode_cls_token=True), (), "pools by cls and mean"),
        (switches("mean_tokens", word_embedding_dimension=8), (), "the encoder has 24"),
        (switches("mean_tokens", include_prompt=False), (), "all tokens of a text are pooled"),
        (switches("mean_tokens"), ("Dense",), "lists the module 'Dense'"),
        ([], (), "must be an object"),
    ]
    for pooling, kinds, message in cases:
        write_modules(folder, pooling, *kinds)
        with pytest.raises(InputError, match=message) as caught:
            model.embed(["w3"])
        assert "\n" not in str(caught.value)
    for listed, message in (
        ({}, "must be a list of modules"),
        ([{"type": "a.Transformer"}], "lists no module Pooling"),
        ([{"type": "a.Pooling", "path": "../x"}], "which is not in"),
    ):
        (folder / "modules.json").write_text(json.dumps(listed))
        with pytest.raises(InputError, match=message):
            model.embed(["w3"])
    (folder / "modules.json").unlink()
    for options, message in (
        ({"length": 65}, "from 0 to the 64 tokens"),
        ({"length": 1}, "puts 2 around each text"),
        ({"batch": 0}, "batch must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            model.embed(["w3"], **options)
    with pytest.raises(InputError, match="Put it in a list"):
        model.embed("w3")
    with pytest.raises(InputError, match="because it is a decoder"):
        df.load_pretrained(FOLDERS / "llama").embed(["w3"])


def test_documents_are_lines_or_blocks(placement, texts, tmp_path):
    assert documents_of("a b\nc\n") == ["a b", "c"]
    assert documents_of("a\nb\n\n\nc\n\n") == ["a\nb", "c"]
    checkpoint = placement.model.described
    split = documents(checkpoint, texts, LENGTH, 3, 4)
    tokens, valid = split.calibration
    assert tokens.shape == (3, LENGTH)
    assert split.held_out.tokens.shape == (4, LENGTH)
    assert valid.all()  # 8 of the texts have 64 tokens, with those around them
    assert set(tokens[:, 0]) == {1}
    assert set(tokens[:, -1]) == {2}
    split = documents(checkpoint, texts, LENGTH, 8, 8)
    lengths = [*split.calibration.valid.sum(1), *split.held_out.valid.sum(1)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 50 + 4 + 2
    (tmp_path / "short.txt").write_text("w3 w4\n\nw5")
    with pytest.raises(InputError, match="has 2 documents, and 7 are needed"):
        documents(checkpoint, tmp_path / "short.txt", LENGTH, 3, 4)


def test_the_loss_is_the_cosine_distance(placement, texts):
    """Of the whole model by its genotype, on documents with padding."""
    both = documents(placement.model.described, texts, LENGTH, 10, 10).calibration
    kept = np.array([[True], [False]])
    found = placement.measure([kept, np.ones((2, 1), bool)], both)["distance"]
    net = df.transformer(placement.model.config, placement.genotype(kept))
    for number, (tokens, valid) in enumerate(both.rows()):
        vectors = []
        for states in (
            net.apply(placement.model.weights, tokens[None], valid[None]),
            placement.model(tokens[None], valid[None]),
        ):
            vector = np.asarray(states)[0][valid].mean(0)
            vectors.append(vector / np.linalg.norm(vector))
        assert found[0, number] == pytest.approx(1 - vectors[0] @ vectors[1], abs=1e-5)
    assert np.abs(found[1]).max() < 1e-6
    with pytest.raises(InputError, match="predicts no tokens"):
        placement.evaluate([kept], both)


def test_scores_of_an_encoder_add_up(placement, texts):
    both = documents(placement.model.described, texts, LENGTH, 3, 3).calibration
    scores = placement.path(both, points=16)
    none = np.zeros((2, 1), bool)
    assert scores.total == pytest.approx(placement.divergence([none], both).mean(), rel=1e-5)
    assert scores.groups.sum() == pytest.approx(scores.total, rel=0.03)
    assert scores.groups.shape == (2, 4)
    first, second = np.array([[True], [False]]), np.array([[False], [True]])
    losses = placement.divergence([first, second, none], both).mean(1)
    np.testing.assert_allclose(placement.swap(both)[:, 0], [losses[1], losses[0]], rtol=1e-5)
    wanted = [losses[2] - losses[0], losses[2] - losses[1]]
    np.testing.assert_allclose(placement.restore(both)[:, 0], wanted, rtol=1e-4, atol=1e-6)
    assert top(scores.layers, 1).sum() == 1


def test_lengths_that_cannot_be_are_one_line(placement, texts):
    long = documents(placement.model.described, texts, 70, 3, 3).calibration
    message = "at most 64 tokens, because its table of positions has no more rows, got 70"
    with pytest.raises(InputError, match=message):
        placement.path(long)
    wide = Placement(placement.model, df.parse("local(window=63)"))
    with pytest.raises(InputError, match="of texts of 64 tokens, so nothing is saved"):
        wide.path(documents(placement.model.described, texts, LENGTH, 3, 3).calibration)


def test_an_export_holds_the_modules(folder, tmp_path):
    """Full attention everywhere is the checkpoint's own class; windows are a folder of our own."""
    write_modules(folder, switches("mean_tokens"), "Normalize")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 40}')
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {}}')
    model = df.load_pretrained(folder)
    texts = [sentence(3, 50), sentence(4, 9)]
    saved = df.save_pretrained(model, tmp_path / "full")
    assert (saved.model_type, saved.reason) == ("bert", "")
    for file in (
        "modules.json",
        "1_Pooling/config.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "tokenizer.json",
    ):
        assert (tmp_path / "full" / file).read_bytes() == (folder / file).read_bytes()
    assert (tmp_path / "full/2_Normalize").is_dir()
    again = df.load_pretrained(tmp_path / "full")
    np.testing.assert_array_equal(again.embed(texts), model.embed(texts))

    genotype = Placement(model, CHEAP).genotype(np.array([[True], [False]]))
    saved = df.save_pretrained(model, tmp_path / "windows", genotype=genotype)
    assert saved.model_type == "dartformer-bert"
    assert saved.reason == "transformers has no BERT with windows in some layers."
    card = (tmp_path / "windows/README.md").read_text()
    assert "`dartformer.load_pretrained` reads it, and `embed` embeds texts" in card
    hybrid = df.load_pretrained(tmp_path / "windows")
    assert hybrid.genotype == genotype
    found = hybrid.embed(texts)
    assert found.shape == (2, 24)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert np.abs(found - model.embed(texts)).max() > 1e-3
    # An export is exported again, over the earlier one.
    assert df.save_pretrained(hybrid, tmp_path / "full").model_type == "dartformer-bert"
