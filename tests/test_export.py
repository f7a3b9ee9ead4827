"""The exported folder: what it says, any batch and length, further formats, JSON lines, the hub."""

import ast
import importlib.util
import io
import json
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import dartformer as df
from dartformer import config as configs
from dartformer.cli.main import main
from dartformer.export import checksums, formats, to_torch
from dartformer.export.write import export
from dartformer.models.transformer import transformer
from dartformer.results import Results
from dartformer.stages.retrain import Model


def scored(test, per_seed):
    return {
        "test": {
            "accuracy": test,
            "spread": 0.0,
            "per_seed": per_seed,
            "loss": 1.0,
            "examples": 80,
        },
        "valid": {"accuracy": test, "per_seed": per_seed},
        "parameters": 10,
        "flops": 1e3,
        "steps": 10,
        "genotype": {"format": 1, "layers": [["full", "uniform"]]},
    }


RESULTS = Results.from_dict(
    {
        "task": "listops",
        "metric": "accuracy",
        "seeds": [0, 3],
        **scored(0.34, [0.34, 0.34]),
        "verdict": ["it is a tie"],
        "seconds": {"search": 2.0, "search.compile": 9.0},
        "baselines": {
            "random": scored(0.3, [0.3, 0.3]),
            "majority": {"test": {"accuracy": 0.17}},
        },
    }
)


def made(layers, weights=True, **values):
    """A model of the task listops with fresh weights, or without any."""
    genotype = df.Genotype(tuple(tuple(map(df.parse, heads)) for heads in layers))
    config = df.defaults("listops")
    candidates = dict.fromkeys(attention for heads in layers for attention in heads)
    if len(candidates) == 1:
        candidates["uniform"] = None
    configs.override(
        config,
        {
            "space.candidates": tuple(candidates),
            "model.layers": len(layers),
            "model.heads": genotype.heads,
            "model.head_dim": 4,
            "model.model_dim": 8,
            "model.mlp_dim": 8,
            "task.max_depth": 3,
            "task.min_length": 3,
            "task.max_length": 20,
            **{name.replace("__", "."): value for name, value in values.items()},
        },
    )
    task = configs.build(config).task.built
    shape = configs.build(config).transformer
    found = transformer(shape, genotype).init(jax.random.key(0)) if weights else {}
    return Model(config, task, shape, genotype, found, 3, 10, {"accuracy": 0.5})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model whose attentions take any length, and its folder."""
    model = made([["full", "uniform"]])
    return model, export(model, tmp_path_factory.mktemp("export") / "model", RESULTS)


def test_any_batch_length_and_way_to_give_it(exported):
    """Texts, ids and arrays, more than are computed at once, give what the network gives; and so
    does the StableHLO file, for fewer tokens too."""
    model, folder = exported
    served = df.load(folder, device="cpu")
    texts = ["[MAX 2 9 ]", "[MIN 4 7 [SM 1 1 ] ]"] * 40
    ids = [model.task.encode(text) for text in texts]
    n = max(map(len, ids))
    tokens, valid = np.zeros((80, n), np.int64), np.zeros((80, n), bool)
    for i, one in enumerate(ids):
        tokens[i, : len(one)], valid[i, : len(one)] = one, True
    want = served.logits(texts)
    assert want.shape == (80, 10)
    np.testing.assert_allclose(served.logits(ids[:3]), want[:3], atol=1e-6)
    np.testing.assert_allclose(served.logits(tokens, valid), want, atol=1e-6)
    assert served(tokens[:1], valid[:1]) == served(texts[:1])
    assert served.logits([]).shape == (0, 10)
    run = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert json.loads((folder / "config.json").read_text())["any_length"] is True
    np.testing.assert_allclose(
        run.call(tokens[:3].astype(np.int32), valid[:3]), want[:3], atol=1e-5
    )
    for bad, message in (
        ((tokens + 99, valid), "below 16"),
        ((tokens.astype(float), valid), "whole numbers"),
        ((tokens[0],), "takes arrays"),
        ((np.zeros((1, 99), int),), "takes arrays"),
        ((tokens, valid[:1]), "valid must be"),
        (([[1.5]],), "whole numbers"),
    ):
        with pytest.raises(df.InputError, match=message):
            served.logits(*bad)
    with pytest.raises(df.InputError, match="no device 'gpux' here; there is cpu"):
        df.load(folder, device="gpux")


# What installing dartformer brings, and predicting does not need.
ONLY_TO_TRAIN = (
    "PIL array_record chex etils flatbuffers google grain importlib_resources jinja2 orbax pyarrow "
    "sklearn tensorboardX tensorflow_datasets tensorflow_metadata tensorstore tokenizers vl_convert"
)


def test_predicting_needs_few_packages(exported, tmp_path):
    """As in an environment without those that training needs: `docs/export.md` says which."""
    file = tmp_path / "texts.txt"
    file.write_text("[MAX 2 9 ]\n[MIN 4 7 ]\n")
    code = f"""
