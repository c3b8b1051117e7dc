"""Estimators that train in a fraction of a second."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    CollaborativeCalibration,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    LAFEDEnsembleClassifier,
    TRSEnsembleClassifier,
    VanillaEnsembleClassifier,
    _registry,
)
from robust_ensembles.attacks import PGD

CLASSES = [method.cls for method in _registry.methods().values()]
ADVERSARIAL = [AdversarialEnsembleClassifier, CEATEnsembleClassifier]
DIVERSE = [c for c in CLASSES if c not in (*ADVERSARIAL, VanillaEnsembleClassifier)]
FEATURE_SPACE = [DVERGEEnsembleClassifier, LAFEDEnsembleClassifier, FASTENEnsembleClassifier]
# together they have every part of a fit: an auxiliary module and second derivatives; a memory,
# images made in feature space, members trained before and, by make_full, an attack
COVERING = [VanillaEnsembleClassifier, CLDLEnsembleClassifier, FASTENEnsembleClassifier]


def covered(classes):
    """The covering ones always, the others with ``-m slow``, to parametrize with."""
    return [c if c in COVERING else pytest.param(c, marks=pytest.mark.slow) for c in classes]


every_class = pytest.mark.parametrize("cls", covered(CLASSES))


def make(cls=VanillaEnsembleClassifier, **params):
    """An MLP of 16 units, 2 epochs, and a weak attack where the method has one."""
    settings = {
        "module_params": {"hidden_sizes": (16,)} if "module" not in params else None,
        "max_epochs": 2,
        "batch_size": 32,
        "lr": 0.01,
        "device": "cpu",
        "random_state": 0,
    }
    if cls in ADVERSARIAL:
        settings["attack"] = PGD(eps=0.01, n_steps=2)
    if cls is TRSEnsembleClassifier:
        # 20 is for networks that fit CIFAR-10; it would rule the loss of so small a one
        settings["coeff"] = 0.5
    return cls(**{**settings, **params})


def make_full(cls, **params):
    """The same; FASTEN with all that may stand beside a method."""
    if cls is FASTENEnsembleClassifier:
        beside = {"attack": PGD(eps=0.01, n_steps=2), "calibration": CollaborativeCalibration()}
        params = {**beside, **params}
    return make(cls, **params)


def weights(estimator):
    """Everything that the members remember, buffers included."""
    state = estimator.module_.state_dict()
    return {name: tensor.clone() for name, tensor in state.items()}


def same_weights(first, second):
    a, b = weights(first), weights(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def column(estimator, name):
    return np.array(estimator.history_[:, name])


class RaiseAt(Callback):
    """Raises at a certain call of an event."""

    def __init__(self, event, error, call):
        self.event, self.error, self.call = event, error, call
        self.calls_ = 0

    def _count(self, event):
        self.calls_ += event == self.event
        if event == self.event and self.calls_ == self.call:
            raise self.error("on purpose")

    def on_train_begin(self, net, **kwargs):
        self._count("on_train_begin")

    def on_batch_end(self, net, **kwargs):
        self._count("on_batch_end")

    def on_epoch_end(self, net, **kwargs):
        self._count("on_epoch_end")
