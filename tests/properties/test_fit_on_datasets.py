"""Fits on data sets that are read sample by sample."""

import os
import pickle
import signal
import tracemalloc

import numpy as np
import pytest
import torch
from small_estimators import RaiseAt, column, make, same_weights
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from robust_ensembles import (
    CEATEnsembleClassifier,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import FGSM, PGD
from robust_ensembles.inspection import robustness_report
from robust_ensembles.metrics import robust_accuracy_score, robust_scoring
from robust_ensembles.training import NoisyCopies

# on a machine with few cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Items(Dataset):
    """Any sequence of items."""

    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        return item() if callable(item) else item


def torch_mlp():
    """With dropout, which draws from the global generator."""
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 16),
        torch.nn.Dropout(0.3),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 10),
    )


def tensors(X, y):
    return TensorDataset(torch.from_numpy(X), torch.from_numpy(y))


def assert_same_fit(first, second):
    assert same_weights(first, second)
    assert first.history_[:, "train_loss"] == second.history_[:, "train_loss"]
    np.testing.assert_array_equal(first.classes_, second.classes_)
    for name in ("clip_values_", "input_shape_", "n_features_in_"):
        assert getattr(first, name) == getattr(second, name)


@pytest.mark.parametrize(
    ("cls", "params", "num_workers"),
    [
        (VanillaEnsembleClassifier, {"train_split": 0.2}, 0),
        (CEATEnsembleClassifier, {"augmentation": [NoisyCopies(0.05)]}, 2),
        (DVERGEEnsembleClassifier, {"pretrained": 1}, 2),
        (FASTENEnsembleClassifier, {"class_weight": "balanced"}, 0),
        (FASTENEnsembleClassifier, {"train_split": 0.2}, 2),
    ],
)
def test_same_as_the_array(cls, params, num_workers, data, children):
    X, y = data
    params = {"module": torch_mlp, **params}
    weight = np.linspace(0.5, 2, len(y))
    on_array, on_dataset = (make(cls, **params) for _ in range(2))
    on_array.fit(X, y, sample_weight=weight)
    on_dataset.set_params(num_workers=num_workers)
    on_dataset.fit(tensors(X, y), sample_weight=weight)
    assert_same_fit(on_dataset, on_array)
    if "train_split" in params:
        np.testing.assert_array_equal(
            column(on_dataset, "valid_loss"), column(on_array, "valid_loss")
        )
    assert not children()


def test_images_of_bytes(digit_images):
    """No pass over the data for the box; flat rows become images."""
    X, X_test, y, y_test = digit_images
    X, X_test = (np.round(255 * part).astype(np.uint8) for part in (X, X_test))
    expected = make(VanillaEnsembleClassifier, module="mlp").fit(X, y)
    asked = []
    dataset = Items([lambda i=i: asked.append(i) or (X[i], int(y[i])) for i in range(len(y))])
    clf = make(VanillaEnsembleClassifier, module="mlp", max_epochs=2).fit(dataset, y)
    assert_same_fit(clf, expected)
    assert len(asked) == 2 * 200 + 1  # two epochs, and the first sample to look at
    flat = tensors(X.reshape(200, -1), y)
    reshaped = make(VanillaEnsembleClassifier, module="mlp", input_shape=(1, 8, 8)).fit(flat)
    assert_same_fit(reshaped, expected)

    test = tensors(X_test, y_test)
    for name in ("predict", "predict_proba", "predict_log_proba", "member_predict_proba"):
        np.testing.assert_array_equal(getattr(clf, name)(test), getattr(clf, name)(X_test))
    assert clf.score(test) == clf.score(test, y_test) == clf.score(X_test, y_test)
    with pytest.raises(ValueError, match="was fitted with"):
        clf.predict(tensors(X_test.reshape(100, 1, 4, 16), y_test))
    with pytest.raises(TypeError, match="needs y"):
        clf.score(X_test)


def test_where_labels_come_from(data, reference):
    X, y = data
    names = np.array(list("abcdefghij"))[y]
    expected, named = reference(), make().fit(X, names)
    items = list(zip(X, y.tolist(), strict=True))
    same = [
        Items(items),
        Items(items, targets=y.tolist()),
        Items(items, targets=torch.from_numpy(y)),
        Items(items, targets=(9 - y).tolist(), target_transform=lambda label: 9 - label),
        Items(list(zip(X, torch.from_numpy(y), strict=True))),
        ConcatDataset([Items(items[:50]), Items(items[50:])]),
        Subset(tensors(np.concatenate([X[:30], X]), np.concatenate([y[:30], y])), range(30, 230)),
    ]
    for dataset in same:
        assert_same_fit(make().fit(dataset), expected)
    assert_same_fit(make().fit(Items(list(X)), names), named)
    assert_same_fit(make().fit(Items(items), names), named)
    assert_same_fit(make().fit(Items(list(zip(X, names, strict=True)))), named)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("dataset", "y", "error", "message"),
    [
        (Stream(), None, TypeError, "could not be reproduced"),
        (Items([]), None, ValueError, "is empty"),
        (Items([np.zeros(3), np.zeros(3)]), None, ValueError, "gives no labels"),
        (Items([np.zeros(3), np.zeros(3)]), [0, 1, 1], ValueError, "2 samples, and y 3 labels"),
        (Items([np.zeros(3), np.zeros(3)]), [0, 0], ValueError, "y holds 1 class"),
        (Items([np.zeros(3), np.zeros(3)]), [0.0, np.nan], ValueError, "NaN"),
        (Items([("text", 0)]), None, ValueError, "sample 0 of the data set is str"),
        (Items([(np.array([np.inf, 0]), 0)]), None, ValueError, "infinity"),
        (Items([(np.zeros((8, 8)), 0)]), None, ValueError, "add a channel axis"),
        (
            Items([(np.zeros(3), 0), (np.zeros(3), 1)], targets=[1, 0]),
            None,
            ValueError,
            "give the right labels",
        ),
        (
            Items([(np.zeros(3), 0), (np.zeros(4), 1)]),
            None,
            ValueError,
            r"sample 1 has shape \(4,\), the first one \(3,\)",
        ),
    ],
)
def test_refused_before_training(dataset, y, error, message):
    clf = make()
    with pytest.raises(error, match=message):
        clf.fit(dataset, y)
    assert not hasattr(clf, "net_")


