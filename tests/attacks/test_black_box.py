"""Attacks that need no gradient, on classifiers that have none."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Binarizer, FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.attacks import PGD, Square, Transfer, UniformNoise
from robust_ensembles.attacks.engine.target import BlackBox
from robust_ensembles.exceptions import NotDifferentiableError
from robust_ensembles.metrics import make_robust_scorer, robust_accuracy_score, robust_scoring

SQUARE = Square(eps=0.2, n_queries=50, clip_values=(0.0, 1.0), random_state=0)


def vanilla(**params):
    settings = {"module_params": {"hidden_sizes": (16,)}, "max_epochs": 3, "lr": 0.01}
    return VanillaEnsembleClassifier(**settings, device="cpu", random_state=0, **params)


@pytest.fixture(scope="module")
def forest(digit_rows):
    X, _, y, _ = digit_rows
    return RandomForestClassifier(20, max_depth=8, random_state=0).fit(X, y)


def plain(x):
    """Refuses tensors."""
    return np.asarray(x.tolist())


@pytest.mark.parametrize(
    "steps",
    [(Binarizer(threshold=0.4),), (FunctionTransformer(plain),)],
    ids=["step", "function"],
)
def test_step_without_a_twin(steps, digit_rows):
    X, X_test, y, y_test = digit_rows
    pipeline = make_pipeline(*steps, vanilla()).fit(X, y)
    with pytest.raises(NotDifferentiableError, match="Square"):
        PGD().generate(pipeline, X_test, y_test)
    clean = pipeline.score(X_test, y_test)
    found = SQUARE.generate(pipeline, X_test, y_test)
    assert np.abs(found - X_test).max() <= 0.2 + 1e-6
    robust = robust_accuracy_score(pipeline, X_test, y_test, attack=SQUARE)
    assert robust == np.mean(
        (pipeline.predict(found) == y_test) & (pipeline.predict(X_test) == y_test)
    )
    assert robust < clean
    assert robust_scoring("fgsm")["clean"](pipeline, X_test, y_test) == clean


def test_forest(forest, digit_rows):
    """Many of its probabilities are 0."""
    _, X_test, _, y_test = digit_rows
    robust = robust_accuracy_score(forest, X_test, y_test, attack=SQUARE)
    assert robust < forest.score(X_test, y_test) - 0.2
    x = torch.from_numpy(X_test.astype(np.float32))
    logits = BlackBox(forest)(x)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    np.testing.assert_allclose(logits.exp(), forest.predict_proba(X_test), atol=1e-6)


def test_transfer_to_a_forest(forest, digit_rows):
    X, X_test, y, y_test = digit_rows
    surrogate = vanilla().fit(X, y)
    attack = Transfer(surrogate, PGD(eps=0.3, n_steps=10, clip_values=(0.0, 1.0)))
    [examples] = attack.examples(torch.from_numpy(X_test).float(), torch.from_numpy(y_test))
    right = forest.predict(X_test) == y_test
    expected = np.mean(right & (forest.predict(examples.numpy()) == y_test))
    assert robust_accuracy_score(forest, X_test, y_test, attack=attack) == expected
    assert expected < right.mean()


def test_columns_by_name(digit_rows):
    """No warning of scikit-learn's either, which tests turn into errors."""
    X, X_test, y, y_test = digit_rows
    names = [f"pixel {i}" for i in range(X.shape[1])]
    frame, frame_test = (pd.DataFrame(values, columns=names) for values in (X, X_test))
    columns = ColumnTransformer([("middle", StandardScaler(), names[16:48])])
    pipeline = make_pipeline(columns, vanilla()).fit(frame, y)
    robust = robust_accuracy_score(pipeline, frame_test, y_test, attack=SQUARE)
    assert robust < pipeline.score(frame_test, y_test)


def test_in_a_search(digit_rows):
    X, _, y, _ = digit_rows
    search = GridSearchCV(
        RandomForestClassifier(10, random_state=0),
        {"max_depth": [2, 8]},
        cv=2,
        scoring=robust_scoring(SQUARE),
        refit="worst",
        error_score="raise",
    ).fit(X, y)
    assert (search.cv_results_["mean_test_worst"] <= search.cv_results_["mean_test_clean"]).all()
    assert robust_accuracy_score(search, X, y, attack=SQUARE) <= search.best_estimator_.score(X, y)


def test_scorers_see_a_new_fit(digit_rows):
    """Nothing is remembered of a forest that has been fitted again."""
    X, X_test, y, y_test = digit_rows
    forest = RandomForestClassifier(20, random_state=0).fit(X, y)
    scorer = make_robust_scorer(UniformNoise(eps=0.1))
    first = scorer(forest, X_test, y_test)
    forest.fit(X, (y + 1) % 10)
    second = scorer(forest, X_test, y_test)
    assert second < 0.3 < first


def test_without_probabilities(digit_rows):
    X, X_test, y, y_test = digit_rows
    svc = LinearSVC().fit(X, y)
    with pytest.raises(NotDifferentiableError, match="LinearSVC"):
        robust_accuracy_score(svc, X_test, y_test, attack=SQUARE)


def test_x_of_the_wrong_width(forest):
    with pytest.raises(ValueError, match="features"):
        robust_accuracy_score(forest, np.zeros((3, 5)), [0, 1, 2], attack=SQUARE)


def test_no_classifier():
    class Probable(ClassifierMixin, BaseEstimator):
        def predict_proba(self, X):
            return np.full((len(X), 2), 0.5)

    with pytest.raises(TypeError, match="classes_"):
        SQUARE.generate(Probable(), np.zeros((2, 3)), [0, 1])
