"""Texts are continued as the model at once would, whatever they are batched with."""

import json
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import dartformer as df
from dartformer import config as configs
from dartformer.cli.main import main
from dartformer.export.generate import Piece, Sampling, Writer, _Draw, choose, generate
from dartformer.export.write import export
from dartformer.models.transformer import transformer
from dartformer.stages.retrain import Model
from dartformer.tasks.language import Language

N = 32


def language(*specs, **values):
    """A model of the task language over bytes, with fresh weights."""
    genotype = df.Genotype(tuple((df.parse(spec),) * 2 for spec in specs))
    config = df.defaults("language")
    configs.override(
        config,
        {
            "task.path": __file__,
            "task.tokens": "bytes",
            "task.length": N,
            "space.candidates": tuple(dict.fromkeys([*specs, "uniform", "identity"])),
            "model.layers": len(specs),
            "model.heads": 2,
            "model.head_dim": 4,
            "model.model_dim": 8,
            "model.mlp_dim": 16,
            **values,
        },
    )
    config = configs.build(config)
    shape = config.transformer
    weights = transformer(shape, genotype).init(jax.random.key(0))
    # Far from uniform, so that the most probable token is no matter of rounding.
    weights["head"]["kernel"] = 20 * weights["head"]["kernel"]
    return Model(config, config.task.built, shape, genotype, weights, 0, 0, {})


@pytest.fixture(scope="module")
def model():
    return language("full", "retention")


def greedy(model, prompt, count):
    """The most probable continuation, by the whole model at each step."""
    apply = jax.jit(transformer(model.shape, model.genotype).apply)
    ids = model.task.prompt(prompt)
    new = []
    for _ in range(count):
        tokens = np.zeros((1, N), np.int32)
        tokens[0, : len(ids)] = ids
        valid = np.arange(N)[None] < len(ids)
        logits = np.array(apply(model.weights, tokens, valid)[0, len(ids) - 1])
        logits[0] = -np.inf  # padding is no text
        new.append(int(logits.argmax()))
        ids.append(new[-1])
    return new


PROMPTS = ["a", "the cat sat", "hello there, you"]


def test_greedy_texts_are_those_of_the_whole_model(model):
    results = generate(model, PROMPTS, max_tokens=12)
    for prompt, result in zip(PROMPTS, results, strict=True):
        expected = model.task.decode(model.task.prompt(prompt) + greedy(model, prompt, 12))
        assert prompt + result.text == expected
        assert (result.prompt, result.tokens, result.finish) == (prompt, 12, "length")


def test_a_row_does_not_depend_on_those_beside_it(model):
    together = generate(model, PROMPTS, max_tokens=8)
    for prompt, result in zip(PROMPTS, together, strict=True):
        assert generate(model, prompt, max_tokens=8) == [result]


def test_draws_repeat_with_their_seed(model):
    options = {"max_tokens": 10, "temperature": 1.5}
    first = generate(model, ["ab", "ab"], seed=1, **options)
    assert first == generate(model, ["ab", "ab"], seed=1, **options)
    assert first[0].text != first[1].text
    assert first != generate(model, ["ab", "ab"], seed=2, **options)


def test_one_candidate_is_the_most_probable_one(model):
    best = generate(model, "ab", max_tokens=10)
    assert generate(model, "ab", max_tokens=10, temperature=2.0, top_k=1) == best
    assert generate(model, "ab", max_tokens=10, temperature=2.0, top_p=1e-6) == best
    assert generate(model, "ab", max_tokens=10, temperature=1e-30) == best


