"""The typed config: built and checked once, with every field documented and every rule applied."""

import contextlib
import copy
import dataclasses
import pickle
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

import dartformer
from dartformer import config as configs
from dartformer.config import compat, reference
from dartformer.config.sections import Data, Derive, Log, Retrain, Space
from dartformer.errors import InputError
from dartformer.fields import documented
from dartformer.stages.study import Study
from dartformer.training.optimizer import Optimizer

BROKEN = {
    "batches of too few examples": ("recall", {"task.train": 100, "data.batch_size": 51}),
    "labels of tokens": ("planted", {"model.pooling": "mean"}),
    "labels of sequences": ("listops", {"model.pooling": "none"}),
    "shared keys and values": (
        "listops",
        {"model.kv_heads": 2, "search.projections": "separate", "space.granularity": "head"},
    ),
    "an optimizer of nothing": (
        "listops",
        {"search.strategy.name": "spos", "search.alphas.learning_rate": 0.5},
    ),
    "a budget of candidates in parallel": (
        "listops",
        {"search.budget.parameters": 1e6, "derive.rule": "top_k"},
    ),
    "a budget without expected cost": (
        "listops",
        {"search.budget.parameters": 1e6, "search.strategy.name": "spos"},
    ),
    "batches of several lengths": (
        "listops",
        {"data.buckets": 2, "space.candidates": ("full", "linformer(rank=2)")},
    ),
    "branches that are kept": (
        "listops",
        {"search.remat": False, "search.strategy.name": "spos"},
    ),
    "rule after a strategy": ("listops", {"derive.rule": "evolution"}),
    "second_opinion after a strategy": ("listops", {"derive.second_opinion": "race"}),
    "rule of candidates in parallel": (
        "listops",
        {"derive.rule": "top_k", "search.projections": "separate"},
    ),
    "seeds without a supernet": (
        "listops",
        {"search.strategy.name": "race", "search.seeds": 2},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_says_its_sentence(name):
    task, values = BROKEN[name]
    config = dartformer.defaults(task)
    configs.override(config, values)
    (rule,) = [rule for rule in compat.RULES if rule.name == name]
    with pytest.raises(InputError) as error:
        configs.build(config)
    start = rule.sentence.split("{")[0]
    assert str(error.value).startswith(start)
    assert " does not work with " in str(error.value) or " has no effect" in str(error.value)
    assert "{" not in str(error.value)
    assert str(error.value).endswith(".")


def test_a_config_is_built_once(tiny, monkeypatch):
    """Through a file, a study and a second study: what is typed is taken as it is."""
    checks = []
    check = compat.check
    monkeypatch.setattr(compat, "check", lambda config: checks.append(check(config)))
    config = configs.build(tiny)
    study = Study(config)
    assert configs.build(config) is config
    assert study.config is config
    assert study.task is config.task.built
    assert len(checks) == 1


def test_a_config_is_plain_and_frozen(tiny):
    config = configs.build(tiny)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.search.steps = 3
    assert config.task.max_depth == config.task.built.max_depth == 3
    with pytest.raises(AttributeError, match="listops has no option 'max_dept'"):
        _ = config.task.max_dept
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert configs.from_dict(configs.to_dict(config)) == config
    again = configs.editable(config)
    again.search.steps = 5
    assert configs.build(again).search.steps == 5


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Data, {"batch_size": 0}, "batch_size must be at least 1, got 0."),
        (Data, {"batch_size": True}, "batch_size takes a whole number, got True."),
        (Space, {"granularity": "heads"}, "granularity cannot be 'heads'. Did you mean 'head'?"),
        (Space, {"candidates": "full"}, "candidates takes a list of texts, got 'full'."),
        (Space, {"candidates": ("ful", "linear")}, "Did you mean 'full'?"),
        (Derive, {"tie_margin": 1.0}, "tie_margin must be at least 0 and below 1, got 1.0."),
        (Derive, {"rule": "armgax"}, "Did you mean 'argmax'?"),
        (Retrain, {"seeds": (1, 1)}, "seeds must be different whole numbers of at least 0"),
        (Retrain, {"seeds": (1.5,)}, "seeds takes a list of whole numbers, got (1.5,)."),
        (Log, {"trackers": ("wand",)}, "Did you mean 'wandb'?"),
        (Optimizer, {"learning_rate": float("nan")}, "learning_rate must be at least 0, got nan."),
        (Optimizer, {"b1": 1.5}, "b1 must be between 0 and 1, got 1.5."),
        (Optimizer, {"name": "adamm"}, "name cannot be 'adamm'. Did you mean 'adam'?"),
    ],
)
def test_a_section_checks_itself(cls, values, message):
    with pytest.raises(InputError) as error:
        cls(**values)
    assert message in str(error.value)


@pytest.mark.parametrize("form", ["{}", "({})", "[{}]", "({},)", " [ {} ] "])
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_lists_in_flags_are_spelled_as_in_python(tiny, form, quote):
    names = ("full", "local(window=4)", "linear")
    text = form.format(", ".join(f"{quote}{name}{quote}" for name in names))
    configs.override(tiny, {"space.candidates": text, "retrain.seeds": form.format("3,4")})
    assert tiny.space.candidates == names
    assert tiny.retrain.seeds == (3, 4)
    configs.override(tiny, {"retrain.seeds": form.format("5")})
    assert tiny.retrain.seeds == (5,)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=4))
