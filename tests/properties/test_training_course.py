"""How a fit runs: epochs, weights of samples, validation, callbacks, history."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Callback, Checkpoint, EarlyStopping, EpochScoring, LRScheduler
from skorch.dataset import ValidSplit
from small_estimators import RaiseAt, column, every_class, make, make_full, same_weights, weights

from robust_ensembles import TRSEnsembleClassifier

TERMS = {
    "VanillaEnsembleClassifier": {"cross_entropy"},
    "AdversarialEnsembleClassifier": {"adversarial_cross_entropy"},
    "CLDLEnsembleClassifier": {"soft_label_divergence", "label_diversity", "gradient_diversity"},
    "ADPEnsembleClassifier": {"cross_entropy", "entropy", "log_determinant"},
    "GALEnsembleClassifier": {"cross_entropy", "gradient_alignment"},
    "GPMREnsembleClassifier": {"cross_entropy", "direction", "magnitude"},
    "DVERGEEnsembleClassifier": {"distilled_cross_entropy"},
    "TRSEnsembleClassifier": {"cross_entropy", "similarity", "smoothness"},
    "LAFEDEnsembleClassifier": {"smoothed_cross_entropy"},
    "FASTENEnsembleClassifier": {
        *("perturbed_cross_entropy", "intra_model", "inter_model"),
        *("adversarial_cross_entropy", "natural_distance", "adversarial_distance"),
    },
    "NCEnEnsembleClassifier": {"cross_entropy", "direction", "magnitude"},
    "CEATEnsembleClassifier": {
        "adversarial_cross_entropy",
        "natural_distance",
        "adversarial_distance",
    },
}


@every_class
def test_history(digit_rows, cls):
    X, _, y, _ = digit_rows
    estimator = make_full(cls).fit(X, y)
    columns = {name for name in estimator.history_[-1] if name.startswith("train_")}
    columns -= {"train_loss", "train_loss_best", "train_batch_count"}
    names = {name.removeprefix("train_") for name in columns}
    assert names == TERMS.get(cls.__name__, names)
    terms = {name: column(estimator, f"train_{name}") for name in names}
    np.testing.assert_allclose(column(estimator, "train_loss"), sum(terms.values()), rtol=1e-6)
    assert all((values != 0).all() for values in terms.values())
    assert column(estimator, "epoch").tolist() == [1, 2]
    rows = estimator.history_[:, "batches", :, "train_batch_size"]
    assert [sum(row) for row in rows] == [200, 200]
    assert not any(name.startswith("valid") for name in estimator.history_[-1])


def test_each_fit_starts_anew(digit_rows):
    X, _, y, _ = digit_rows
    estimator = make().fit(X, y)
    assert estimator.fit(X, y).n_iter_ == 2
    assert same_weights(estimator, make().fit(X, y))


@every_class
def test_epochs_add_up(digit_rows, cls):
    """3 at once, 1 + 2 by warm_start, and 3 by partial_fit are the same to the bit."""
    X, _, y, _ = digit_rows
    # TRS's schedule is laid out over max_epochs
    options = {"delta_final": 0.01} if cls is TRSEnsembleClassifier else {}
    expected = make_full(cls, max_epochs=3, **options).fit(X, y)
    warm = make_full(cls, max_epochs=1, warm_start=True, **options).fit(X, y)
    assert warm.n_iter_ == 1
    warm.set_params(max_epochs=2).fit(X, y)
    # FASTEN's memory outlives a call only where training is meant to go on
    partial = make_full(cls, max_epochs=77, warm_start=True, **options)
    for epoch in (1, 2, 3):
        assert partial.partial_fit(X, y).n_iter_ == epoch
    assert warm.n_iter_ == partial.n_iter_ == expected.n_iter_ == 3
    assert same_weights(warm, expected)
    assert same_weights(partial, expected)


def test_partial_fit_with_classes(digit_rows):
    X, X_test, y, y_test = digit_rows
    low, high = y < 5, y >= 5
    estimator = make(batch_size=8).partial_fit(X[low], y[low], classes=range(10))
    assert estimator.predict_proba(X_test).shape == (100, 10)
    for _ in range(5):
        estimator.partial_fit(X[high], y[high]).partial_fit(X[low], y[low])
    assert estimator.score(X_test, y_test) > 0.5
    with pytest.raises(ValueError, match="differs from the first call"):
        estimator.partial_fit(X, y, classes=range(11))


@every_class
def test_weight_zero_is_absence(digit_rows, cls):
    X, X_test, y, y_test = digit_rows
    for options, weight in [
        ({}, (y != 3).astype(float)),
        ({"class_weight": {3: 0.0}}, np.ones(len(y))),
    ]:
        estimator = make_full(cls, max_epochs=8, **options).fit(X, y, sample_weight=weight)
        predicted = estimator.predict(X_test)
        assert not (predicted == 3).any()
        assert (predicted == y_test)[y_test != 3].mean() > 0.5


@every_class
def test_scale_of_weights_does_not_matter(digit_rows, cls):
    X, _, y, _ = digit_rows
    plain = make_full(cls, max_epochs=1).fit(X, y)
    weighted = make_full(cls, max_epochs=1).fit(X, y, sample_weight=np.full(200, 7.0))
    for name, expected in weights(plain).items():
        torch.testing.assert_close(weights(weighted)[name], expected, rtol=1e-4, atol=1e-5)


def test_integer_weights_are_copies(digit_rows):
    """In one batch of everything; CE only, so nothing is random but the order."""
    X, _, y, _ = digit_rows
    weight = np.arange(200) % 3
    settings = {"batch_size": 1000, "optimizer": "sgd", "lr": 0.5, "max_epochs": 3}
    weighted = make(**settings).fit(X, y, sample_weight=weight)
    copied = make(**settings).fit(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    for name, expected in weights(copied).items():
        torch.testing.assert_close(weights(weighted)[name], expected, rtol=1e-4, atol=1e-5)


def test_balanced_classes(digit_rows):
    X, X_test, y, y_test = digit_rows
    rare = np.flatnonzero(y == 3)[3:]
    X, y = np.delete(X, rare, axis=0), np.delete(y, rare)
    share = {}
    for class_weight in (None, "balanced"):
        estimator = make(max_epochs=15, class_weight=class_weight).fit(X, y)
        share[class_weight] = estimator.predict_proba(X_test[y_test == 3])[:, 3].mean()
    assert share["balanced"] > share[None] + 0.1
    with pytest.raises(ValueError, match="balanced"):
        make(class_weight="balanced").partial_fit(X, y)


@pytest.mark.parametrize("split", [0.25, ValidSplit(4, stratified=True)])
def test_validation(digit_rows, split):
    X, _, y, _ = digit_rows
    estimator = make(train_split=split, max_epochs=4).fit(X, y)
    batches = estimator.history_[-1, "batches"]
    assert sum(batch.get("train_batch_size", 0) for batch in batches) == 150
    assert sum(batch.get("valid_batch_size", 0) for batch in batches) == 50
    assert column(estimator, "valid_loss")[-1] < column(estimator, "valid_loss")[0]
    accuracy = column(estimator, "valid_acc")[-1]
    assert 0.4 < accuracy < 1
    assert accuracy * 50 == pytest.approx(round(accuracy * 50), abs=1e-4)  # of 50 samples


def test_early_stopping_is_silent(digit_rows):
    X, _, y, _ = digit_rows
    stopping = EarlyStopping("train_loss", patience=2, threshold=1e9, sink=lambda _: None)
    estimator = make(max_epochs=20, callbacks=[stopping], warm_start=True).fit(X, y)
    assert estimator.n_iter_ < 5
    before = estimator.n_iter_
    estimator.fit(X, y)  # and its patience is no excuse for the next interrupt
    assert before < estimator.n_iter_ < 10


def test_interrupt_beside_early_stopping(digit_rows):
    X, _, y, _ = digit_rows
    patient = EarlyStopping("train_loss", patience=5)
    interrupt = RaiseAt("on_batch_end", KeyboardInterrupt, call=9)
    with pytest.raises(KeyboardInterrupt):
        make(callbacks=[patient, interrupt]).fit(X, y)


@pytest.mark.parametrize("event", ["on_batch_end", "on_epoch_end"])
def test_interrupt(digit_rows, event):
    """200 / 32 makes 7 batches: call 9 of the first event, and 2 of the second, is in epoch 2."""
    X, X_test, y, _ = digit_rows
    interrupt = RaiseAt(event, KeyboardInterrupt, call=9 if event == "on_batch_end" else 2)
    estimator = make(max_epochs=5, callbacks=[interrupt], warm_start=True)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, y)
    finished = 1 if event == "on_batch_end" else 2
    assert estimator.n_iter_ == finished
    assert np.isfinite(estimator.predict_proba(X_test)).all()
    assert not estimator.module_.training
    assert estimator.fit(X, y).n_iter_ == finished + 5


def test_callbacks_are_used_as_given(digit_rows, tmp_path):
    X, _, y, _ = digit_rows
    counter = RaiseAt("on_epoch_end", RuntimeError, call=-1)
    scores = EpochScoring("accuracy", name="train_accuracy", on_train=True, lower_is_better=False)
    checkpoint = Checkpoint(monitor="train_accuracy_best", dirname=tmp_path, f_pickle=None)
    schedule = LRScheduler("StepLR", step_size=1, gamma=0.5)
    estimator = make(max_epochs=3, callbacks=[counter, scores, checkpoint, schedule]).fit(X, y)
    assert counter.calls_ == 3
    assert (tmp_path / "params.pt").exists()
    assert [g["lr"] for g in estimator.net_.optimizer_.param_groups] == [0.01 / 8] * 3
    expected = estimator.score(X, y)
    assert column(estimator, "train_accuracy")[-1] == pytest.approx(expected)
    assert clone(estimator).callbacks[0] is not counter


@pytest.mark.parametrize("monitor", ["valid_loss_best", "train_loss_best", "valid_acc_best"])
def test_checkpoint_of_the_best_epoch(digit_rows, tmp_path, monitor):
    X, _, y, _ = digit_rows
    checkpoint = Checkpoint(monitor=monitor, dirname=tmp_path, f_pickle=None)
    estimator = make(max_epochs=3, train_split=0.2, callbacks=[checkpoint]).fit(X, y)
    assert column(estimator, monitor).any()
    assert (tmp_path / "params.pt").exists()


def test_accuracy_while_training(digit_rows):
    """A cached prediction would be of another mode, or of other samples."""
    X, _, y, _ = digit_rows
    callbacks = [
        EpochScoring("accuracy", name="on_train", on_train=True, lower_is_better=False),
        EpochScoring("accuracy", name="on_valid", lower_is_better=False),
    ]
    estimator = make(max_epochs=3, train_split=0.2, callbacks=callbacks).fit(X, y)
    np.testing.assert_allclose(column(estimator, "on_valid"), column(estimator, "valid_acc"))
    assert column(estimator, "on_train")[-1] > 0.5


@pytest.mark.parametrize("by", ["fit", "partial_fit"])
def test_lr_milestones(digit_rows, by):
    X, _, y, _ = digit_rows
    lrs = []

    class Record(Callback):
        def on_epoch_end(self, net, **kwargs):
            lrs.append(net.optimizer_.param_groups[-1]["lr"])

    estimator = make(max_epochs=4, lr=1.0, lr_milestones=[1, 3], callbacks=[Record()])
    if by == "fit":
        estimator.fit(X, y)
    else:
        for _ in range(4):
            estimator.partial_fit(X, y)
    np.testing.assert_allclose(lrs, [1, 0.1, 0.1, 0.01])


def test_milestone_once_after_an_interrupt(digit_rows):
    X, _, y, _ = digit_rows
    interrupt = RaiseAt("on_batch_end", KeyboardInterrupt, call=9)
    estimator = make(lr=1.0, lr_milestones=(1,), callbacks=[interrupt], warm_start=True)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, y)
    estimator.fit(X, y)
    assert estimator.net_.optimizer_.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("verbose", [0, 1])
def test_prints_only_if_verbose(digit_rows, verbose, capsys):
    X, _, y, _ = digit_rows
    make(verbose=verbose).fit(X, y)
    assert bool(capsys.readouterr().out) == bool(verbose)