import sys
for name in {ONLY_TO_TRAIN.split()}:
    sys.modules[name] = None  # an import of it now fails
import dartformer
from dartformer.cli.main import main
served = dartformer.load({str(exported[1])!r}, device="cpu")
assert len(served(["[MAX 2 9 ]", "[MIN 4 7 ]"])) == 2
assert main(["predict", {str(exported[1])!r}, "--file={file}", "--json"]) == 0
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-1000:]
    assert len(json.loads(ran.stdout)) == 2


def test_the_card_says_what_a_stranger_needs(exported):
    card = (exported[1] / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    values = dict(line.split(": ", 1) for line in front.splitlines())
    assert values["library_name"] == "dartformer"
    result = json.loads(values["model-index"])[0]["results"][0]
    assert result["metrics"] == [{"type": "accuracy", "name": "test accuracy", "value": 0.34}]
    assert (
        body.index("**this genotype** | 34.0% | 2 |")
        < body.index("majority class | 17.0%")
        < body.index("random |")
    )
    for words in (
        "seeds 0, 3",
        "80 test examples",
        "seed 3 after step 10",
        "parameters; ",
        "took 2 s",
        "Intended use",
        "not calibrated",
        "max_depth",
        "N being any length",
        "it is a tie.",
    ):
        assert words in body


def test_json_lines_in_and_out(exported, capsys, monkeypatch):
    lines = [
        '{"text": "[MAX 2 9 ]", "id": 7}',
        "",
        '"[MIN 1 2 ]"',
        '{"tokens": [1, 2, 3]}',
        "{",
        '{"text": "[MAXX ]"}',
        '{"texts": ["a", "b"]}',
        '{"text": 3}',
        '{"id": 1}',
    ]
    stdin = io.TextIOWrapper(io.BytesIO("\n".join(lines).encode()))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["predict", str(exported[1]), "--jsonl=-", "--batch=4"]) == 2
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [("label" in row, "error" in row) for row in rows] == [(True, False)] * 3 + [
        (False, True)
    ] * 5
    assert rows[0]["id"] == 7
    assert "line 5 is not JSON" in rows[3]["error"]
    assert "'[MAXX'" in rows[4]["error"]
    assert err == "dartformer: error: 5 of 8 lines could not be read. See their 'error' fields.\n"


def test_json_lines_keep_their_own_fields(exported, capsys, monkeypatch):
    lines = [
        b'\xef\xbb\xbf{"text": "[MAX 2 9 ]", "label": "mine", "error": "a note"}',
        b'{"text": "[MAX 2 \\ud83d ]", "line": "mine"}',
        b"[" * 200_000,
        b'{"text": "[MAX 2 9 ]", "id": ' + b"9" * 5000 + b"}",
        b'{"text": "' + b"x" * 2**20 + b'"}',
        b'{"tokens": "[MAX 2 9 ]"}',
    ]
    stdin = io.TextIOWrapper(io.BytesIO(b"\n".join(lines)))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["predict", str(exported[1]), "--jsonl=-"]) == 2
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert (rows[0]["label"], rows[0]["error"]) == ("mine", "a note")
    assert rows[0]["dartformer_label"] in map(str, range(10))
    assert (rows[1]["line"], rows[1]["dartformer_line"]) == ("mine", 2)
    assert "nested too deeply" in rows[2]["error"]
    assert "too many digits" in rows[3]["error"]
    assert len(rows[4]["error"]) < 400
    assert "must be a list of token ids" in rows[5]["error"]
    assert "5 of 6 lines" in err