def test_texts_in_flags_may_hold_anything_that_python_quotes(texts):
    """Commas, quotes and brackets too; blank ones are none, as everywhere in flags."""
    config = dartformer.defaults("files")
    expected = tuple(text.strip() for text in texts if text.strip())
    for form in (repr(tuple(texts)), repr(texts)):
        configs.override(config, {"task.label_names": form})
        assert config.task.label_names == expected


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
def test_numbers_in_flags_are_those_of_python(numbers):
    config = dartformer.defaults("listops")
    for form in (repr(tuple(numbers)), repr(numbers), ",".join(map(str, numbers))):
        configs.override(config, {"retrain.seeds": form})
        assert config.retrain.seeds == tuple(numbers)


def test_overrides_of_another_type_name_the_field(tiny):
    for values, message in (
        ({"search.steps": 2.5}, "'search.steps' takes a whole number (as 12), got 2.5."),
        ({"search.steps": None}, "'search.steps' takes a whole number (as 12), got None."),
        ({"search": 3}, "'search' is a section. Set one of its fields: "),
        ({"search.budget": 3}, "'search.budget' takes limits, as in latency_ms=12, got 3."),
        ({"search.strategy.name": 3}, "'search.strategy.name' takes a text"),
        ({"search.steps.x": 3}, "unknown config field 'search.steps.x'"),
        ({"space.candidates": 3}, "'space.candidates' takes a list separated by commas"),
    ):
        with pytest.raises(InputError) as error:
            configs.override(tiny, values)
        assert message in str(error.value)
    for config in (None, 3, {}, {"search": {}}):
        with pytest.raises(InputError, match=r"made by dartformer\.defaults\(\)"):
            configs.build(config)


def test_every_field_is_documented():
    rows = reference.fields(dartformer.defaults())
    assert all(row.sentence for row in rows)
    names = {row.name for row in rows}
    assert {"seed", "task.name", "search.steps", "search.alphas.learning_rate"} <= names
    sentences = documented(Optimizer)
    assert sentences["b1"] == "Adam's decay of the first moment."


def test_a_config_file_can_return_what_is_typed_or_frozen(tmp_path):
    """Overrides apply all the same."""
    for result in ("dartformer.config.build(config)", "FrozenConfigDict(config)"):
        file = tmp_path / "space.py"
        file.write_text(
            "import dartformer\nfrom ml_collections import FrozenConfigDict\n"
            f"def get_config():\n    config = dartformer.defaults()\n    return {result}\n"
        )
        assert dartformer.load_config(file, {"search.steps": "5"}).search.steps == 5


HELPED = "import dartformer\nfrom helper import STEPS\n\n\ndef get_config():\n    config = dartformer.defaults()\n"


def test_a_config_imports_the_modules_beside_it(tmp_path):
    """Each its own, and not that of another config of the same process."""
    for steps in (4, 9):
        folder = tmp_path / str(steps)
        folder.mkdir()
        (folder / "helper.py").write_text(f"STEPS = {steps}\n")
        file = folder / "config.py"
        file.write_text(f"{HELPED}    config.search.steps = STEPS\n    return config\n")
        assert configs.load_config(file).search.steps == steps
    (folder / "helper.py").write_text("x = 1\nSTEPS = x / 0\n")
    sys.modules.pop("helper")
    with pytest.raises(InputError, match=r"helper.py, line 2: ZeroDivisionError"):
        configs.load_config(file)


@pytest.mark.parametrize(
    "error", ["KeyboardExit", "BaseException", "GeneratorExit", "Silent", "SystemExit('text')"]
)
def test_whatever_a_config_raises_is_its_line(error, tmp_path):
    file = tmp_path / "config.py"
    silent = "class Silent(Exception):\n    def __str__(self):\n        raise ValueError\n\n\n"
    file.write_text(f"{silent}raise {error}\n")
    with pytest.raises(InputError, match=r"config.py, line 6: "):
        configs.load_config(file)


@pytest.mark.parametrize("name", ["", "\0", "x" * 5000, "folder"])
def test_a_config_that_is_no_file(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError):
        configs.load_config(tmp_path / name)


@pytest.mark.parametrize(
    ("task", "field", "value"),
    [
        ("language", "vocabulary_size", 2**31),
        ("recall", "keys", 10**9),
        ("planted", "length", 10**9),
        ("listops", "train", 10**15),
    ],
)
def test_sizes_that_no_machine_has_are_refused_at_once(task, field, value):
    config = dartformer.defaults(task)
    configs.override(config, {f"task.{field}": value})
    with pytest.raises(InputError, match=r"\d [KMGTPE]iB"):
        configs.build(config)


def test_names_of_fields_that_are_no_texts():
    config = dartformer.defaults()
    with config.unlocked(), config.ignore_type():
        config.log = {1: 2, "every": 3}
    for use in (configs.build, lambda config: configs.override(config, {"log": 0})):
        with pytest.raises(InputError, match="a name that is no text"):
            use(config)


def test_what_was_deleted_or_emptied_is_refused_with_another_strategy():
    for section in ("derive", "search.alphas", "search.strategy"):
        config = dartformer.defaults()
        with config.unlocked():
            path, _, last = section.rpartition(".")
            parent = config
            if path:
                parent = config[path]
            parent[last] = ConfigDict({})
        # An emptied section has its defaults again, but a strategy needs its name.
        with contextlib.suppress(InputError):
            configs.override(config, {"search.strategy.name": "gumbel"})
            configs.build(config)
