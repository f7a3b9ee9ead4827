"""`dartformer profile --on`, with what a compiler would say made up here."""

import dataclasses
import json

import jax
import pytest

from dartformer import config as configs
from dartformer.accelerators import compile as compiling
from dartformer.accelerators.compile import Estimate, GaveUp, TooLarge
from dartformer.accelerators.devices import DEVICES
from dartformer.cli.main import main
from dartformer.cli.new import SPACES
from dartformer.errors import InputError
from dartformer.stages import predict
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
    monkeypatch.setattr(predict, "require_compiler", lambda device: None)


def answering(monkeypatch, *steps):
    """The other process answers this; what it was asked is returned in a list."""
    asked = []

    def answers(device, module, request):
        asked.append((device.name, module, request))
        yield from steps

    monkeypatch.setattr(predict.compiling, "answers", answers)
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
    asked = answering(monkeypatch, STEP)
    assert profile("--on=tpu-v5e", "--config.model.layers=3") == 0
    out = capsys.readouterr().out
    assert out.startswith("predicted for tpu-v5e (TPU v5 lite, 16.9 GB); batch 32")
    assert "512" in out
    ((device, module, request),) = asked
    assert (device, module) == ("tpu-v5e", PROCESS)
    assert request["overrides"] == {"model.layers": "3"}
    assert request["batch"] == 32
    assert profile("--on=tpu-v5e", "--json", "--batch=8") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["device"] == "tpu-v5e"
    assert result["steps"] == [STEP]
    assert asked[-1][2]["batch"] == 8


def test_a_batch_that_does_not_fit_says_which_one_does(installed, monkeypatch, capsys):
    large = {**STEP, "batch": 64, "fits": False, "peak_bytes": 31_200_000_000, "largest_batch": 16}
    none = {"name": "full", "batch": 64, "fits": False}
    refused = {"name": "local", "batch": 64, "fits": False, "refusal": "INTERNAL: no tile"}
    answering(monkeypatch, large, none, refused)
    assert profile("--on=tpu-v5e", "--batch=64") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:] == [
        "search: a batch of 64 does not fit the 16.9 GB of tpu-v5e: it needs 31.2 GB. The largest "
        "that fits is 16.",
        "full: a batch of 64 does not fit the 16.9 GB of tpu-v5e. Not even one example does.",
        "local: the compiler gave up: INTERNAL: no tile",
    ]


def test_a_process_that_ends_is_one_line(tmp_path, monkeypatch):
    """A compiler can crash, and what it wrote last is all that there is."""
    (tmp_path / "crashes.py").write_text(
        "import sys\n"
        "print('{\"name\": 1}', flush=True)\n"
        "print('talk')\n"
        "print('first', file=sys.stderr)\n"
        "sys.exit('Check failed: tile')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answers = compiling.answers(TPU, "crashes", {})
    assert next(answers) == {"name": 1}
    with pytest.raises(
        InputError, match=r"^the compiler for tpu-v5e gave up.*: Check failed: tile$"
    ):
        next(answers)
    (tmp_path / "refuses.py").write_text('print(\'{"refused": "batch must be less."}\')')
    with pytest.raises(InputError, match=r"^batch must be less\.$"):
        list(compiling.answers(TPU, "refuses", {}))


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
