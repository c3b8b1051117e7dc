"""Estimators, given anything, train on it, or say before any training what is wrong."""

import dataclasses

import numpy as np
import pytest
import strange
from endings import check_predictions, content, ends_well
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from small import CLASSES, counted_steps, fitted, images, make, rows
from strange import size_of

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.exceptions import NonFiniteLossError


def check_training(train, estimator, X, **inputs):
    """Train; then all of X that was taken can be predicted, and nothing of it was changed."""
    before = content(X), {name: content(value) for name, value in inputs.items()}
    with counted_steps() as steps:
        ended = ends_well(train, X, **inputs)
    assert (content(X), {name: content(value) for name, value in inputs.items()}) == before
    if isinstance(ended.error, NonFiniteLossError):
        return
    if not ended:
        assert not steps, "training began before the error"
        return
    assert len(estimator.classes_) >= 2
    assert np.array_equal(np.unique(estimator.classes_), estimator.classes_)
    if ends_well(estimator.predict, X):
        check_predictions(estimator, X, size_of(X))


@st.composite
def training_data(draw, shapes=strange.ROWS):
    X = draw(strange.inputs(shapes))
    n = size_of(X)
    return {"X": X, "y": draw(strange.labels(n)), "sample_weight": draw(strange.weights(n))}


def test_fit(explore):
    def check(data):
        estimator = make(n_estimators=2)
        check_training(estimator.fit, estimator, **data)

    explore(check, data=training_data(st.one_of(strange.ROWS, strange.IMAGES)))


def test_fit_of_every_method(explore):
    def check(data, cls):
        estimator = make(cls)
        check_training(estimator.fit, estimator, **data)

    explore(check, data=training_data(), cls=st.sampled_from(CLASSES))


def test_partial_fit(explore):
    def check(data, classes, first):
        estimator = make(n_estimators=2)
        if not first:
            estimator.partial_fit(*rows())
        check_training(estimator.partial_fit, estimator, **data, classes=classes)

    classes = st.one_of(st.none(), st.just([0, 1, 2]), strange.labels(3), strange.anything())
    explore(check, data=training_data(), classes=classes, first=st.booleans())


def test_predictions(explore):
    methods = ["predict", "predict_proba", "predict_log_proba", "member_predict_proba"]

    def check(X, kind, method):
        estimator = fitted(kind)
        before = content(X)
        ended = ends_well(getattr(estimator, method), X)
        assert content(X) == before
        if ended:
            check_predictions(estimator, X, size_of(X))

    explore(
        check,
        X=strange.inputs(st.one_of(strange.ROWS, strange.IMAGES)),
        kind=st.sampled_from(["rows", "images", "steep"]),
        method=st.sampled_from(methods),
    )


@st.composite
def odd_parameters(draw):
    cls = draw(st.one_of(st.just(VanillaEnsembleClassifier), st.sampled_from(CLASSES)))
    name = draw(st.sampled_from([f.name for f in dataclasses.fields(cls)]))
    return cls, name, draw(strange.NONSENSE)


# what may take hours or gigabytes if it is taken at its word
_EXPENSIVE = {"n_estimators", "max_epochs", "n_steps", "n_inner_steps", "pretrained"}


def test_parameters(explore, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a checkpoint_dir may be any text

    def check(case, of_images):
        cls, name, value = case
        if name in _EXPENSIVE and isinstance(value, (int, np.integer)) and value > 10:
            value = 2
        X, y = images() if of_images else rows()
        estimator = make(cls, **{name: value})
        repr(estimator)
        with counted_steps() as steps:
            ended = ends_well(estimator.fit, X, y, files=name == "checkpoint_dir")
        if ended:
            # weights may be so large that there is no answer
            if ends_well(estimator.predict, X):
                check_predictions(estimator, X, len(X))
        elif not isinstance(ended.error, NonFiniteLossError):
            assert not steps, "training began before the error"
            assert name.removesuffix("_params") in str(ended.error), ended.error
            with pytest.raises(NotFittedError):
                estimator.predict(X)

    explore(check, case=odd_parameters(), of_images=st.booleans())
