"""The plan of a run, and how far it is."""

import io

import pytest
from rich.console import Console

from dartformer import config as configs
from dartformer.machine import progress
from dartformer.machine.progress import Bar, Whole, Work, duration
from dartformer.stages.plan import plan
from dartformer.stages.study import Study

STAGES = ("search", "derive", "race", "evaluate")


def test_the_plan_says_what_will_be_trained(tiny):
    planned = plan(Study(tiny), STAGES)
    assert planned.sentence == (
        "plan: search 12 steps with one seed, then race 5 models and up to 8 neighbours of the "
        "best for up to 10 steps, the finalists with each of 2 seeds"
    )
    assert planned.whole.work["search"].steps == 12
    configs.override(tiny, {"space.granularity": "model", "search.strategy.name": "race"})
    planned = plan(Study(tiny), STAGES)
    assert planned.sentence.startswith("plan: race 3 models for up to 10 steps")
    assert "search" not in planned.whole.work


def test_how_far_a_run_is(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    run = Whole(STAGES, {"search": Work(100, 2.0), "race": Work(50, 4.0)}, trainings=3)
    run.enter("search")
    run.begin("search", 0)
    assert run.text() == "search (stage 1 of 4), training 1 of about 3"
    now[0] += 10
    run.advance(50)
    assert run.share == 0.25
    assert run.text().endswith("about 30 s left")
    run.enter("derive")
    assert run.share == 0.5
    run.enter("race")
    # More steps than planned stay within the stage, and further trainings are counted.
    for name in "abcd":
        run.begin(name, 0)
        run.advance(20)
    assert run.share == 1
    assert run.text() == "race (stage 3 of 4), training 5 of about 5"


def test_a_resumed_run_counts_what_is_done():
    run = Whole(STAGES, {"search": Work(100, 1.0)}, trainings=1)
    run.begin("search", 60)
    assert run.share == 0.6
    assert run.seconds_left is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (120, "2 min"), (5999, "100 min"), (7200, "2.0 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_every_line_of_a_bar_says_how_far_the_run_is(capsys):
    run = Whole(STAGES, {"search": Work(10, 1.0)}, trainings=2)
    with progress.whole(run), Bar("search", 10) as bar:
        bar.update(10, {"loss": 0.5})
    assert "[search (stage 1 of 4), training 1 of about 2]" in capsys.readouterr().err
    with Bar("search", 10) as bar:
        bar.update(10, {})
    assert "stage" not in capsys.readouterr().err


def test_the_lines_of_a_terminal_fit_80_columns():
    run = Whole(STAGES, {"search": Work(10, 1.0)}, trainings=20)
    run.enter("evaluate")
    name = "neighbour linear(feature='elu') | local(window=16) seed 2"
    with progress.whole(run):
        bar = Bar(name, 10_000)
        bar.done = 9_999
        drawn = bar._drawn("9999/10000", "loss 2.345  accuracy 0.4567  33.8 steps/s  5 min left")
    console = Console(width=80, file=io.StringIO())
    console.print(drawn)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1] == name


def test_work_is_never_more_than_all():
    assert Whole(("report",), {}, 0).share == 1
