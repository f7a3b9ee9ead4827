"""Estimators of scikit-learn: its own checks, and texts, pipelines and cross-validation."""

import pickle

import jax
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from dartformer.errors import InputError
from dartformer.sklearn import AttentionSearchClassifier, AttentionSearchRegressor

QUICK = {
    "steps": 2,
    "candidates": "uniform,identity",
    "config": {
        "model.layers": 1,
        "model.heads": 1,
        "model.head_dim": 2,
        "model.model_dim": 2,
        "model.mlp_dim": 2,
        "space.granularity": "model",
        "retrain.seeds": (0,),
        "race.rungs": (),
    },
}
"""A fit that has only to work."""

ESTIMATORS = (AttentionSearchClassifier, AttentionSearchRegressor)

IN_A_MOMENT = (
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_get_params_invariance",
    "check_set_params",
    "check_parameters_default_constructible",
    "check_do_not_raise_errors_in_init_or_set_param",
    "check_estimators_unfitted",
    "check_requires_y_none",
    "check_estimators_empty_data_messages",
    "check_complex_data",
    "check_classifiers_regression_target",
)
"""Checks that train nothing, or little."""


EXPECTED_TO_FAIL = {
    "check_methods_subset_invariance": "in float32 a row alone and a row among others differ by 1e-6"
}
"""Checks that do not apply, with the reason."""


def checks(chosen):
    listed = []
    for cls in ESTIMATORS:
        for estimator, check in estimator_checks_generator(cls(**QUICK)):
            name = check.func.__name__
            if name in EXPECTED_TO_FAIL:
                continue
            if chosen(name):
                listed.append(pytest.param(estimator, check, id=f"{cls.__name__}-{name}"))
    return listed


@pytest.mark.parametrize(("estimator", "check"), checks(IN_A_MOMENT.__contains__))
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize(("estimator", "check"), checks(lambda name: name not in IN_A_MOMENT))
def test_slow_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """Compiling is what takes long here, so optimise less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def reviews():
    texts, labels = [], []
    for i in range(60):
        mood = ("awful", "lovely")[i % 2]
        texts.append(f"film {i} is {mood}, {mood} and {('long', 'short')[i % 3 > 0]}")
        labels.append(("neg", "pos")[i % 2])
    return texts, np.array(labels)


@pytest.fixture(scope="module")
def moods():
    texts, labels = reviews()
    return AttentionSearchClassifier(**QUICK).fit(texts, labels), texts, labels


def test_texts(moods):
    """Lists, and arrays of objects as a split of scikit-learn makes them."""
    model, texts, labels = moods
    assert model.classes_.tolist() == ["neg", "pos"]
    predicted = model.predict(texts[:5])
    assert set(predicted) <= {"neg", "pos"}
    assert (model.predict(np.array(texts[:5], object)) == predicted).all()
    probabilities = model.predict_proba(texts[:5])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (model.classes_[probabilities.argmax(1)] == predicted).all()
    assert model.score(texts, labels) == np.mean(model.predict(texts) == labels)
    assert model.result_.results.task == "files"
    assert not hasattr(model, "n_features_in_")


def test_a_row_alone_is_nearly_the_row_among_others(moods):
    """In place of `check_methods_subset_invariance`, whose tolerance is that of float64."""
    model, texts, _ = moods
    together = model.predict_proba(texts)
    alone = np.concatenate([model.predict_proba([text]) for text in texts[:5]])
    np.testing.assert_allclose(alone, together[:5], atol=1e-5)


def test_a_copy_predicts_the_same(moods):
    """Of pickle, from a folder of its own, and `clone` is not fitted."""
    model, texts, _ = moods
    copy = pickle.loads(pickle.dumps(model))
    assert copy.result_.workdir != model.result_.workdir
    np.testing.assert_array_equal(copy.predict_proba(texts), model.predict_proba(texts))
    assert copy.result_.results.test.per_seed == model.result_.results.test.per_seed
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    assert not hasattr(fresh, "result_")


def test_in_a_pipeline_and_cross_validation():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 6))
    pipeline = make_pipeline(StandardScaler(), AttentionSearchRegressor(**QUICK))
    scores = cross_val_score(pipeline, X, X.sum(1), cv=2, error_score="raise")
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


def test_a_class_that_is_too_rare_has_the_probability_0():
    X = np.random.default_rng(0).normal(size=(62, 6))
    y = np.array([3, 7] * 30 + [9, 9])
    model = AttentionSearchClassifier(**QUICK).fit(X, y)
    assert model.classes_.tolist() == [3, 7, 9]
    probabilities = model.predict_proba(X)
    assert (probabilities[:, 2] == 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1)


def test_a_random_state_is_the_split_and_the_seeds(monkeypatch):
    called = []
    monkeypatch.setattr("dartformer.sklearn.fit", lambda X, y, **options: called.append(options))
    texts, labels = reviews()
    config = {"model.layers": 1}
    for state in (None, 5, np.random.RandomState(5)):
        AttentionSearchClassifier(config=config, random_state=state).fit(texts, labels)
    absent, number, generator = called
    assert "task.seed" not in absent
    assert number["task.seed"] == generator["task.seed"] == number["retrain.seeds"][0]
    assert number["kind"] == "classification"
    assert config == {"model.layers": 1}


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        (["a", "b"], [1], "inconsistent numbers of samples"),
        (["a", "b"], [1, 1], "2 classes, got one class: 1"),
        (["a", "b"], [1.5, 2.5], "Unknown label type: continuous"),
        (["a", "b"], ["x", None], "row 1 of y has no label"),
        (["a", "b"], None, "requires y"),
        ([[1.0], [2.0]], [0, 1], r"1 feature\(s\)"),
        ([[1.0, np.inf], [2.0, 1.0]], [0, 1], "infinity"),
    ],
)
def test_bad_input_is_a_value_error(X, y, message):
    with pytest.raises(ValueError, match=message):
        AttentionSearchClassifier(**QUICK).fit(X, y)


def test_labels_that_were_not_in_training(moods):
    """scikit-learn counts them as wrong; `result_.score` names them."""
    model, texts, _ = moods
    assert model.score(texts[:2], ["odd", "odd"]) == 0
    with pytest.raises(InputError, match="which training did not have"):
        model.result_.score(texts[:1], ["odd"])