def test_what_is_drawn_has_the_probabilities_of_the_model():
    probabilities = np.array([0.0, 0.5, 0.3, 0.15, 0.05])
    logits = jnp.log(jnp.broadcast_to(probabilities, (4000, 5)))

    def shares(top_k=0, **options):
        sampling = Sampling(temperature=1.0, top_k=top_k, **options)
        draw = _Draw(
            jax.random.key(0),
            jnp.float32(sampling.temperature),
            jnp.float32(sampling.top_p),
            jnp.zeros(5, bool),
        )
        chosen = np.asarray(choose(logits, draw, top_k, 0))
        return np.bincount(chosen, minlength=5) / len(chosen)

    np.testing.assert_allclose(shares(), probabilities, atol=0.03)
    np.testing.assert_allclose(shares(top_k=2), [0, 0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.8), [0, 0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(shares(top_p=0.81), [0, 10 / 19, 6 / 19, 3 / 19, 0], atol=0.03)
    banned = _Draw(
        jax.random.key(0), jnp.float32(0), jnp.float32(1), jnp.array([0, 1, 0, 0, 0], bool)
    )
    assert (np.asarray(choose(logits, banned, 0, 0)) == 2).all()


def test_a_stop_text_ends_its_row_and_is_left_out(model):
    whole = generate(model, PROMPTS, max_tokens=12)
    text = whole[1].text
    stop = text[4:6]
    place = text.index(stop)
    pieces = []
    stopped = generate(model, PROMPTS, max_tokens=12, stop=stop, on_text=pieces.append)
    assert stopped[1].text == text[:place]
    assert stopped[1].finish == "stop"
    # What is shown is the text, and never a part of what is cut.
    for row, result in enumerate(stopped):
        assert "".join(piece.text for piece in pieces if piece.row == row) == result.text
        assert [p.finish for p in pieces if p.row == row][-1] == result.finish


def test_a_character_is_shown_once_it_is_whole(model, monkeypatch):
    written = "aéz"
    ids = iter([b + 1 for b in written.encode()])
    writer = Writer(model, ["x"], max_tokens=4)
    pieces = [writer._added(0, next(ids), number == 3) for number in range(4)]
    assert pieces == [Piece(0, "a"), Piece(0, ""), Piece(0, "é"), Piece(0, "z", "length")]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ("", {}, "the prompt is empty"),
        (["a", ""], {}, "prompt 2 is empty"),
        ("x" * N, {}, "has 32 tokens, and the model has 32 positions"),
        ("a", {"max_tokens": N}, "do not fit into the model's 32 positions. Use max_tokens=31"),
        ("a", {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ("a", {"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ("a", {"temperature": float("nan")}, "temperature must be at least 0"),
        ("a", {"top_k": -1}, "top_k must be at least 0"),
        ("a", {"top_p": 0.0}, "top_p must be above 0"),
        ("a", {"top_p": 1.5}, "top_p must be above 0"),
        ("a", {"seed": -1}, "seed must be at least 0"),
        ("a", {"stop": ""}, "a stop text must not be empty"),
        ("a", {"stop": ["b", "\ud800"]}, "cannot spell the stop text"),
    ],
)
def test_bad_input_is_one_line(model, prompts, options, message):
    with pytest.raises(df.InputError, match=message) as caught:
        generate(model, prompts, **options)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_continued():
    with pytest.raises(df.InputError, match=r"cosformer.* cannot be run token by token"):
        generate(language("cosformer", "full"), "a")


def test_characters_that_were_never_seen_are_never_written():
    task = Language(tokens="characters", learned='{"kind": "characters", "characters": "ab"}')
    assert task.special == (0, 1)
    assert task.prompt("abc") == [2, 3, 1]
    assert Language(tokens="bytes").special == (0,)


@pytest.mark.parametrize(
    "spec",
    [
        "local(window=3)",
        "performer(features=8)",
        pytest.param("full", marks=pytest.mark.slow),
        pytest.param("linear(feature='exp')", marks=pytest.mark.slow),
        pytest.param("conv", marks=pytest.mark.slow),
    ],
)
def test_the_exported_programs_continue_as_the_model_does(spec, tmp_path):
    model = language(spec, "gated_delta")
    folder = export(model, tmp_path / "export")
    programs = []
    for name in ("prompt", "step"):
        data = (folder / f"{name}.stablehlo").read_bytes()
        programs.append(jax.export.deserialize(bytearray(data)))
    prompt, step = programs
    weights = load_file(folder / "weights.safetensors")
    ids = [model.task.prompt(text) for text in PROMPTS]
    tokens = np.zeros((3, N), np.int32)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = one
    logits, cache = prompt.call(weights, tokens, tokens > 0)
    new = []
    for _ in range(6):
        chosen = np.array(logits)
        chosen[:, 0] = -np.inf
        new.append(chosen.argmax(1).astype(np.int32))
        logits, cache = step.call(weights, new[-1], np.ones(3, bool), cache)
    for row, prompt_text in enumerate(PROMPTS):
        assert np.stack(new, 1)[row].tolist() == greedy(model, prompt_text, 6)
    card = (folder / "README.md").read_text()
    assert "step.stablehlo" in card


def test_other_models_have_no_decode_programs(tmp_path):
    folder = export(language("cosformer", "full"), tmp_path / "export")
    assert not (folder / "step.stablehlo").exists()
    assert "step.stablehlo" not in (folder / "README.md").read_text()


def test_the_command_line(model, tmp_path, capsys):
    folder = tmp_path / "export"
    export(model, folder)
    expected = generate(model, PROMPTS, max_tokens=5)
    words = ["generate", str(folder), "--max-tokens=5"]
    for prompt in PROMPTS:
        words.append(f"--prompt={prompt}")
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == [result._asdict() for result in expected]
    assert generate(folder, PROMPTS, max_tokens=5) == expected
    file = tmp_path / "prompts.txt"
    file.write_text("a\n\nthe cat sat\n")
    assert main(["generate", str(tmp_path), f"--file={file}", "--max-tokens=5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a")
    assert "\nthe cat sat" in out
    assert main(["generate", str(folder), "--prompt=a", "--temperature=-1"]) == 2
    assert capsys.readouterr().err == (
        "dartformer: error: temperature must be at least 0, got -1.0.\n"
    )


def test_models_of_bytes_need_no_package_of_tokenizers():
    code = "import sys; sys.modules['tokenizers'] = None; import dartformer.export.generate"
    subprocess.run([sys.executable, "-c", code], check=True)
