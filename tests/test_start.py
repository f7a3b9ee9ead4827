"""Starting from a checkpoint: its tokenizer, its weights, frozen or trained on, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

import dartformer as df
from dartformer import config as configs
from dartformer.api import run_all
from dartformer.cli.main import main
from dartformer.cli.new import config_for_data
from dartformer.data.batches import batches
from dartformer.data.encoder_tokens import of_encoder
from dartformer.errors import InputError
from dartformer.pretrained.start import FREE, HEAD, options_of
from dartformer.stages.proposal import Wishes
from dartformer.stages.study import Study
from dartformer.training.checkpoint import named_leaves
from dartformer.training.step import begin

FOLDERS = Path(__file__).parent / "oracles/checkpoints"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "a", "film", "the", "was"]


def put_tokenizer(folder: Path) -> None:
    """A tokenizer of words, with the special tokens of BERT around every text."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    library = tokenizers.Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = Whitespace()
    library.add_special_tokens(WORDS[:4])
    library.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    library.save(str(folder / "tokenizer.json"))


@pytest.fixture
def encoder(tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(FOLDERS / "bert", folder)
    put_tokenizer(folder)
    return folder


def write_rows(folder: Path, count: int = 80) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        label = ("good", "bad")[i % 2]
        words = [label, *rng.choice(["a", "film", "the", "was", "strange"], size=5)]
        rng.shuffle(words)
        rows.append(json.dumps({"text": " ".join(words), "label": label}))
    file = folder / "reviews.jsonl"
    file.write_text("\n".join(rows))
    return file


def editable(encoder: Path, strategy: str = "race", **fields: object):
    config = df.defaults("files", strategy=strategy, granularity="model")
    file = write_rows(encoder.parent)
    task = config.task
    task.path, task.label_names, task.length = str(file), ("bad", "good"), 12
    task.tokens, task.checkpoint = "checkpoint", str(encoder)
    task.vocabulary_size = json.loads((encoder / "config.json").read_text())["vocab_size"]
    config.data.dir = str(encoder.parent / "prepared")
    config.data.batch_size = 8
    config.start = str(encoder)
    for name, value in options_of(df.load_pretrained(encoder).config).items():
        setattr(config.model, name, value)
    config.space.candidates = ("full", "local(window=2)")
    config.retrain.steps, config.retrain.seeds = 9, (0,)
    config.log.eval_every = 3
    configs.override(config, fields)
    return config


def full(study: Study) -> df.Genotype:
    return study.space.homogeneous()[0]


def test_a_text_stands_between_the_tokens_of_the_checkpoint(encoder):
    tokenizer = of_encoder(str(encoder))
    assert tokenizer.around == ([2], [3])
    assert tokenizer.encode(["good film", "[SEP] odd"]) == [[4, 7], [1, 1, 1, 1]]
    task = Study(editable(encoder, **{"task.length": 6})).task
    (document,) = task.documents(["a good odd film was the a good film"])
    assert document.ids.tolist() == [2, 6, 4, 1, 7, 3]
    assert (document.tokens, document.unknown) == (11, 1)
    assert task.decode(document.ids.tolist()) == "a good film"


@pytest.mark.parametrize("crop", ["head", "tail", "ends"])
@pytest.mark.parametrize("length", [3, 4, 7, 12])
def test_a_crop_leaves_what_stands_around_a_text(crop, length, encoder):
    task = Study(editable(encoder, **{"task.length": length, "task.crop": crop})).task
    for count in (1, length - 2, length - 1, 20):
        (document,) = task.documents([" ".join(["good"] * count)])
        ids = document.ids.tolist()
        assert (ids[0], ids[-1]) == (2, 3)
        assert len(ids) == min(count + 2, length)


def test_a_model_begins_as_the_checkpoint(encoder):
    """Its class scores are its own head on the mean of the checkpoint's last hidden states."""
    study = Study(editable(encoder))
    program = study.program(full(study))
    state = program.form.leave(program.form.enter(begin(program.network, program.optimizer, 0)))
    batch = study.parts["train"].take(np.arange(6))
    hidden = df.load_pretrained(encoder)(batch["tokens"], batch["valid"])
    weight = batch["valid"][..., None]
    pooled = (np.asarray(hidden) * weight).sum(1) / weight.sum(1)
    head = state.weights["head"]
    expected = pooled @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    logits = program.network.apply(state.weights, batch["tokens"], batch["valid"])
    np.testing.assert_allclose(np.asarray(logits), expected, atol=1e-5)


@pytest.mark.parametrize("scan", [0, 2])
def test_the_supernet_begins_as_the_checkpoint(encoder, scan):
    study = Study(editable(encoder, "darts", **{"model.scan": scan}))
    network = study.supernet.network
    weights = network.init(jax.random.key(1))
    batch = study.parts["train"].take(np.arange(4))
    mixture = study.space.mixture(full(study))
    found = network.apply(weights, batch["tokens"], batch["valid"], jnp.asarray(mixture))
    derived = study.program(full(study)).network
    started = derived.init(jax.random.key(1))
    started["head"] = weights["head"]
    expected = derived.apply(started, batch["tokens"], batch["valid"])
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_weights_stay(frozen, encoder):
    study = Study(editable(encoder, **{"retrain.frozen": frozen, "retrain.program": "own"}))
    program = study.program(full(study))
    state = begin(program.network, program.optimizer, 0)
    before = dict(named_leaves(jax.tree.map(np.asarray, state.weights)))
    stream = batches(study.parts["train"], 8, 0)
    losses = []
    for _ in range(30):
        state, metrics = program.step(state, next(stream))
        losses.append(float(metrics["loss"]))
    after = dict(named_leaves(state.weights))
    changed = {name for name, leaf in after.items() if not np.array_equal(leaf, before[name])}
    assert {"head/kernel", "head/bias"} <= changed
    assert (changed == {"head/kernel", "head/bias"}) == frozen
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_what_a_training_belongs_to_has_the_checkpoint(encoder):
    config = editable(encoder)
    before = Study(config).trainings_identity
    config.retrain.frozen = True
    assert Study(config).trainings_identity["training"] != before["training"]
    config.retrain.frozen = False
    moved = encoder.with_name("moved")
    shutil.copytree(encoder, moved)
    config.start = str(moved)
    assert Study(config).trainings_identity["model"] == before["model"]
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert Study(config).trainings_identity["model"] != before["model"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.layers": 1}, "model.layers=1, because the checkpoint has 2"),
        ({"model.norm_place": "before"}, "because the checkpoint has 'after'"),
        ({"task.length": 400}, "reads at most 16 tokens"),
        ({"task.vocabulary_size": 30}, "which has 30 tokens"),
        ({"model.pooling": "cls"}, "Use 'mean'"),
        ({"start": "nowhere"}, "there is no folder nowhere"),
        ({"task.checkpoint": "nowhere"}, "there is no file or folder nowhere"),
        ({"task.length": 2}, "task.length must be above 2"),
        ({"task.tokens": "words"}, "task.checkpoint has no effect with task.tokens='words'"),
        ({"task.kind": "labelling"}, "labels for each token"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message, encoder):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        Study(editable(encoder, **fields)).parts  # noqa: B018 - reads the data


def test_a_decoder_does_not_read_in_both_directions(encoder):
    config, decoder = editable(encoder), FOLDERS / "llama"
    config.start = str(decoder)
    sizes = df.load_pretrained(decoder).config
    config.task.vocabulary_size = sizes.vocabulary
    for name in config.model:
        if name not in (*FREE, *HEAD):
            setattr(config.model, name, getattr(sizes, name))
    with pytest.raises(InputError, match="the checkpoint reads from left to right"):
        Study(config)


def test_a_run_ends_with_an_export_that_needs_no_checkpoint(encoder, tmp_path):
    workdir = tmp_path / "run"
    results = run_all(editable(encoder, **{"retrain.frozen": True}), workdir)
    assert results["test"]["accuracy"] >= 0
    for file in (workdir / "export").rglob("*.json"):
        assert str(tmp_path) not in file.read_text()
    shutil.rmtree(encoder)
    model = df.load(workdir / "export")
    answers = model(["a good film", "the film was bad"])
    assert {answer["label"] for answer in answers} <= {"good", "bad"}


def test_new_writes_a_config_that_starts_from_an_encoder(encoder):
    file = write_rows(encoder.parent)
    wishes = Wishes(steps=10, start=str(encoder))
    proposed = config_for_data(str(file), values={"data.dir": str(encoder.parent)}, wishes=wishes)
    assert f"config.start = {str(encoder)!r}".replace("'", '"') in proposed.text
    assert 'config.task.tokens = "checkpoint"' in proposed.text
    with pytest.raises(InputError, match="an encoder, which keeps no cache: it works with texts"):
        config_for_data(str(file), kind="language", wishes=wishes)


def test_new_from_the_command_line(encoder, capsys):
    file = write_rows(encoder.parent)
    data = f"--config.data.dir={encoder.parent}"
    assert main(["new", f"--from={encoder}", f"--data={file}", "--steps=10", data, "--quiet"]) == 0
    assert "config.start" in capsys.readouterr().out
    assert main(["new", f"--from={encoder}"]) == 2
    assert "needs --data=FILE: texts that have a class" in capsys.readouterr().err
