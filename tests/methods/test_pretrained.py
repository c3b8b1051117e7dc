"""`pretrained`: methods that start from members which are trained already."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from small_estimators import FEATURE_SPACE, RaiseAt, covered, make, same_weights, weights

from robust_ensembles import (
    DVERGEEnsembleClassifier,
    GALEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.training import EnsembleNet

feature_space = pytest.mark.parametrize("cls", covered(FEATURE_SPACE))


class AtStart(Callback):
    """Notes the members' weights before the first step of each training."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, net, **kwargs):
        state = net.module_.state_dict()
        self.seen.append({name: tensor.clone() for name, tensor in state.items()})


def method(cls=DVERGEEnsembleClassifier, **params):
    return make(cls, **{"n_steps": 1, **params})


def same(state, estimator):
    theirs = weights(estimator)
    return state.keys() == theirs.keys() and all(
        torch.equal(state[name], theirs[name]) for name in state
    )


@pytest.fixture(scope="module")
def source(digit_rows):
    """A vanilla ensemble of another seed."""
    X, _, y, _ = digit_rows
    return make(random_state=5).fit(X, y)


@pytest.fixture
def trainings(monkeypatch):
    """The estimators that were trained, and for how many epochs."""
    calls, original = [], EnsembleNet.train_epochs

    def spy(net, *args, epochs, objective, **kwargs):
        calls.append((type(objective.__self__).__name__.partition("Ens")[0], epochs))
        return original(net, *args, epochs=epochs, objective=objective, **kwargs)

    monkeypatch.setattr(EnsembleNet, "train_epochs", spy)
    return calls


# --- what the members start from -----------------------------------------------------------


@feature_space
def test_epochs(digit_rows, trainings, cls):
    """A vanilla ensemble with the same settings comes first."""
    X, _, y, _ = digit_rows
    start = AtStart()
    settings = {"lr": 0.02, "optimizer": "sgd", "batch_size": 40, "n_estimators": 4}
    estimator = method(cls, pretrained=3, callbacks=[start], lr_milestones=[1], **settings).fit(
        X, y
    )
    assert trainings == [("Vanilla", 3), (cls.__name__.partition("Ens")[0], 2)]
    first = estimator.pretrained_
    assert type(first) is VanillaEnsembleClassifier
    assert len(first.history_) == 3
    assert len(estimator.history_) == 2
    assert {name: getattr(first, name) for name in settings} == settings
    assert first.module_params == estimator.module_params
    assert first.lr_milestones is first.callbacks is None
    (state,) = start.seen
    assert same(state, first)
    assert not same_weights(estimator, first)


@feature_space
def test_unfitted(digit_rows, trainings, cls):
    """It is cloned, and trained on the same data."""
    X, _, y, _ = digit_rows
    start, source = AtStart(), make(GALEnsembleClassifier, max_epochs=3, random_state=11)
    estimator = method(cls, pretrained=source, callbacks=[start]).fit(X, y)
    assert trainings[0] == ("GAL", 3)
    assert not hasattr(source, "net_")
    assert estimator.pretrained_ is not source
    assert estimator.pretrained is source
    assert same(start.seen[0], estimator.pretrained_)
    assert same_weights(estimator.pretrained_, clone(source).fit(X, y))
    assert source.random_state == 11


@pytest.mark.parametrize("frozen", [False, True])
@feature_space
def test_fitted(digit_rows, trainings, source, cls, frozen):
    """It gives its weights and stays as it is."""
    X, X_test, y, _ = digit_rows
    before, proba, epochs = weights(source), source.predict_proba(X_test), len(source.history_)
    start = AtStart()
    pretrained = FrozenEstimator(source) if frozen else source
    estimator = method(cls, pretrained=pretrained, callbacks=[start]).fit(X, y)
    assert len(trainings) == 1
    assert estimator.pretrained_ is source
    assert same(start.seen[0], source)
    assert same(before, source)
    np.testing.assert_array_equal(source.predict_proba(X_test), proba)
    assert len(source.history_) == epochs
    after, ours = dict(source.module_.named_parameters()), estimator.module_.named_parameters()
    assert all(not torch.equal(p, after[name]) for name, p in ours)
    assert not {p.data_ptr() for p in after.values()} & {
        p.data_ptr() for p in estimator.module_.parameters()
    }