def test_a_file_has_a_text_on_each_line(exported, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes("\ufeff[MAX 2\u2028 9 ]\r\n\n[MIN\f 3 4 ]".encode())
    assert main(["predict", str(exported[1]), "--file", str(tmp_path / "a.txt"), "--json"]) == 0
    texts = [row["text"] for row in json.loads(capsys.readouterr().out)]
    assert texts == ["[MAX 2\u2028 9 ]", "[MIN\f 3 4 ]"]
    (tmp_path / "a.txt").write_text("[MAX 2 9 ]\n\n[MAXX ]\n")
    assert main(["predict", str(exported[1]), "--file", str(tmp_path / "a.txt")]) == 2
    assert "a.txt, line 3: unknown ListOps symbol '[MAXX'" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [object, np.str_, tuple, "series"])
def test_texts_in_whatever_holds_them(exported, kind):
    served = df.load(exported[1], device="cpu")
    texts = ["[MAX 2 9 ]", "[MIN 4 7 ]"]
    if kind == "series":
        texts_held = pytest.importorskip("pandas").Series(texts, index=[7, 3])
    elif kind is tuple:
        texts_held = tuple(texts)
    else:
        texts_held = np.array(texts, kind)
    assert served(texts_held) == served(texts)
    np.testing.assert_array_equal(served.logits(texts_held), served.logits(texts))


@pytest.mark.parametrize(
    "texts",
    [
        [b"[MAX 2 9 ]"],
        ["[MAX 2 9 ]", None],
        [float("nan")],
        {"text": 1},
        3,
        np.array("a"),
        [[2**80]],
    ],
)
def test_what_is_no_text_is_refused_in_a_line(exported, texts):
    with pytest.raises(df.InputError):
        df.load(exported[1], device="cpu")(texts)


def test_pushing_to_the_hub(exported, capsys, monkeypatch):
    """A dry run without a network; then what the hub's client is asked for; and what is refused."""
    folder = str(exported[1])
    assert main(["push", folder, "--repo=me/found", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["uploaded"], found["url"]) == (False, "https://huggingface.co/me/found")
    assert set(found["files"]) == {p.name for p in exported[1].iterdir()}
    calls = []

    class Hub:
        def create_repo(self, repo, **options):
            calls.append((repo, options["private"]))

        def create_commit(self, **options):
            if calls[-1][0] == "other/found":
                raise PermissionError("403 Forbidden")
            calls.append(sorted(file["path_in_repo"] for file in options["operations"]))

    hub = types.SimpleNamespace(HfApi=Hub, CommitOperationAdd=dict, __spec__=object())
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert main(["push", folder, "--repo=me/found", "--private"]) == 0
    assert calls == [("me/found", True), sorted(found["files"])]
    for repo, message in (("found", "owner/name"), ("other/found", "403 Forbidden")):
        assert main(["push", folder, f"--repo={repo}"]) == 2
        assert message in capsys.readouterr().err


def test_formats_that_cannot_be(exported, tmp_path):
    model, folder = exported
    with pytest.raises(df.InputError, match="Did you mean 'onnx'"):
        export(model, tmp_path / "new", formats=["onx"])
    with pytest.raises(df.InputError, match="does not know the attention 'nystrom'"):
        to_torch.source(made([["full", "nystrom(landmarks=2)"]], weights=False))
    with pytest.raises(df.InputError, match="float32"):
        to_torch.source(made([["full"]], weights=False, model__dtype="bfloat16"))
    for name in formats.FORMATS:
        if importlib.util.find_spec(formats.FORMATS[name].packages[0]) is None:
            with pytest.raises(df.InputError, match=f"pip install 'dartformer.{name}.'"):
                export(model, tmp_path / "new", formats=[name])
    assert not (tmp_path / "new").exists()
    noted = json.loads((folder / checksums.CHECKSUMS).read_text())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / checksums.CHECKSUMS).write_text(json.dumps({**noted, "../secret": "0"}))
    with pytest.raises(df.InputError, match="lacks"):
        checksums.verify(outside)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_a_format_gives_the_models_logits(name, tmp_path):
    """`export` compares them; where the weights are changed behind its back, the comparison
    fails."""
    for package in formats.FORMATS[name].packages:
        pytest.importorskip(package, reason=f"needs the extra {name}")
    model = made(
        [["full", "local(window=2)"], ["linear", "linformer(rank=3)"]], model__qk_norm=True
    )
    folder = export(model, tmp_path / "model", formats=[name])
    df.load(folder)  # checksums of nested files
    net = transformer(model.shape, model.genotype)
    other = jax.tree.map(lambda w: w + 0.1, model.weights)
    tokens, valid = formats.examples(model.shape, 2)
    found = formats.FORMATS[name].run(folder, tokens, valid)
    np.testing.assert_allclose(found, net.apply(model.weights, tokens, valid), atol=1e-5)
    assert np.abs(found - net.apply(other, tokens, valid)).max() > 1e-2


