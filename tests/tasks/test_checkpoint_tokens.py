"""The task `language` with a checkpoint's tokenizer: packed documents, and text of any size."""

import json
import math
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from tasks.test_files import SMALL

from dartformer import tasks
from dartformer.cli.main import main
from dartformer.data import checkpoint_tokens, packed, plain_text, text_ids
from dartformer.data.checkpoint_tokens import of_checkpoint
from dartformer.errors import InputError
from dartformer.training.metric import Losses, Spelled, of_task

TEXT = "the cat sat on the mat, and the dog sat on the log.\n" * 80
END = "<|endoftext|>"


def byte_pairs():
    """A tokenizer of bytes, as GPT-2 and its heirs have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], show_progress=False, initial_alphabet=alphabet
    )
    library.train_from_iterator([TEXT], trainer)
    return library


def sentence_pieces():
    """One that falls back to bytes and puts a space before a text, as Llama 2 has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {"<unk>": 0, "</s>": 1}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = 2 + byte
    for token in ("▁", *"abcdeghlmnost,.", "th", "the", "▁the", "at"):
        vocabulary[token] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "t")]
    library = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    library.add_special_tokens(["</s>"])
    return library


KINDS = {"bytes": (byte_pairs, END), "pieces": (sentence_pieces, "</s>")}


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    """The folder of a checkpoint, of which only the texts are there."""
    make, end = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    library = make()
    library.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": library.token_to_id(end)}))
    return folder


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder for texts, and one for what is prepared of them."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    return tmp_path


def language(folder, file, **options):
    named = {"tokens": "checkpoint", "checkpoint": str(folder), "path": str(file), "length": 8}
    return tasks.make("language", {**named, **options})


def stream(split):
    """The ids of a split, from its windows."""
    batch = split.take(np.arange(len(split)))
    valid = batch["valid"].reshape(-1)
    tokens, labels = batch["tokens"].reshape(-1)[valid], batch["label"].reshape(-1)[valid]
    np.testing.assert_array_equal(tokens[1:], labels[:-1])
    return [int(tokens[0]), *labels.tolist()]


@pytest.mark.parametrize("length", [7, 60])
def test_windows_hold_the_text_once_and_in_order(checkpoint, data, length):
    (data / "a.txt").write_text(TEXT)
    task = language(checkpoint, data / "a.txt", length=length)
    splits = task.load()
    ids = [i for part in ("train", "valid", "test") for i in stream(splits[part])]
    assert ids == of_checkpoint(str(checkpoint)).encode([TEXT])[0]
    assert task.fitted().decode(ids) == TEXT
    assert task.vocabulary == task.classes == of_checkpoint(str(checkpoint)).size


def test_a_text_in_pieces_has_the_tokens_of_the_whole(checkpoint, data, monkeypatch):
    """Read, cut and tokenized in pieces of any size; with characters of several bytes at the cuts."""
    rng = np.random.default_rng(0)
    letters = list("the cat.\n  éß一😀")
    text = "".join(rng.choice(letters, 3000))
    whole = of_checkpoint(str(checkpoint)).encode([text])[0]
    monkeypatch.setattr("dartformer.data.tokens.PIECE", 50)
    monkeypatch.setattr(packed, "READ", 13)
    monkeypatch.setattr(packed, "TOGETHER", 170)
    tokenizer = of_checkpoint(str(checkpoint))
    pieces = tokenizer.encode([text])[0]
    assert tokenizer.decode(pieces) == tokenizer.decode(whole) == text
    assert len(pieces) <= 1.02 * len(whole)  # more only where no space came
    (data / "a.txt").write_text(text, "utf-8")
    parts = language(checkpoint, data / "a.txt").packed()
    ids = np.concatenate([parts[name].ids for name in ("train", "valid", "test")])
    assert ids.tolist() == pieces
    assert len(list(data.rglob("*.ids"))) == 1


@pytest.mark.parametrize("form", ["files", "table"])
@pytest.mark.parametrize("count", [2, 3, 40])
def test_documents_are_packed_and_parts_share_none(checkpoint, data, form, count):
    documents = [f"the cat {'sat ' * (n % 7 + 9)}on mat {n}." for n in range(count)]
    path, options = data / "texts", {}
    path.mkdir()
    if form == "table":
        path, options = data / "texts.jsonl", {"text": "body"}
        rows = [*documents[:1], "", *documents[1:]]  # a row without text is no document
        path.write_text("".join(json.dumps({"id": 1, "body": row}) + "\n" for row in rows))
    else:
        for number, document in enumerate(documents):
            (path / f"{number:03}.txt").write_text(document)
    task = language(checkpoint, path, length=4, valid_fraction=0.2, test_fraction=0.2, **options)
    tokenizer, (end,) = task.tokenizer, task.ends
    parts = {name: part.ids.tolist() for name, part in task.packed().items()}
    together = [*parts["train"], *parts["valid"], *parts["test"]]
    expected = tokenizer.encode(documents)
    assert together == [i for ids in expected for i in (*ids, end)][:-1]
    assert task.packed()["train"].documents == count
    if count >= 3:
        for name in ("train", "valid"):
            assert parts[name][-1] == end
        assert parts["test"][-1] != end
        share = len(parts["test"]) / len(together)
        assert share == pytest.approx(0.2, abs=0.25 if count == 3 else 0.03)


