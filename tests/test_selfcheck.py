"""The self-check: it searches, compares, and says so in its exit code."""

import json
from types import SimpleNamespace

import pytest

from dartformer import api
from dartformer.attention import parse
from dartformer.cli import selfcheck
from dartformer.cli.main import main
from dartformer.space.genotype import Genotype


def test_it_finds_a_planted_answer(monkeypatch, capsys):
    """The quickest of its tasks, searched for real."""
    monkeypatch.setattr(selfcheck, "KINDS", ("local",))
    assert main(["selfcheck", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    (row,) = found["tasks"]
    assert row["planted"] == [["local(window=4)"]]
    assert row["found"] == [["local(window=4)", "local(window=4)"]]


@pytest.mark.parametrize(
    "answers", [("full", "local(window=4)", "local(window=4)"), ("full", "linear", "strided")]
)
def test_a_missed_answer_is_said_and_fails(monkeypatch, capsys, answers):
    """What each search found is replaced: the exit code is of the comparison."""
    genotypes = iter(Genotype.homogeneous(parse(a), 1, 2) for a in answers)
    monkeypatch.setattr(api, "search", lambda config, folder: SimpleNamespace())
    monkeypatch.setattr(api, "derive", lambda found: next(genotypes))
    assert main(["selfcheck"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("recall   found full (")
    assert lines[2].startswith(
        "mix      MISSED local(window=4) and strided(stride=8): the search chose "
    )
    assert lines[3].startswith("FAILED in ")


@pytest.mark.slow
def test_all_of_it(capsys):
    assert main(["selfcheck"]) == 0
    assert "passed in" in capsys.readouterr().out