def test_sample_outside_an_explicit_box(data):
    X, y = data
    X = X.copy()
    X[150, 3] = 1.5
    clf = make(clip_values=(0, 1))
    with pytest.raises(ValueError, match=r"sample 150 spans \[0, 1\.5\], outside clip_values"):
        clf.fit(tensors(X, y))
    assert clf.n_iter_ == 0
    auto = make().fit(tensors(X, y))
    assert auto.clip_values_ is None
    with pytest.raises(ValueError, match="sample 150 spans"):
        make(warm_start=True).fit(X[:100], y[:100]).set_params(max_epochs=1).fit(tensors(X, y))


def test_training_goes_on(data):
    X, y = data
    on_array, on_dataset = (make(FASTENEnsembleClassifier, warm_start=True) for _ in range(2))
    for _ in range(2):
        on_array.fit(X, y)
        on_dataset.fit(tensors(X, y))
    on_array.partial_fit(X, y)
    on_dataset.partial_fit(tensors(X, y))
    assert on_dataset.n_iter_ == 5
    assert_same_fit(on_dataset, on_array)


def test_checkpoints(data, reference, tmp_path):
    X, y = data
    settings = {"max_epochs": 4, "checkpoint_dir": tmp_path}
    expected = reference(max_epochs=4)
    reads = iter(range(900))

    def seventh():
        if next(reads) == 3:  # after a pass for the box, and two epochs
            raise RuntimeError("on purpose")
        return X[7]

    dataset = Items([*X[:7], seventh, *X[8:]])
    with pytest.raises(RuntimeError, match="on purpose"):
        make(**settings).fit(dataset, y)
    resumed = make(**settings, num_workers=2)
    with pytest.raises(ValueError, match="X differs"):
        resumed.fit(tensors(X[::-1].copy(), y))
    with pytest.raises(ValueError, match="y differs"):
        resumed.fit(tensors(X, y[::-1].copy()))
    with pytest.raises(ValueError, match="X differs"):
        resumed.fit(X, y)  # the same, but who can tell without reading all of it
    resumed.fit(tensors(X, y))
    assert_same_fit(resumed, expected)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_interrupted(error, data, children):
    X, y = data
    clf = make(num_workers=2, callbacks=[RaiseAt("on_batch_end", error, 9)])
    with pytest.raises(error):
        clf.fit(tensors(X, y))
    assert not children()
    assert clf.n_iter_ == 1
    assert clf.predict(tensors(X, y)).shape == (200,)


def test_process_that_dies_in_the_second_epoch(data, tmp_path, children):
    X, y = data

    def die():
        path = tmp_path / "seen"
        if path.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        path.touch()
        return X[7]

    dataset = Items([*X[:7], die, *X[8:]])
    clf = make(num_workers=1, max_epochs=5, clip_values=(0, 1))
    with pytest.raises(RuntimeError, match=r"data has died.*trained so far is kept"):
        clf.fit(dataset, y)
    assert clf.n_iter_ == 1
    assert 0 <= clf.score(X, y) <= 1
    assert not children()


def test_pickle_holds_no_data(data):
    X, y = data
    dataset = Items([lambda i=i: (X[i], y[i]) for i in range(len(y))])  # cannot be pickled
    clf = make(FASTENEnsembleClassifier, warm_start=True).fit(dataset, y)
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(again.predict(X), clf.predict(X))


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_memory_maps_are_not_copied(dtype, tmp_path, data):
    """Neither training nor predictions hold the whole of X."""
    _, y = data
    draw = np.random.default_rng(0)
    shape = (200, 1, 160, 160)
    X = (255 * draw.random(shape)).astype(dtype) if dtype == np.uint8 else draw.random(shape)
    np.save(tmp_path / "X.npy", X.astype(dtype))
    size = X.astype(dtype).nbytes
    del X
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    clf = make(module="mlp", n_estimators=2, batch_size=8, max_epochs=1)
    clf.set_params(module__hidden_sizes=(2,))
    tracemalloc.start()
    try:
        clf.fit(mapped, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 4


def test_attacks_want_arrays(data, reference):
    X, y = data
    clf, dataset = reference(), tensors(X, y)
    for ask in (
        lambda: FGSM().generate(clf, dataset, y),
        lambda: robust_accuracy_score(clf, dataset, y, attack=PGD(eps=0.1)),
        lambda: robust_scoring("fgsm")["worst"](clf, dataset, y),
        lambda: robust_scoring("fgsm")["clean"](clf, dataset, y),
        lambda: robustness_report({"clf": clf}, dataset, y, [FGSM()]),
        lambda: FGSM().generate(clf.as_module(), dataset, y),
    ):
        with pytest.raises(TypeError, match="take arrays"):
            ask()