def test_buffers_are_copied(digit_images):
    """BatchNorm's running statistics are part of what was learned."""
    X, _, y, _ = digit_images
    params = {"module": "resnet20", "module_params": {"width": 2}, "max_epochs": 1}
    source = make(batch_size=16, **params).fit(X[:48], y[:48])
    start = AtStart()
    method(pretrained=source, callbacks=[start], batch_size=16, **params).fit(X[:32], y[:32])
    (state,) = start.seen
    assert any("running_mean" in name for name in state)
    assert same(state, source)


@pytest.mark.parametrize("kind", ["epochs", "unfitted", "fitted"])
@feature_space
def test_to_the_bit(digit_rows, source, cls, kind):
    X, _, y, _ = digit_rows

    def pretrained():
        unfitted = make(random_state=None, max_epochs=1)
        return {"epochs": 1, "unfitted": unfitted, "fitted": source}[kind]

    first, again, other = (
        method(cls, pretrained=pretrained(), max_epochs=1, random_state=seed).fit(X, y)
        for seed in (0, 0, 1)
    )
    assert same_weights(first, again)
    assert same_weights(first.pretrained_, again.pretrained_)
    assert not same_weights(first, other)
    # a source that names no seed of its own depends on the seed of the whole
    assert same_weights(first.pretrained_, other.pretrained_) == (kind == "fitted")


def test_members_begin_apart_and_the_global_state_stays(digit_rows):
    X, _, y, _ = digit_rows
    state = torch.get_rng_state()
    members = method(pretrained=1, max_epochs=1).fit(X, y).pretrained_.estimators_
    first = [member.classifier.weight for member in members]
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_count_once(digit_rows, monkeypatch):
    """The source gets what classes and samples weigh together, and must not weigh again."""
    X, _, y, _ = digit_rows
    X, y = X[10:], np.where(y[10:] < 3, "few", "many")
    sample_weight = 1.0 + np.arange(len(y)) % 3
    params = {"pretrained": 1, "max_epochs": 1, "class_weight": "balanced"}
    found, original = [], VanillaEnsembleClassifier.fit

    def spy(self, X, y, sample_weight=None):
        found.append((self.class_weight, y, sample_weight))
        return original(self, X, y, sample_weight)

    monkeypatch.setattr(VanillaEnsembleClassifier, "fit", spy)
    estimator = method(**params).fit(X, y, sample_weight=sample_weight)
    ((class_weight, labels, weight),) = found
    assert class_weight is None
    np.testing.assert_array_equal(labels, y)
    counts = {label: np.sum(y == label) for label in ("few", "many")}
    expected = sample_weight * [1 / counts[label] for label in y]
    np.testing.assert_allclose(weight, expected / expected.mean(), rtol=1e-5)
    assert list(estimator.pretrained_.classes_) == ["few", "many"]


@pytest.mark.usefixtures("untrained")
def test_images_and_their_box(digit_images):
    """The source sees X as the method does."""
    X, _, y, _ = digit_images
    X = (X * 255).astype(np.uint8)
    estimator = method(module="mlp", pretrained=1, clip_values=(0, 1)).fit(X[:64], y[:64])
    assert estimator.pretrained_.input_shape_ == (1, 8, 8)
    assert estimator.pretrained_.clip_values_ == (0, 1)


# --- in searches ---------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_searches(digit_rows, trainings, source, frozen):
    """They clone: only what is frozen stays fitted; else each fold has a source of its own."""
    X, _, y, _ = digit_rows
    before = weights(source)
    pretrained = FrozenEstimator(source) if frozen else source
    estimator = method(pretrained=pretrained, max_epochs=1)
    search = GridSearchCV(estimator, {"lr": [0.001, 0.01]}, cv=2, error_score="raise").fit(X, y)
    trained = ["DVERGE"] if frozen else ["Vanilla", "DVERGE"]
    assert [name for name, _ in trainings] == trained * 5
    assert (search.best_estimator_.pretrained_ is source) == frozen
    assert same(before, source)


def test_parameters_of_the_source(digit_rows):
    X, _, y, _ = digit_rows
    estimator = method(pretrained=make(max_epochs=1), max_epochs=1)
    copy = clone(estimator).set_params(pretrained__max_epochs=3)
    assert estimator.pretrained.max_epochs == 1
    assert len(copy.fit(X, y).pretrained_.history_) == 3


def test_search_over_the_source(digit_rows):
    X, _, y, _ = digit_rows
    grid = {"pretrained": [None, 1, make(max_epochs=2)]}
    search = GridSearchCV(method(max_epochs=1), grid, cv=2, error_score="raise").fit(X, y)
    assert len(set(search.cv_results_["mean_test_score"])) > 1


