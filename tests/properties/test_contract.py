"""What X and y may be, and what a fitted ensemble answers."""

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import accuracy_score
from small_estimators import CLASSES, every_class, make, make_full, same_weights

from robust_ensembles import AdversarialEnsembleClassifier, VanillaEnsembleClassifier
from robust_ensembles.attacks import FGSM, PGD


@pytest.fixture
def fitted(reference):
    return reference(max_epochs=5)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8])
def test_dtypes_agree(digit_images, dtype):
    X, X_test, y, _ = digit_images
    bytes_, bytes_test = (X * 255).astype(np.uint8), (X_test * 255).astype(np.uint8)
    reference = make(module="mlp").fit(bytes_.astype(np.float32) / 255, y)
    scale = 1 if dtype == np.uint8 else 255
    given, test = (a.astype(np.float64) / scale for a in (bytes_, bytes_test))
    found = make(module="mlp").fit(given.astype(dtype), y)
    tolerance = 0.02 if dtype == np.float16 else 1e-6
    np.testing.assert_allclose(
        found.predict_proba(test.astype(dtype)),
        reference.predict_proba(bytes_test.astype(np.float32) / 255),
        atol=tolerance,
    )
    assert found.clip_values_ == reference.clip_values_ == (0.0, 1.0)


def test_flat_rows_are_images_by_input_shape(digit_images, digit_rows):
    X, X_test, y, _ = digit_images
    images = make(module="lenet5", max_epochs=1).fit(X, y)
    rows = clone(images).set_params(input_shape=(1, 8, 8)).fit(digit_rows[0], y)
    assert images.input_shape_ == rows.input_shape_ == (1, 8, 8)
    assert images.n_features_in_ == rows.n_features_in_ == 64
    assert same_weights(images, rows)
    expected = images.predict_log_proba(X_test)
    for estimator in (images, rows):
        np.testing.assert_array_equal(estimator.predict_log_proba(X_test), expected)
        np.testing.assert_array_equal(estimator.predict_log_proba(digit_rows[1]), expected)


def test_lists_are_arrays(digit_rows, fitted):
    _, X_test, _, _ = digit_rows
    np.testing.assert_array_equal(fitted.predict(X_test.tolist()), fitted.predict(X_test))


def test_data_frame(digit_rows, fitted):
    X, X_test, y, _ = digit_rows
    names = [f"pixel{i}" for i in range(64)]
    frame = pd.DataFrame(X, columns=names)
    named = make(max_epochs=5).fit(frame, pd.Series(y))
    assert named.feature_names_in_.tolist() == names
    assert same_weights(named, fitted)
    named.predict(pd.DataFrame(X_test, columns=names))  # warns of nothing
    with pytest.raises(ValueError, match="feature names should match"):
        named.predict(pd.DataFrame(X_test, columns=names[::-1]))


@pytest.mark.parametrize(
    "labels",
    [np.array(list("jihgfedcba")), np.arange(10) * 7 - 20, np.arange(10) / 2 * 2 + 100],
    ids=["strings", "integers", "floats"],
)
def test_labels(digit_rows, fitted, labels):
    X, X_test, y, y_test = digit_rows
    found = make(max_epochs=5).fit(X, labels[y])
    assert set(found.predict(X_test)) <= set(labels)
    np.testing.assert_array_equal(found.classes_, np.unique(labels))
    assert found.score(X_test, labels[y_test]) > 0.5
    if labels[0] < labels[-1]:  # in the order of the digits
        np.testing.assert_array_equal(found.predict(X_test), labels[fitted.predict(X_test)])


def test_probabilities(digit_rows, fitted):
    _, X_test, _, y_test = digit_rows
    proba = fitted.predict_proba(X_test)
    members = fitted.member_predict_proba(X_test)
    assert proba.shape == (100, 10)
    assert members.shape == (3, 100, 10)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(members.sum(axis=2), 1, atol=1e-12)
    np.testing.assert_allclose(members.mean(axis=0), proba, atol=1e-12)
    assert np.abs(members[0] - members[1]).max() > 1e-3
    np.testing.assert_allclose(np.exp(fitted.predict_log_proba(X_test)), proba, atol=1e-12)
    predicted = fitted.predict(X_test)
    np.testing.assert_array_equal(predicted, fitted.classes_[proba.argmax(axis=1)])
    assert fitted.score(X_test, y_test) == accuracy_score(y_test, predicted)


def test_log_proba_does_not_underflow(digit_rows):
    X, _, y, _ = digit_rows
    estimator = make(max_epochs=1).fit(X, y)
    with torch.no_grad():
        for member in estimator.estimators_:
            member.classifier.weight.mul_(1e4)
    log_proba = estimator.predict_log_proba(X)
    assert (estimator.predict_proba(X) == 0).any()
    assert np.isfinite(log_proba).all()


@pytest.fixture(scope="module")
def images_fitted(digit_images):
    X, _, y, _ = digit_images
    params = {"module": "resnet20", "module_params": {"width": 4}, "n_estimators": 2}
    return make(max_epochs=1, **params).fit(X[:64], y[:64])