def test_files_for_each_part_stay_in_it(checkpoint, data):
    for part in ("train", "dev", "test"):
        (data / f"{part}.txt").write_text(f"the {part} sat on the mat.")
    task = language(checkpoint, data)
    for name, part in (("train", "train"), ("valid", "dev"), ("test", "test")):
        ids = task.packed()[name].ids.tolist()
        assert task.decode(ids) == f"the {part} sat on the mat."


def test_another_text_is_prepared_again_and_the_same_is_not(checkpoint, data, monkeypatch):
    (data / "a.txt").write_text(TEXT)
    language(checkpoint, data / "a.txt").load()
    monkeypatch.setattr(packed, "_write", None)
    language(checkpoint, data / "a.txt", length=9).load()
    (data / "a.txt").write_text(TEXT + "more")
    with pytest.raises(TypeError):
        language(checkpoint, data / "a.txt").load()


@pytest.mark.parametrize("text", [TEXT, "äß一😀 the\n" * 300, f"say {END} </s> <unk> " * 100])
def test_bits_are_per_character_of_the_text(checkpoint, data, text):
    (data / "a.txt").write_text(text, "utf-8")
    task = language(checkpoint, data / "a.txt")
    splits = task.load()
    facts = task.facts()
    counted = sum(part["characters"] for part in facts.values())
    assert counted - len(text) in (0, 1)  # a space before the text, of some tokenizers
    metric, part = of_task(task), splits["test"]
    batch = part.take(np.arange(len(part)))
    # A model that knows nothing but the number of ids.
    outputs = jnp.zeros((*batch["label"].shape, task.vocabulary))
    losses = metric.losses(outputs, batch["label"])
    spelled = metric.spelled(losses, batch["label"])
    sums = [np.asarray(values, float).sum(-1) for values in (*losses, *spelled)]
    first = task.tokenizer.characters[stream(part)[0]]  # it has no label
    nats = math.log(task.vocabulary) * (batch["label"] >= 0).sum()
    expected = nats / math.log(2) / (facts["test"]["characters"] - first)
    scores = metric.summary(Losses(*sums[:3]), Spelled(*sums[3:]))
    assert scores["bits_per_character"] == pytest.approx(expected, rel=1e-6)
    rules = task.baselines(splits["train"], part)
    assert 0 < rules["bigram"] < rules["unigram"]
    assert task.fitted().units.characters.tolist() == task.units.characters.tolist()


def test_special_tokens_in_a_text_are_text(checkpoint):
    tokenizer = of_checkpoint(str(checkpoint))
    for text in (END, "</s>"):
        ids = tokenizer.encode([text])[0]
        assert tokenizer.end not in ids
        assert tokenizer.decode(ids) == text


def test_ids_beyond_the_tokenizer_are_never_generated(checkpoint, data):
    (data / "a.txt").write_text(TEXT)
    size = of_checkpoint(str(checkpoint)).size
    task = language(checkpoint, data / "a.txt", vocabulary_size=size + 3)
    assert task.vocabulary == len(task.fitted().labels) == len(task.units.characters) == size + 3
    assert task.special == (size, size + 1, size + 2)


def test_a_passage_of_a_checkpoints_tokens(checkpoint, data):
    (data / "a.txt").write_text(TEXT)
    options = {"path": str(data / "a.txt"), "tokens": "checkpoint", "checkpoint": str(checkpoint)}
    task = tasks.make("passage", {**options, "length": 48, "passage": 16, "train": 20})
    batch = task.load()["train"].take(np.arange(20))
    again = batch["label"][:, -9:-1]
    np.testing.assert_array_equal(again, batch["tokens"][:, -8:])
    with pytest.raises(InputError, match="does not work with the task passage"):
        tasks.make("passage", {**options, "text": "body"})