# --- what does not fit ---------------------------------------------------------------------


MISFITS = [
    ({"n_estimators": 4}, "member 3 is nothing here and MLP there.*same n_estimators"),
    ({"n_estimators": 2}, "member 2 is MLP here and nothing there"),
    ({"module_params": {"hidden_sizes": (8,)}}, r"\(16, 64\) here and \(8, 64\) there"),
    ({"module_params": {"hidden_sizes": (16, 16)}}, "member 0 has shape .*None"),
    ({"module": "lenet5", "module_params": None, "input_shape": (1, 8, 8)}, "LeNet5 there"),
]


@pytest.mark.parametrize("kind", ["unfitted", "fitted", "frozen"])
@pytest.mark.parametrize(("params", "match"), MISFITS, ids=str)
@feature_space
def test_other_architecture(rejects, digit_rows, cls, params, match, kind):
    """Told before anything is trained, the source included."""
    X, _, y, _ = digit_rows
    pretrained = make(**params)
    if kind != "unfitted":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: None)
            pretrained.fit(X, y)
    if kind == "frozen":
        pretrained = FrozenEstimator(pretrained)
    lenet = params.get("module") == "lenet5"
    ours = {"module": "mlp", "input_shape": (1, 8, 8)} if lenet else {}
    rejects(method(cls, pretrained=pretrained, **ours), X, y, f"(?s)pretrained.*{match}")


@feature_space
def test_other_classes(rejects, digit_rows, source, cls):
    X, _, y, _ = digit_rows
    estimator = method(cls, pretrained=source)
    for labels in (y + 1, y.astype(str)):
        rejects(estimator, X, labels, "pretrained knows the classes.*train it on the same")
    few = y < 7
    rejects(estimator, X[few], y[few], "pretrained")


def test_frozen_something_else(rejects, digit_rows):
    X, _, y, _ = digit_rows
    estimator = method(pretrained=FrozenEstimator(LogisticRegression()))
    rejects(estimator, X, y, "ensemble of this package; got LogisticRegression", TypeError)


# --- more training -------------------------------------------------------------------------


@feature_space
def test_partial_fit_pretrains_once(digit_rows, trainings, cls):
    X, _, y, _ = digit_rows
    start, name = AtStart(), cls.__name__.partition("Ens")[0]
    estimator = method(cls, pretrained=2, callbacks=[start])
    for _ in range(3):
        estimator.partial_fit(X, y)
    assert trainings == [("Vanilla", 2), (name, 1), (name, 1), (name, 1)]
    assert same(start.seen[0], estimator.pretrained_)
    assert not same(start.seen[1], estimator.pretrained_)


@feature_space
def test_warm_start_pretrains_once(digit_rows, trainings, cls):
    X, _, y, _ = digit_rows
    estimator = method(cls, pretrained=2, warm_start=True, max_epochs=1)
    estimator.fit(X, y)
    first = estimator.pretrained_
    estimator.fit(X, y)
    assert [name for name, _ in trainings].count("Vanilla") == 1
    assert estimator.pretrained_ is first
    assert len(estimator.history_) == 2
    estimator.set_params(warm_start=False).fit(X, y)
    assert [name for name, _ in trainings].count("Vanilla") == 2


@feature_space
@pytest.mark.parametrize("event", ["on_batch_end", "on_epoch_end"])
def test_interrupted_pretraining(digit_rows, cls, event):
    """What was learned so far is used, and training goes on from there."""
    X, _, y, _ = digit_rows
    stop = RaiseAt(event, KeyboardInterrupt, 2)
    source = make(callbacks=[stop], max_epochs=4)
    estimator = method(cls, pretrained=source, max_epochs=1)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, y)
    assert same_weights(estimator, estimator.pretrained_)
    proba = estimator.predict_proba(X)
    np.testing.assert_array_equal(proba, estimator.pretrained_.predict_proba(X))
    assert len(estimator.history_) == 0
    estimator.partial_fit(X, y)
    assert len(estimator.history_) == 1
    assert not same_weights(estimator, estimator.pretrained_)


def test_interrupted_before_the_source_was_built(digit_rows, monkeypatch):
    """Fresh weights then."""
    X, _, y, _ = digit_rows

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(VanillaEnsembleClassifier, "_initialize", interrupted)
    estimator = method(pretrained=1)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, y)
    assert np.isfinite(estimator.predict_proba(X)).all()
