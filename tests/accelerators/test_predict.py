"""`dartformer profile --on`, with what a compiler would say made up here."""

import dataclasses
import io
import json

import jax
import pytest

from dartformer import config as configs
from dartformer.accelerators import compile as compiling
from dartformer.accelerators.compile import Estimate, GaveUp, TooLarge
from dartformer.accelerators.devices import DEVICES
from dartformer.attention import parse
from dartformer.cli.main import main
from dartformer.cli.new import SPACES
from dartformer.cost import measure
from dartformer.cost import predict as latencies
from dartformer.cost.budget import Budget
from dartformer.cost.prices import device_of_latencies, prices
from dartformer.cost.table import Table
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.predict import PROCESS, largest_batch, predicted

TINY = str(SPACES / "listops_tiny.py")
TPU = DEVICES["tpu-v5e"]
FOUND = Estimate(
    peak_bytes=10**9,
    temp_bytes=8 * 10**8,
    argument_bytes=10**8,
    output_bytes=10**8,
    flops=197e9,
    moved_bytes=819e7,
    roofline_ms=10.0,
    bound="bytes",
    largest_bytes=10**8,
    largest_array="f32[25000000]",
    operations={},
    compile_seconds=3.0,
)
STEP = {"name": "search", "batch": 32, "fits": True, "peak_bytes": 10**9, "largest_batch": 512}


@pytest.fixture
def installed(monkeypatch):
    """The compilers are here."""
    monkeypatch.setattr(compiling, "require_compiler", lambda device: None)


def answering(monkeypatch, answer):
    """Other processes answer this; what they were asked is returned in a list."""
    asked = []

    class Process:
        def __init__(self, device, module):
            self.of = (device.name, module)

        def ask(self, request):
            asked.append((*self.of, request))
            yield from answer(request)

        def close(self):
            asked.append("closed")

    monkeypatch.setattr(compiling, "Process", Process)
    monkeypatch.setattr(latencies, "Process", Process)
    return asked


def profile(*words):
    return main(["profile", f"--config={TINY}", *words])


def test_an_unknown_device_names_those_that_are_known(capsys):
    assert profile("--on=tpu") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "unknown device 'tpu'" in error
    assert "tpu-v5e, h100" in error


def test_a_compiler_that_is_not_installed_is_named_with_its_extra(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert profile("--on=h100") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "dartformer: error: the compiler for h100 is not installed. Install it: pip install "
        "'dartformer[aot]'."
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--length=64"], "--length does not work with --on"),
        (["--phase=train"], "--phase does not work with --on"),
        (["--batch=0"], "batch must be a whole number of at least 1, got 0"),
        (["--genotype=missing.json"], "missing.json"),
    ],
)
def test_what_does_not_go_with_a_device_is_refused(installed, capsys, words, problem):
    assert profile("--on=h100", *words) == 2
    assert problem in capsys.readouterr().err.splitlines()[-1]


def test_a_prediction_is_shown_and_says_what_it_is(installed, monkeypatch, capsys):
    asked = answering(monkeypatch, lambda request: [STEP])
    assert profile("--on=tpu-v5e", "--config.model.layers=3") == 0
    out = capsys.readouterr().out
    assert out.startswith("predicted for tpu-v5e (TPU v5 lite, 16.9 GB); batch 32")
    assert "512" in out
    (device, module, request), closed = asked
    assert closed == "closed"
    assert (device, module) == ("tpu-v5e", PROCESS)
    assert request["overrides"] == {"model.layers": "3"}
    assert request["batch"] == 32
    assert profile("--on=tpu-v5e", "--json", "--batch=8") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "tpu-v5e"
    assert result["steps"] == [STEP]
    assert asked[-2][2]["batch"] == 8


def test_a_batch_that_does_not_fit_says_which_one_does(installed, monkeypatch, capsys):
    large = {**STEP, "batch": 64, "fits": False, "peak_bytes": 31_200_000_000, "largest_batch": 16}
    none = {"name": "full", "batch": 64, "fits": False}
    refused = {"name": "local", "batch": 64, "fits": False, "refusal": "INTERNAL: no tile"}
    answering(monkeypatch, lambda request: [large, none, refused])
    assert profile("--on=tpu-v5e", "--batch=64") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "search: a batch of 64 does not fit the 16.9 GB of tpu-v5e: it needs 31.2 GB. The largest "
        "that fits is 16.",
        "full: a batch of 64 does not fit the 16.9 GB of tpu-v5e. Not even one example does.",
        "local: the compiler gave up: INTERNAL: no tile",
    ]