@pytest.mark.parametrize("longest", [0, text_ids.LONG])
def test_a_passage_reads_its_text_in_pieces(longest, checkpoint, data, monkeypatch):
    """The tokens of each part are those of its whole text, in memory and in files."""
    rng = np.random.default_rng(1)
    text = "".join(rng.choice(list("the cat.\n  éß一😀"), 3000))
    (data / "a.txt").write_bytes(text.encode() + b"\xff\xfe the end")
    text += "\ufffd the end"
    monkeypatch.setattr("dartformer.data.tokens.PIECE", 50)
    monkeypatch.setattr(plain_text, "READ", 13)
    monkeypatch.setattr(checkpoint_tokens, "TOGETHER", 170)
    monkeypatch.setattr(text_ids, "LONG", longest)
    options = {"path": str(data / "a.txt"), "tokens": "checkpoint", "checkpoint": str(checkpoint)}
    task = tasks.make("passage", {**options, "length": 48, "passage": 16})
    parts, facts = task.text_parts(), task.facts()
    valid = test = round(0.05 * len(text))
    cuts = {
        "train": text[: -valid - test],
        "valid": text[-valid - test : -test],
        "test": text[-test:],
    }
    for name, content in cuts.items():
        expected = of_checkpoint(str(checkpoint)).encode([content])[0]
        assert parts[name].ids.tolist() == expected
        counted = {"characters": len(content), "tokens": len(expected), "invalid UTF-8": 2}
        assert facts[name] == counted
    assert len(list(data.rglob("train.npy"))) == (longest == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": ""}, "task.checkpoint is empty"),
        ({"checkpoint": "nowhere"}, "no file or folder nowhere"),
        ({"vocabulary_size": 100}, r"tokens, more than task\.vocabulary_size = 100"),
        ({"end": "<nothing>"}, "has no token '<nothing>'"),
        ({"path": ""}, "task.path is empty"),
        ({"length": 0}, "must be at least 1"),
        ({"tokens": "bytes"}, "checkpoint does not work with task.tokens='bytes'"),
        ({"tokens": "bytes", "checkpoint": "", "text": "a"}, "text does not work with task.tokens"),
        ({"length": 10**6}, "the train part of .* tokens, and needs 1000001"),
        ({"text": "body"}, "has no column 'body'; it has"),
    ],
)
def test_options_that_do_not_work(checkpoint, data, options, message):
    (data / "a.txt").write_text(TEXT)

    def use():
        task = language(checkpoint, data / "a.txt", **options)
        task.check()
        task.load()

    with pytest.raises(InputError, match=message) as caught:
        use()
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"), [("", "has no text for train"), ("a", r"part of .* has . tokens?, and")]
)
def test_too_little_text(checkpoint, data, text, message):
    (data / "a.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        language(checkpoint, data / "a.txt").load()


def words():
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1}, unk_token="[UNK]")).to_str()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no tokenizer.json"),
        ("{", "is damaged"),
        ("{}", "is damaged"),
        (words, "cannot spell every text"),
    ],
)
def test_tokenizers_that_are_refused(data, content, message):
    folder = data / "checkpoint"
    folder.mkdir()
    if callable(content):
        content = content()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    (data / "a.txt").write_text(TEXT)
    with pytest.raises(InputError, match=message) as caught:
        language(folder, data / "a.txt").check()
    assert len(str(caught.value).splitlines()) == 1


def test_documents_need_an_end_token(checkpoint, data):
    shutil.copy(checkpoint / "tokenizer.json", data / "tokenizer.json")
    (data / "texts").mkdir()
    for name in "abc":
        (data / f"texts/{name}.txt").write_text(TEXT)
    file = data / "tokenizer.json"
    with pytest.raises(InputError, match=r"several documents.*Set task\.end"):
        language(file, data / "texts").load()
    end = END if "endoftext" in file.read_text() else "</s>"
    assert language(file, data / "texts", end=end).load()
    (data / "one.txt").write_text(TEXT)
    assert language(file, data / "one.txt").load()


def test_a_vocabulary_of_fifty_thousand_never_has_all_logits():
    task = tasks.make(
        "language", {"tokens": "checkpoint", "vocabulary_size": 50_000, "path": "a.txt"}
    )
    from dartformer.models.sizes import TransformerConfig

    sizes = TransformerConfig(
        length=task.length,
        vocabulary=task.vocabulary,
        classes=task.classes,
        causal=True,
        pooling="none",
    )
    assert 0 < sizes.logits_size(32, task.length) < task.length


@pytest.mark.parametrize("checkpoint", ["bytes"], indirect=True)
def test_from_a_book_to_its_continuation(checkpoint, data, capsys):
    """`new --data`, `run`, `generate` and `predict`, without the checkpoint once it has run."""
    folder = data / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (data / "book.txt").write_text(TEXT)
    new = ["new", "--data", str(data / "book.txt"), f"--config.task.checkpoint={folder}"]
    assert main([*new, "--config.task.length=many"]) == 2
    assert "task.length must be a whole number" in capsys.readouterr().err
    assert main([*new, *SMALL, "--config.task.length=16"]) == 0
    captured = capsys.readouterr()
    assert "predict the next token" in captured.err
    (data / "space.py").write_text(captured.out, "utf-8")
    run = ["run", f"--config={data / 'space.py'}", f"--workdir={data / 'run'}", "--json"]
    assert main(run) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["metric"] == "bits_per_character"
    shutil.rmtree(folder)
    checkpoint_tokens._read.cache_clear()
    export = data / "run/export"
    assert str(folder) not in (export / "config.json").read_text()
    assert main(["generate", str(export), "--prompt", "the cat", "--max-tokens=3"]) == 0
    assert capsys.readouterr().out.startswith("the cat")
    assert main(["predict", str(export), "--text", "the cat", "--json"]) == 0