@pytest.mark.parametrize("kind", ["float32", "float64", "flat", "uint8"])
def test_as_module(digit_images, images_fitted, kind):
    estimator = images_fitted
    X_test = (digit_images[1][:20] * 255).astype(np.uint8)
    expected = estimator.predict_log_proba(X_test)
    x = torch.from_numpy(X_test)
    if kind != "uint8":
        x = (x.double() / 255).to(torch.float64 if kind == "float64" else torch.float32)
    x = x.flatten(1) if kind == "flat" else x
    module = estimator.as_module()
    assert not any(m.training for m in module.modules())
    assert module.clip_values == (0.0, 1.0)
    with torch.no_grad():
        found, members = module(x), module.member_logits(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(
        members.softmax(-1), estimator.member_predict_proba(X_test), atol=1e-5
    )


def test_fitted_attributes(digit_rows, fitted):
    assert fitted.n_iter_ == len(fitted.history_) == 5
    assert len(fitted.estimators_) == len(fitted.module_) == 3
    assert fitted.device_ == torch.device("cpu")
    assert fitted.input_shape_ == (64,)
    assert fitted.classes_.tolist() == list(range(10))


def test_read_only_memory_map(digit_rows, fitted, tmp_path):
    X, _, y, _ = digit_rows
    joblib.dump(X, tmp_path / "X")
    mapped = joblib.load(tmp_path / "X", mmap_mode="r")
    assert not mapped.flags.writeable
    assert same_weights(make(max_epochs=5).fit(mapped, y), fitted)
    np.testing.assert_array_equal(fitted.predict(mapped), fitted.predict(X))
    PGD(eps=0.1, n_steps=1).generate(fitted, mapped[:10], y[:10])


@every_class
def test_round_trip(digit_rows, cls, tmp_path):
    X, X_test, y, _ = digit_rows
    estimator = make_full(cls, train_split=0.2).fit(X, y)
    joblib.dump(estimator, tmp_path / "estimator")
    copies = [pickle.loads(pickle.dumps(estimator)), joblib.load(tmp_path / "estimator")]
    proba, history = estimator.predict_proba(X_test), list(estimator.history_)
    estimator.partial_fit(X, y)
    for copy in copies:
        np.testing.assert_array_equal(copy.predict_proba(X_test), proba)
        assert list(copy.history_) == history
        # and training continues as if nothing had happened
        assert same_weights(copy.partial_fit(X, y), estimator)


def test_component_parameters():
    shared = {"hidden_sizes": (16,)}
    estimator = make(module_params=shared, optimizer_params={"weight_decay": 0.1})
    copy = clone(estimator)
    copy.set_params(module__hidden_sizes=(4,), module__activation="leaky_relu", lr=0.5)
    copy.set_params(optimizer__weight_decay=0.2)
    assert copy.module_params == {"hidden_sizes": (4,), "activation": "leaky_relu"}
    assert copy.optimizer_params == {"weight_decay": 0.2}
    assert estimator.module_params is shared
    assert shared == {"hidden_sizes": (16,)}
    assert estimator.optimizer_params == {"weight_decay": 0.1}
    shallow = make(module_params=shared).set_params(module__hidden_sizes=(4,))
    assert shared == {"hidden_sizes": (16,)}
    assert shallow.set_params(module_params=None, module__width=8).module_params == {"width": 8}
    assert make(module_params=None).set_params(module__a=1).module_params == {"a": 1}
    mixed = make(module_params=[{"a": 1}, None]).set_params(module__b=2)
    assert mixed.module_params == [{"a": 1, "b": 2}, {"b": 2}]


def test_component_parameters_reach_the_fit(digit_rows):
    X, _, y, _ = digit_rows
    estimator = make(optimizer="sgd", max_epochs=1).set_params(
        module__hidden_sizes=(5,), optimizer__momentum=0.8
    )
    estimator.fit(X, y)
    assert estimator.estimators_[0].classifier.in_features == 5
    assert {group["momentum"] for group in estimator.net_.optimizer_.param_groups} == {0.8}
    assert len(estimator.net_.optimizer_.param_groups) == 3


def test_attack_parameters():
    estimator = AdversarialEnsembleClassifier()
    first, second = clone(estimator), clone(estimator)
    first.set_params(attack__eps=0.2)
    default = estimator.default_attack
    assert estimator.attack is None
    assert (first.attack.eps, first.attack.n_steps) == (0.2, default.n_steps)
    second.set_params(attack__eps=0.3)
    assert first.attack.eps == 0.2
    given = AdversarialEnsembleClassifier(attack=PGD(eps=0.1))
    copy = clone(given).set_params(attack__eps=0.4)
    assert (given.attack.eps, copy.attack.eps) == (0.1, 0.4)
    replaced = given.set_params(attack=FGSM(), attack__eps=0.5)
    assert isinstance(replaced.attack, FGSM)
    assert replaced.attack.eps == 0.5


def test_unknown_parameter():
    with pytest.raises(ValueError, match="Invalid parameter 'width'"):
        VanillaEnsembleClassifier().set_params(width=3)
    with pytest.raises((ValueError, AttributeError)):
        VanillaEnsembleClassifier().set_params(attack__eps=3)


@pytest.mark.parametrize("cls", CLASSES)
def test_parameters_tolerate_junk(cls):
    junk = object()
    names = cls().get_params(deep=False)
    estimator = cls(**dict.fromkeys(names, junk))
    assert all(value is junk for value in estimator.get_params().values())
    assert cls.__name__ in repr(estimator)
    assert cls("mlp").module == "mlp"  # the one positional parameter
    with pytest.raises(TypeError):
        cls("mlp", {"hidden_sizes": (4,)})
