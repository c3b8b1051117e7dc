"""A checkpoint is a saved model: it is loaded like one, as it was after its epoch."""

import os
from unittest.mock import patch

import numpy as np
import pytest
import torch
from file_parts import put_together, small, take_apart
from skorch.callbacks import Callback
from small_estimators import every_class
from torch import nn

import robust_ensembles
from robust_ensembles import (
    AdversarialEnsembleClassifier,
    FASTENEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import External
from robust_ensembles.exceptions import ModelFileError
from robust_ensembles.persistence import load
from robust_ensembles.state.folder import CheckpointFolder
from robust_ensembles.training import EnsembleNet, NoisyCopies


class Answers(Callback):
    """Remembers what the net answers after each epoch."""

    def __init__(self, X):
        self.X, self.seen = X, []

    def on_epoch_end(self, net, **kwargs):
        self.seen.append(net.predict_proba(self.X))


@pytest.fixture
def data(digit_rows):
    X, _, y, _ = digit_rows
    return X[:64], y[:64]


@pytest.fixture
def keep_all(monkeypatch):
    """No checkpoint is removed."""
    monkeypatch.setattr(CheckpointFolder, "_tidy", lambda *args: None)


def file_of(folder, epoch):
    (file,) = folder.glob(f"epoch-{epoch:05d}.*.safetensors")
    return file


def checkpointed(folder, data, cls=VanillaEnsembleClassifier, **params):
    return small(cls, checkpoint_dir=folder, **params).fit(*data)


@pytest.mark.usefixtures("keep_all")
@every_class
def test_every_epoch_of_every_estimator(cls, data, tmp_path):
    answers = Answers(data[0])
    fitted = checkpointed(tmp_path, data, cls, max_epochs=3, callbacks=[answers])
    for epoch in (1, 2, 3):
        again = load(file_of(tmp_path, epoch), callbacks=None)
        assert type(again) is cls
        assert again.n_iter_ == epoch
        np.testing.assert_array_equal(again.predict_proba(data[0]), answers.seen[epoch - 1])
    assert again.net_.seed == fitted.net_.seed
    assert repr(again) == repr(fitted.set_params(callbacks=None, checkpoint_dir=None))


def test_training_goes_on_as_from_a_saved_model(data, tmp_path):
    fitted = checkpointed(tmp_path / "run", data, max_epochs=2)
    fitted.save(tmp_path / "model", optimizer_state=True)
    models = [load(tmp_path / "model"), load(file_of(tmp_path / "run", 2))]
    first, second = (model.partial_fit(*data).predict_proba(data[0]) for model in models)
    np.testing.assert_array_equal(first, second)


def test_the_memory_of_a_method_stays_out(data, tmp_path):
    params = {"augmentation": NoisyCopies(0.1), "attack": None}
    fitted = checkpointed(tmp_path, data, FASTENEnsembleClassifier, **params)
    table, _, _ = take_apart(file_of(tmp_path, 1))
    assert "method.memory" in table
    again = load(tmp_path / "best.safetensors")
    np.testing.assert_array_equal(again.predict_proba(data[0]), fitted.predict_proba(data[0]))


@pytest.mark.usefixtures("keep_all")
def test_before_the_first_epoch(data, tmp_path):
    checkpointed(tmp_path, data)
    with pytest.raises(ModelFileError, match=r"without a finished epoch. fit .* goes on from it"):
        load(file_of(tmp_path, 0))


class Own(VanillaEnsembleClassifier):
    """A class of the user's."""


def test_what_only_code_can_make_is_omitted(data, tmp_path):
    """A fit is checkpointed whatever its parameters are."""

    class Slow(torch.optim.SGD):
        pass

    params = {
        "attack": External(function=lambda module, x, y: x, eps=0.1),
        "optimizer": Slow,
        "random_state": np.random.RandomState(0),
    }
    fitted = checkpointed(tmp_path / "a", data, AdversarialEnsembleClassifier, **params)
    with pytest.warns(UserWarning, match=r"attack.*External.*optimizer.*Slow.*random_state"):
        again = load(tmp_path / "a" / "best.safetensors")
    np.testing.assert_array_equal(again.predict_proba(data[0]), fitted.predict_proba(data[0]))


def test_estimators_that_no_file_can_name_are_resumed(data, tmp_path):
    fitted = checkpointed(tmp_path, data, Own)
    with pytest.raises(ModelFileError, match=r"a checkpoint of a .*Own, which is no class of"):
        load(tmp_path / "best.safetensors")
    with patch.object(EnsembleNet, "train_step", side_effect=AssertionError):
        again = checkpointed(tmp_path, data, Own)
    np.testing.assert_array_equal(again.predict_proba(data[0]), fitted.predict_proba(data[0]))


class Counting(nn.Module):
    """A network of the user's: a state beside tensors, and a name like a path."""

    def __init__(self, input_shape, n_classes):
        super().__init__()
        self.add_module("in/out", nn.Linear(input_shape[0], n_classes))
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        self.calls, self.last = 0, torch.zeros(1)

    def forward(self, x):
        if self.training:
            self.calls, self.last = self.calls + 1, x[0, :1].detach()
        return getattr(self, "in/out")(x.flatten(1))

    def get_extra_state(self):
        return {"calls": self.calls, "last": self.last, "of": ("a", 1)}

    def set_extra_state(self, state):
        assert state["of"] == ("a", 1)
        self.calls, self.last = state["calls"], state["last"]


def test_networks_with_more_than_numbers(data, tmp_path):
    expected = small(module=Counting, max_epochs=3).fit(*data)
    with patch.object(CheckpointFolder, "_tidy", lambda *args: None):
        checkpointed(tmp_path, data, module=Counting, max_epochs=3)
    file_of(tmp_path, 3).unlink()
    resumed = checkpointed(tmp_path, data, module=Counting, max_epochs=3)
    loaded = load(file_of(tmp_path, 3), module=Counting)
    resumed.save(tmp_path / "model")
    for one in (resumed, loaded, load(tmp_path / "model", module=Counting)):
        np.testing.assert_array_equal(one.predict_proba(data[0]), expected.predict_proba(data[0]))
        assert [member.calls for member in one.estimators_] == [6, 6, 6]
        assert all(
            torch.equal(a.last, b.last)
            for a, b in zip(one.estimators_, expected.estimators_, strict=True)
        )


def test_a_link_that_turns_to_another_file(data, tmp_path):
    """While the best checkpoint is read, a better one may come."""
    checkpointed(tmp_path, data, max_epochs=2)
    link = tmp_path / "best.safetensors"
    best = os.readlink(link)
    other = small(random_state=1).fit(*data)
    other.save(tmp_path / "other")
    read = robust_ensembles.persistence.files.read_tensors

    def turn_and_read(path, names):
        link.unlink()
        link.symlink_to("other")
        return read(path, names)

    with patch.object(robust_ensembles.persistence.files, "read_tensors", turn_and_read):
        again = load(link)
    np.testing.assert_array_equal(
        again.predict_proba(data[0]), load(tmp_path / best).predict_proba(data[0])
    )


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize("batch_size", [32, 2])
def test_an_epoch_adds_one_row(batch_size, data, tmp_path):
    """However many batches it has."""
    checkpointed(tmp_path, data, max_epochs=12, batch_size=batch_size)
    sizes = [file_of(tmp_path, epoch).stat().st_size for epoch in range(1, 13)]
    grown = np.diff(sizes)
    assert max(grown) < 500
    assert sizes[-1] < sizes[0] + 11 * 500


@pytest.mark.parametrize("change", [{"net": None}, {"fit": {}}, {"fit": []}, {"format": 2.5}])
def test_crafted_checkpoints(change, data, tmp_path):
    checkpointed(tmp_path, data)
    table, header, numbers = take_apart(file_of(tmp_path, 1))
    path = put_together(tmp_path / "crafted", table, {**header, **change}, numbers)
    with pytest.raises(ModelFileError):
        load(path)