def test_a_process_that_ends_is_one_line(installed, tmp_path, monkeypatch):
    """A compiler can crash, and what it wrote last is all that there is."""
    (tmp_path / "crashes.py").write_text(
        "import sys\n"
        "print('{\"name\": 1}', flush=True)\n"
        "print('talk')\n"
        "print('first', file=sys.stderr)\n"
        "sys.exit('Check failed: tile')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = compiling.Process(TPU, "crashes")
    answers = process.ask({})
    assert next(answers) == {"name": 1}
    with pytest.raises(
        InputError, match=r"^the compiler for tpu-v5e gave up.*: Check failed: tile$"
    ):
        next(answers)
    with pytest.raises(InputError, match="gave up"):  # whatever it is asked later
        list(process.ask({}))
    process.close()


def test_requests_are_answered_until_one_is_refused(monkeypatch, capsys):
    def answers(request):
        yield {"seconds": 1}
        if request["batch"] > 1:
            raise InputError("batch must be less.")

    monkeypatch.setattr("sys.stdin", io.StringIO('{"batch": 1}\n{"batch": 2}\n'))
    compiling.serve(answers)
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    second = {"seconds": 1}
    assert lines == [second, compiling.DONE, second, {"refused": "batch must be less."}]


def test_a_process_has_the_environment_of_its_device(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    variables = compiling.environment(TPU)
    assert variables["JAX_PLATFORMS"] == "cpu"
    assert variables["TPU_SKIP_MDS_QUERY"] == "1"
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)
    assert "TPU_SKIP_MDS_QUERY" not in compiling.environment(DEVICES["h100"])


@pytest.mark.parametrize("batch", [1, 24, 512])
@pytest.mark.parametrize("fixed", [0, 3 * 10**9])
def test_the_largest_batch_is_found_with_few_programs(batch, fixed):
    """Of a peak that bends a little; 16.9 GB, and 100 MB an example."""
    tried = []

    def peak(size):
        if size not in tried:
            tried.append(size)
        used = int(fixed + 10**8 * size + 1000 * size**2)
        if used > TPU.memory:
            return used
        return dataclasses.replace(FOUND, peak_bytes=used)

    largest = largest_batch(peak, TPU.memory, batch)
    assert isinstance(peak(largest), Estimate)
    assert not isinstance(peak(2 * largest), Estimate)
    assert max(largest, batch) % min(largest, batch) == 0 or batch % largest == 0
    assert len(tried) <= 6
    assert largest_batch(lambda size: 0, TPU.memory, batch) is None


def test_the_steps_of_a_config_are_compiled_for_its_device(monkeypatch):
    """The search, and each candidate alone, whose data are not here."""
    seen = []

    def estimate(device, function, *arguments, donate):
        state, metrics = jax.eval_shape(function, *arguments)
        assert jax.tree.structure(state) == jax.tree.structure(arguments[0])
        assert "loss" in metrics
        (shape,) = {tuple(x.shape) for x in jax.tree.leaves(arguments[1]) if x.ndim == 2}
        seen.append(shape[0])
        if shape[0] > 8:
            raise TooLarge(20 * 10**9)
        return FOUND

    monkeypatch.setattr(compiling, "estimate", estimate)
    config = configs.load_config(TINY, {"space.candidates": "full,linear", "model.layers": "1"})
    search, full, linear = predicted(config, {}, TPU, 16)
    assert (search.name, search.fits, search.peak_bytes) == ("search", False, 20 * 10**9)
    assert search.largest_batch == 8
    assert full.name.startswith("full")
    assert linear.largest_batch == 8
    assert set(seen) == {16, 8}

    def gives_up(*arguments, **options):
        raise GaveUp("INTERNAL: no tile")

    monkeypatch.setattr(compiling, "estimate", gives_up)
    steps = list(predicted(config, {}, TPU, 16))
    assert [step.refusal for step in steps] == ["INTERNAL: no tile"] * 3


def test_batches_are_tried_in_equal_parts():
    """`data.accumulate`, of which a step needs the memory of one part."""
    tried = []

    def too_large(size):
        tried.append(size)
        return 20 * 10**9

    assert largest_batch(too_large, TPU.memory, 12, parts=3) is None
    assert set(tried) == {12, 6, 3}
    config = configs.load_config(TINY, {"data.accumulate": "4"})
    with pytest.raises(InputError, match="a batch of 18 is not"):
        next(predicted(config, {}, TPU, 18))


# Latencies of a budget.

SIZES = {"heads": 4, "head_dim": 4, "model_dim": 8, "mlp_dim": 16, "nope_layers": (1,)}
MODEL = TransformerConfig(20, 10, 32, layers=2, positions="rotary", **SIZES)
SPACE = SearchSpace((parse("full"), parse("identity")), 2, 4, "layer")
ON = Budget.of({"latency_ms": 1.0, "batch": 3, "on": "tpu-v5e"})


def roofline(request):
    """A millisecond for each head of `full`, and ten for a model or a block."""
    heads = sum(text == "full" for text in request["genotype"]["layers"][0])
    yield {"seconds": (10 + heads) / 1e3}


def test_a_budget_takes_predicted_latencies(installed, monkeypatch, tmp_path):
    asked = answering(monkeypatch, roofline)
    budget = dataclasses.replace(ON, table=str(tmp_path / "table.json"))
    price = prices(MODEL, SPACE, budget)["latency_ms"]
    full, nothing = ((parse(name),) * 4 for name in ("full", "identity"))
    assert price.of(Genotype((full, full)), SPACE) == pytest.approx(10 + 2 * 4)
    assert price.of(Genotype((full, nothing)), SPACE) == pytest.approx(10 + 4)
    assert asked[-1] == "closed"
    # From the file, without a process.
    count = len(asked)
    again = prices(MODEL, SPACE, budget)["latency_ms"]
    assert again.of(Genotype((full, full)), SPACE) == pytest.approx(18)
    assert len(asked) == count
    assert device_of_latencies(budget) == "predicted for tpu-v5e"
    assert Budget.of(budget.to_dict()).on == "tpu-v5e"
    with pytest.raises(InputError, match=r"another device \(predicted for tpu-v5e; here cpu"):
        Table(budget.table)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"latency_ms": 1, "on": "abacus"}, "unknown device 'abacus'.*tpu-v5e, h100"),
        ({"flops": 1, "on": "h100"}, "on=h100 predicts latency_ms"),
        ({"latency_ms": 1, "memory_bytes": 1, "on": "h100"}, "memory_bytes, which is measured"),
        ({"latency_ms": 1, "phase": "decode", "on": "h100"}, "does not work with phase=decode"),
    ],
)
def test_what_cannot_be_predicted_is_refused(options, problem):
    with pytest.raises(InputError, match=problem):
        Budget.of(options)


def test_a_latency_is_the_roofline_of_a_program(monkeypatch):
    """What the other process does, with a compiler that is made up."""
    seen = []

    def estimate(device, function, *arguments):
        seen.append(jax.eval_shape(function, *arguments))
        return FOUND

    monkeypatch.setattr(latencies, "estimate", estimate)
    genotype = Genotype((tuple(parse("full") for _ in range(4)),) * 2)
    request = {
        "device": "tpu-v5e",
        "config": json.loads(json.dumps(latencies._plain(MODEL))),
        "genotype": genotype.to_dict(),
        "whole": True,
        "batch": 3,
        "length": 32,
        "phase": "forward",
    }
    assert next(latencies.answers(request))["seconds"] == 0.01
    assert next(latencies.answers({**request, "whole": False}))["seconds"] == 0.01
    model, block = seen
    assert model.shape == (3, 10)
    assert block.shape == (3, 32, 8)
    assert measure.RUN_PHASES == ("forward", "train")

    def refuses(*arguments):
        raise TooLarge(0)

    monkeypatch.setattr(latencies, "estimate", refuses)
    with pytest.raises(
        InputError, match=r"^a batch of 3 in the phase forward of .* does not fit tpu"
    ):
        next(latencies.answers(request))
