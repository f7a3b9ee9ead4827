"""The adapter of lm-evaluation-harness: the same numbers as the whole model, request by request."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import dartformer as df
from dartformer.errors import InputError
from dartformer.export import lm_eval as adapter
from dartformer.export.generate import Source
from dartformer.export.likelihood import Pair, Scorer

FOLDERS = Path(__file__).parent / "oracles/checkpoints"

Request = namedtuple("Request", "args")


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A decoder of 32 positions with a tokenizer of 48 words."""
    folder = tmp_path_factory.mktemp("lm_eval") / "speaking"
    shutil.copytree(FOLDERS / "llama", folder)
    words = {f"w{number}": number for number in range(48)}
    tokenizer = tokenizers.Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def text(ids):
    return " ".join(f"w{number}" for number in ids)


def log_probabilities(model, ids):
    """`[N - 1]`: of each token after those before it, and whether it is the best one."""
    logits = np.asarray(jax.nn.log_softmax(model(np.array([ids[:-1]]))))[0]
    labels = np.array(ids[1:])
    return logits[np.arange(len(labels)), labels], logits.argmax(-1) == labels


@pytest.mark.parametrize("batch", [1, 3])
def test_pairs_have_the_probabilities_of_the_whole_model(speaking, batch):
    model = df.load_pretrained(speaking)
    rng = np.random.default_rng(0)
    harness = adapter.Harness(str(speaking), batch)
    rows = [rng.integers(3, 48, size).tolist() for size in (2, 5, 9, 17, 24, 3, 30)]
    # One whose continuation is the model's own.
    best = [5, 6]
    for _ in range(3):
        best.append(int(model([best])[0, -1].argmax()))
    rows.append(best)
    requests, want = [], []
    for ids in rows:
        split = max(1, len(ids) - 3)
        requests.append(Request((text(ids[:split]) + " ", text(ids[split:]))))
        values, greedy = log_probabilities(model, ids)
        want.append((values[split - 1 :].sum(), greedy[split - 1 :].all()))
    found = harness.loglikelihood(requests)
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in want], rtol=1e-5)
    assert [bool(g) for _, g in found] == [bool(g) for _, g in want]
    assert found[-1][1]


def test_a_text_alone_begins_with_the_token_that_begins_texts(speaking):
    model, ids = df.load_pretrained(speaking), [7, 8, 9]
    harness = adapter.Harness(str(speaking))
    assert harness.texts.start == 1  # bos_token_id of config.json
    want = log_probabilities(model, [1, *ids])[0].sum()
    for context in ("", " "):
        ((found, _),) = harness.loglikelihood([Request((context, text(ids)))])
        np.testing.assert_allclose(found, want, rtol=1e-5)
    # It is not put before itself.
    ((found, _),) = harness.loglikelihood([Request(("", text([1, *ids])))])
    np.testing.assert_allclose(found, want, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 20])
def test_long_texts_are_scored_in_windows_with_all_that_the_model_can_read(speaking, size):
    """As the harness defines them: each token once, and the last part after a full context."""
    model, length = df.load_pretrained(speaking), 8
    ids = np.random.default_rng(size).integers(3, 48, size).tolist()
    harness = adapter.Harness(str(speaking), max_length=length)
    (found,) = harness.loglikelihood_rolling([Request((text(ids),))])
    whole, want, done = [1, *ids], 0.0, 0
    while done < size:
        count = min(length, size - done)
        end = done + count + 1
        window = whole[max(0, end - 1 - length) : end]
        want += log_probabilities(model, window)[0][-count:].sum()
        done += count
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_texts_are_continued_up_to_a_stop(speaking):
    harness = adapter.Harness(str(speaking))
    prompt = text([3, 14, 15])
    (free,) = df.generate(speaking, prompt, max_tokens=6)
    words = free.text.split()
    options = {"until": [words[3], "<|endoftext|>"], "max_gen_toks": 6, "do_sample": False}
    (found,) = harness.generate_until([Request((prompt, options))])
    assert found == free.text.split(words[3])[0]
    (whole,) = harness.generate_until([Request((prompt, {"max_gen_toks": 6}))])
    assert whole == free.text
    # Of a prompt that is too long the end is read.
    many = [3] * 20 + [4, 5, 6] * 7
    (found,) = harness.generate_until([Request((text(many), {"max_gen_toks": 6}))])
    (want,) = df.generate(speaking, text(many[-26:]), max_tokens=6)
    assert found == want.text


def test_what_cannot_be_scored_is_one_line(speaking):
    scorer = Scorer(Source.of(df.load_pretrained(speaking)))
    for pair, message in (
        (Pair([], [3]), "Put a token before it"),
        (Pair([3], [4] * 33), "has 33 tokens, and the model takes at most 32"),
        (Pair([3], [48]), "has the token 48, and the model has 48"),
    ):
        with pytest.raises(InputError, match=message):
            scorer([pair])
    for arguments in ({"length": 33}, {"length": -1}, {"batch": 0}):
        with pytest.raises(InputError, match="must be"):
            Scorer(scorer.source, **arguments)
    with pytest.raises(InputError, match="generation needs a causal model"):
        adapter.Harness(str(FOLDERS / "bert"))


def test_without_the_extra_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert adapter.main() == 2
    assert "pip install 'dartformer[lm-eval]'" in capsys.readouterr().err


def test_the_harness_runs_a_task_of_a_file(speaking, tmp_path):
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    rows = [{"question": text([3, 4]), "choices": [text([5]), text([6, 7])], "answer": 1}]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "local.yaml").write_text(f"""task: local
dataset_path: json
dataset_kwargs:
  data_files: {{test: {tmp_path / "rows.json"}}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
""")
    words = ["--model", "dartformer", "--model_args", f"folder={speaking}", "--tasks", "local"]
    command = [sys.executable, "-m", "dartformer.export.lm_eval", "run", *words]
    done = subprocess.run(
        [*command, "--include_path", str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "|local|" in done.stdout