TORCH = [
    (
        [
            ["full", "local(window=2)", "strided(stride=3)", "block(size=4)"],
            [
                "sparse(stride=4)",
                "sink(window=2,sinks=2)",
                "sparse(stride=3,pattern='strided')",
                "differential",
            ],
        ],
        {
            "model.positions": "alibi",
            "model.kv_heads": 2,
            "model.qk_norm": True,
            "model.head_dim": 4,
        },
    ),
    (
        [
            [
                "linear(feature='relu')",
                "linear(feature='exp')",
                "linear(feature='softmax')",
                "cosformer",
            ],
            [
                "linformer(rank=3)",
                "linformer(rank=3,sharing='kv')",
                "synthesizer",
                "synthesizer(mode='random')",
            ],
        ],
        {"model.positions": "sinusoidal", "model.classifier": "mlp", "model.pooling": "cls"},
    ),
    (
        [["full", "local(window=2)", "uniform", "identity"], ["linear(feature='hedgehog')"] * 4],
        {"model.positions": "rotary", "model.pooling": "last"},
    ),
    (
        [
            [
                "synthesizer(mode='factorised')",
                "conv(width=3)",
                "parallel(members=(full,conv(width=4)),shares=(1,2))",
            ]
        ],
        {"model.stem": "bigram", "model.positions": "none", "model.branch_norm": False},
    ),
    (
        [["full", "local(window=2)", "full", "full"], ["full"] * 4],
        {
            "model.norm": "rms",
            "model.norm_eps": 1e-3,
            "model.mlp_bias": False,
            "model.head_bias": False,
            "model.activation": "silu",
            "model.gated_mlp": True,
            "model.positions": "rotary",
            "model.rope_theta": 50.0,
            "model.nope_layers": (1,),
            "model.kv_heads": 2,
            "model.qk_norm": True,
            "model.qk_norm_shared": True,
            "model.short_conv": 3,
            "model.output_gate": "silu",
        },
    ),
    (
        [["full", "uniform"]],
        {
            "model.norm_eps": 1e-5,
            "model.norm_place": "after",
            "model.embed_norm": True,
            "model.qkv_bias": True,
            "model.out_bias": True,
            "model.activation": "gelu",
            "model.position_offset": 2,
            "model.token_types": 2,
            "model.output_gate": "sigmoid",
        },
    ),
]


@pytest.mark.parametrize("case", range(len(TORCH)))
def test_the_torch_module_is_python_and_holds_what_is_used(case):
    """Also where torch is not installed."""
    layers, values = TORCH[case]
    model = made(layers, weights=False, **{k.replace(".", "__"): v for k, v in values.items()})
    tree = ast.parse(to_torch.source(model))
    assigned = {ast.unparse(n.targets[0]): n.value for n in tree.body if isinstance(n, ast.Assign)}
    table = {key.value for key in assigned["ATTENTIONS"].keys}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    written = ",".join(",".join(heads) for heads in layers)
    used = set(re.findall(r"[a-z]+(?=[(,)']|$)", written)) & set(to_torch.KNOWN)
    assert table == used - {"parallel"}
    assert defined & set(to_torch.KNOWN) == used - {"parallel"} | defined & {"parallel"}
    annotated = {n.target.id: n.value for n in tree.body if isinstance(n, ast.AnnAssign)}
    assert len(ast.literal_eval(annotated["GENOTYPE"])) == len(layers)
    assert ast.literal_eval(annotated["SHAPE"])["pooling"] == model.shape.pooling


@pytest.mark.parametrize("case", range(len(TORCH)))
def test_the_torch_module_of_every_type_it_knows(case, tmp_path, compile_quickly):
    pytest.importorskip("torch", reason="needs the extra torch")
    layers, values = TORCH[case]
    export(
        made(layers, **{k.replace(".", "__"): v for k, v in values.items()}),
        tmp_path / "model",
        formats=["torch"],
    )
    used = (tmp_path / "model/model_torch.py").read_text()
    assert ("def nystrom" in used, "def full" in used) == (False, "full" in str(layers))
