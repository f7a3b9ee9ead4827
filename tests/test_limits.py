"""`data.valid_limit` and `data.baseline_limit`: how many rows are read, and who says so."""

import numpy as np
import pytest

from dartformer import config as configs
from dartformer.data.fingerprint import fingerprint
from dartformer.errors import InputError
from dartformer.report.verdicts import searched
from dartformer.results import Results, RowLimit
from dartformer.stages import evaluate
from dartformer.stages.study import Study


def study_of(tiny, **values):
    config = tiny.copy_and_resolve_references()
    configs.override(config, values)
    return Study(config)


def test_valid_and_the_rules_read_as_many_rows_as_they_may(tiny, monkeypatch, capsys):
    whole = study_of(tiny)
    limits = {"data.valid_limit": 7, "data.baseline_limit": 9}
    study = study_of(tiny, **limits)
    assert study.limits == (
        RowLimit("data.valid_limit", 7, len(whole.parts["valid"])),
        RowLimit("data.baseline_limit", 9, len(whole.parts["train"])),
    )
    assert len(study.parts["valid"]) == 7
    for name in ("weights", "alphas", "train", "test"):
        assert len(study.parts[name]) == len(whole.parts[name])
    said = capsys.readouterr().err
    assert f"Models are chosen on 7 of {len(whole.parts['valid'])} rows of valid" in said
    # The same rows each time, and others of another seed.
    again = study_of(tiny, **limits)
    assert fingerprint([again.parts["valid"]]) == fingerprint([study.parts["valid"]])
    # The search before is of other data.
    assert study.data_fingerprint != whole.data_fingerprint
    seen = []
    monkeypatch.setattr(
        type(study.task),
        "baselines",
        lambda _, train, test: seen.append((len(train), len(test))) or {},
    )
    scores = evaluate.rule_scores(study)
    assert seen == [(9, len(study.parts["test"]))]
    labels = study.baseline_train.take(np.arange(9))["label"]
    of_test = study.parts["test"].take(np.arange(len(study.parts["test"])))["label"]
    assert scores["majority"] == (of_test == np.bincount(labels).argmax()).mean()


def test_a_limit_above_the_rows_is_none(tiny):
    study = study_of(tiny, **{"data.valid_limit": 10**6, "data.baseline_limit": 0})
    assert study.limits == ()
    assert study.baseline_train is study.parts["train"]


@pytest.mark.parametrize("field", ["valid_limit", "baseline_limit"])
def test_a_negative_limit_is_one_line(field, tiny):
    with pytest.raises(InputError, match=f"data.{field} must be at least 0, got -1"):
        study_of(tiny, **{f"data.{field}": -1})


def test_the_report_and_the_file_say_how_many(whole_run):
    from dataclasses import replace

    from dartformer.report.reading import read

    workdir, _ = whole_run
    reading = read(workdir)
    limits = (RowLimit("data.valid_limit", 5, 1234),)
    results = replace(reading.results, limits=limits)
    assert Results.from_dict(results.to_dict(), "results.json").limits == limits
    sentences = searched(replace(reading, results=results))
    assert "Models are chosen on 5 of 1,234 rows of valid (data.valid_limit)." in sentences
    assert not any("rows of valid" in sentence for sentence in searched(reading))
