"""Records are read as they were written, and a file that is something else is refused in a line."""

import json
import math

import numpy as np
import pytest

from dartformer import results
from dartformer.errors import InputError
from dartformer.machine.workdir import jsonable

TEST = {"accuracy": 0.5, "spread": None, "per_seed": [0.5], "loss": 1.0, "examples": 4}
MODEL = {
    "test": TEST,
    "valid": {"accuracy": 0.25, "per_seed": [0.25]},
    "parameters": 7,
    "flops": 8.0,
    "steps": 3,
    "genotype": {"format": 1, "layers": [["full"]]},
}
WRITTEN = {
    "task": "listops",
    "schema": 1,
    **MODEL,
    "derive": {"rule": "argmax", "drops": {"layer 0": 1.5}},
    "baselines": {"majority": {"test": {"accuracy": 0.1}}, "homogeneous.full": MODEL},
    "verdict": ["it is 40.0 points above the rule 'majority' (10.0%)"],
    "diagnostics": {
        "findings": [],
        "verdicts": [],
        "entropy": [[0.5]],
        "seeds": {
            "valid_discrete_accuracy": {"mean": 0.5, "spread": None, "per_seed": [0.5]},
            "agreement": None,
        },
    },
}


def test_results_are_read_as_they_were_written():
    record = results.Results.from_dict(WRITTEN)
    assert record.found.test.metric == "accuracy"
    assert record.found.test.mean == 0.5
    assert math.isnan(record.found.test.spread)
    assert isinstance(record.baselines["majority"], results.RuleScores)
    assert record.baselines["homogeneous.full"].genotype.layers == (("full",),)
    assert record.derive.details == {"drops": {"layer 0": 1.5}}
    assert record.diagnostics.seeds.valid_discrete.mean == 0.5
    np.testing.assert_array_equal(record.diagnostics.entropy, [[0.5]])
    assert json.loads(json.dumps(jsonable(record.to_dict()))) == WRITTEN


def test_results_without_a_schema_are_of_an_earlier_version():
    data = {key: value for key, value in WRITTEN.items() if key != "schema"}
    assert results.Results.from_dict(data).schema == results.UNVERSIONED
    with pytest.raises(InputError, match="has schema 99"):
        results.Results.from_dict({**WRITTEN, "schema": 99}, "results.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "results.json must be an object, not a list."),
        (None, "results.json must be an object, not null."),
        ({}, "results.json lacks the key 'task'."),
        (
            {**WRITTEN, "steps": True},
            "results.json: steps must be a whole number, not true or false.",
        ),
        (
            {**WRITTEN, "test": {**TEST, "accuracy": "x"}},
            "test.accuracy must be a number, not a text",
        ),
        ({**WRITTEN, "test": {}}, "results.json: test lacks the key 'METRIC'."),
        ({**WRITTEN, "verdict": [1]}, r"verdict\[0\] must be a text, not a whole number"),
        (
            {**WRITTEN, "diagnostics": {"findings": [], "verdicts": [], "entropy": [[1], [1, 2]]}},
            "diagnostics.entropy must be nested lists of numbers",
        ),
    ],
)
def test_what_is_no_result_is_refused_by_key(data, message):
    with pytest.raises(InputError, match=message):
        results.Results.from_dict(data, "results.json")


def test_scores_of_examples_are_complete():
    data = {
        "score": "accuracy",
        "higher": True,
        "examples": 3,
        "fingerprint": "abc",
        "seeds": [0],
        "models": {"found": ["010"], "random": [[0.5, 1.5, 2.5]]},
    }
    record = results.ExampleScores.from_dict(data)
    np.testing.assert_array_equal(record.array("found"), [[0, 1, 0]])
    np.testing.assert_array_equal(record.array("random"), [[0.5, 1.5, 2.5]])
    with pytest.raises(InputError, match=r"models\.found has scores of 2 examples instead of 3"):
        results.ExampleScores.from_dict({**data, "models": {"found": ["01"]}})
