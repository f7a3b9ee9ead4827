"""The table of tasks, and making one from the options of a config."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints

import pytest

from dartformer import registry, tasks
from dartformer.errors import InputError
from dartformer.tasks.base import Task


@dataclass(frozen=True)
class Other:
    """What another package might register."""

    widths: tuple[int, ...] = (1, 2)
    folder: str | None = None
    strict: bool = False


@pytest.fixture
def installed(monkeypatch):
    """Entry points as if other packages were installed."""
    points = [
        EntryPoint("other", f"{__name__}:Other", "dartformer.task"),
        EntryPoint("absent", "no_such_module:Task", "dartformer.task"),
        EntryPoint("odd", f"{__name__}:pytest", "dartformer.task"),
    ]
    monkeypatch.setattr(
        registry, "entry_points", lambda **chosen: EntryPoints(points).select(**chosen)
    )
    monkeypatch.setattr(tasks.TASKS, "registered", {})
    return points


def test_every_task_is_a_task_and_hashable():
    for name in tasks.TASKS:
        task = tasks.make(name, {})
        assert isinstance(task, Task)
        assert hash(task) == hash(tasks.make(name, {}))
        assert len(task.labels) == task.classes
        assert task.traits.summary
        assert task.traits.paper


def test_options_reach_the_task():
    task = tasks.make(
        "listops", {"max_depth": 3, "min_length": 0, "operator_probability": 1, "seed": 7}
    )
    assert (task.max_depth, task.operator_probability, task.seed) == (3, 1.0, 7)
    assert type(task.operator_probability) is float


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("listop", {}, "unknown task 'listop'.*Did you mean 'listops'"),
        (
            "listops",
            {"max_dept": 3},
            "unknown option of task listops 'max_dept'.*Did you mean 'max_depth'",
        ),
        ("listops", {"traits": 3}, "unknown option of task listops 'traits'"),
        ("listops", {"max_depth": "ten"}, "task.max_depth of listops must be int, got 'ten'"),
        ("listops", {"max_depth": 3.0}, "task.max_depth of listops must be int, got 3.0"),
        ("listops", {"train": True}, "task.train of listops must be int, got True"),
        (
            "listops",
            {"operator_probability": "a"},
            "task.operator_probability of listops must be float",
        ),
        ("listops", {"max_depth": 0}, "max_depth must be at least 1, got 0"),
    ],
)
def test_a_wrong_option_is_one_clear_error(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        tasks.make(name, options)
    assert "\n" not in str(error.value)


def test_other_packages_add_tasks(installed):
    assert tasks.names() == [*tasks.BUILT_IN, "absent", "odd", "other"]
    assert tasks.make("other", {"widths": [3], "folder": "a", "strict": True}) == Other(
        (3,), "a", True
    )
    assert tasks.make("other", {"folder": None}) == Other()
    with pytest.raises(InputError, match=r"task.folder of other must be str or None, got 3"):
        tasks.make("other", {"folder": 3})
    with pytest.raises(
        InputError, match=r"'absent' \(entry point no_such_module:Task\) does not load: No module"
    ):
        tasks.find("absent")
    with pytest.raises(InputError, match="'odd' must be a dataclass; got <module 'pytest'"):
        tasks.find("odd")
    installed.append(EntryPoint("listops", f"{__name__}:Other", "dartformer.task"))
    assert tasks.find("listops") is tasks.BUILT_IN["listops"], "another package took a name of ours"
    with pytest.raises(InputError, match=r"'listops' .* is already registered: uninstall"):
        tasks.names()
