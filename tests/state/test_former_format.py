"""Files of format 1 are read: models predict, checkpoints resume. See the README in the folder."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from file_parts import put_together, take_apart
from skorch.callbacks import EarlyStopping, LRScheduler

from robust_ensembles import FASTENEnsembleClassifier, VanillaEnsembleClassifier
from robust_ensembles.datasets import load_digits_images
from robust_ensembles.exceptions import ModelFileError
from robust_ensembles.persistence import load
from robust_ensembles.training import EnsembleNet, NoisyCopies

FOLDER = Path(__file__).parent / "former_format"
SMALL = {
    "n_estimators": 2,
    "module_params": {"hidden_sizes": (4,)},
    "lr": 0.01,
    "batch_size": 16,
    "device": "cpu",
    "random_state": 0,
}
SGD = {"optimizer": "sgd", "optimizer_params": {"momentum": 0.9}}
MODELS = {"vanilla": 48, "vanilla_callbacks": 16, "cldl": 16, "dverge": 16, "fasten": 16}


@pytest.fixture(scope="module")
def data():
    X, y = load_digits_images()
    return X.reshape(len(X), 64), y


@pytest.fixture(scope="module")
def expected():
    return np.load(FOLDER / "expected.npz")


def close(actual, expected):
    """The same on another machine, too."""
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def load_quietly(path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*could not hold callbacks")
        return load(path)


@pytest.mark.parametrize("name", MODELS)
def test_models(name, data, expected):
    X, y = data
    clf = load_quietly(FOLDER / f"{name}.safetensors")
    close(clf.predict_log_proba(X[48:64]), expected[f"{name}.proba"])
    assert clf.history_[:, "train_loss"] == expected[f"{name}.train_loss"].tolist()
    assert clf.batch_size_ == MODELS[name]
    assert clf.partial_fit(X[:48], y[:48]).n_iter_ == len(expected[f"{name}.train_loss"]) + 1


def test_the_optimizer_goes_on(data, expected):
    X, y = data
    clf = load(FOLDER / "cldl.safetensors").partial_fit(X[:48], y[:48])
    close(clf.predict_log_proba(X[48:64]), expected["cldl.after"])


def test_a_model_comes_into_the_present_format(data, expected, tmp_path):
    clf = load(FOLDER / "cldl.safetensors")
    clf.save(tmp_path / "again.safetensors")
    again = load(tmp_path / "again.safetensors")
    close(again.predict_log_proba(data[0][48:64]), expected["cldl.proba"])
    assert again.history_ == clf.history_


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extra": 1}, "other fields"),
        ({"history": {}}, "something else than rows"),
        ({"history": [1]}, "something else than rows"),
        ({"history": [{"batches": 3}]}, "."),
        ({"history": [{"batches": [{"dict": [["train_batch_size", 0]]}]}]}, "its batch_size"),
        ({"kind": "os.system"}, "none that a file may name"),
        ({"seed": -1}, "its seed"),
        ({"params": {"checkpoint_dir": "elsewhere"}}, "no parameters"),
    ],
)
def test_crafted_headers(change, reason, tmp_path):
    table, header, data = take_apart(FOLDER / "vanilla.safetensors")
    path = put_together(tmp_path / "crafted", table, {**header, **change}, data)
    with pytest.raises(ModelFileError, match=reason):
        load(path)


FITS = {
    "scheduled": (
        lambda: VanillaEnsembleClassifier(
            **SMALL,
            **SGD,
            max_epochs=3,
            train_split=0.2,
            lr_milestones=(2,),
            callbacks=[LRScheduler("StepLR", step_size=1, gamma=0.5)],
        ),
        3,
    ),
    "stopped": (
        lambda: VanillaEnsembleClassifier(
            **SMALL,
            max_epochs=20,
            train_split=0.2,
            callbacks=[EarlyStopping(patience=1, threshold=0.5, sink=print)],
        ),
        0,
    ),
    "fasten": (
        lambda: FASTENEnsembleClassifier(
            **SMALL, **SGD, max_epochs=3, augmentation=NoisyCopies(0.1)
        ),
        6,
    ),
    "begun": (
        lambda: VanillaEnsembleClassifier(**{**SMALL, "random_state": None}, max_epochs=1),
        3,
    ),
}


@pytest.mark.parametrize("name", FITS)
def test_checkpoints(name, data, expected, tmp_path, monkeypatch):
    """With one epoch to go (FASTEN's start is trained again), none, and no epoch yet."""
    steps, step = [], EnsembleNet.train_step

    def counted(net, *args, **kwargs):
        steps.append(1)
        return step(net, *args, **kwargs)

    monkeypatch.setattr(EnsembleNet, "train_step", counted)
    X, y = data
    shutil.copytree(FOLDER / name, tmp_path / name)
    make, n_steps = FITS[name]
    clf = make().set_params(checkpoint_dir=tmp_path / name).fit(X[:48], y[:48])
    assert len(steps) == n_steps
    close(clf.predict_log_proba(X[48:64]), expected[f"{name}.checkpoint.proba"])
    close(clf.history_[:, "train_loss"], expected[f"{name}.checkpoint.train_loss"])
    if n_steps:  # the last epoch is in the present format, and the best one
        best = load_quietly(tmp_path / name / "best.safetensors")
        np.testing.assert_array_equal(best.predict_proba(X), clf.predict_proba(X))


def test_a_former_checkpoint_of_another_fit(data, tmp_path):
    X, y = data
    shutil.copytree(FOLDER / "fasten", tmp_path / "fasten")
    other = FITS["fasten"][0]().set_params(checkpoint_dir=tmp_path / "fasten", lr=0.02)
    with pytest.raises(ValueError, match=r"lr is 0\.02 here and 0\.01 there"):
        other.fit(X[:48], y[:48])
