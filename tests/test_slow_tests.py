"""The list of slow tests names tests that exist."""

from pathlib import Path

from conftest import ROOT, SLOW_TESTS


def test_each_is_in_its_file():
    for name in SLOW_TESTS:
        file, _, function = name.partition("::")
        text = Path(ROOT / file).read_text("utf-8")
        plain = function.partition("[")[0]
        assert f"def {plain}(" in text, name


def test_they_are_sorted_for_whoever_edits_them():
    lines = (Path(__file__).parent / "slow_tests.txt").read_text("utf-8").splitlines()
    assert lines == sorted(set(lines))
