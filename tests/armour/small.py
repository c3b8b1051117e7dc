"""Estimators that train in some milliseconds, on data that fit."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
from strange import N_FEATURES

import robust_ensembles
from robust_ensembles import (
    ADPEnsembleClassifier,
    TRSEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.estimators.base import BaseEnsembleClassifier
from robust_ensembles.training import EnsembleNet

CLASSES = [
    kind
    for name in robust_ensembles.__all__
    if isinstance(kind := getattr(robust_ensembles, name), type)
    and issubclass(kind, BaseEnsembleClassifier)
]


def make(cls=VanillaEnsembleClassifier, **params):
    """Members with three hidden units, one epoch."""
    settings = {"max_epochs": 1, "batch_size": 8, "device": "cpu", "random_state": 0}
    if "module" not in params:
        settings |= {"module": "mlp", "module_params": {"hidden_sizes": (3,)}}
    if cls is ADPEnsembleClassifier:
        settings["n_estimators"] = 2
    if "attack" in cls.__dataclass_fields__:
        settings["attack"] = PGD(n_steps=1)
    if cls is TRSEnsembleClassifier:
        settings["n_inner_steps"] = 1
    return cls(**{**settings, **params})


def rows(n=9, dtype=np.float32):
    """X of shape (n, 4) in [0, 1] and y of three classes."""
    X = np.random.default_rng(0).random((n, N_FEATURES)).astype(dtype)
    return X, np.arange(n) % 3


def images(n=9):
    """The same as images of 1 x 4 x 4 pixels."""
    X = np.random.default_rng(0).random((n, 1, 4, 4)).astype(np.float32)
    return X, np.arange(n) % 3


@functools.cache
def fitted(kind="rows"):
    """An estimator that is fitted once: on rows, on images, with labels that are strings."""
    if kind == "images":
        return make(n_estimators=2).fit(*images())
    X, y = rows()
    if kind == "strings":
        return make(n_estimators=2, clip_values=(0, 1)).fit(X, np.array(["a", "b", "c"])[y])
    seed = int(kind == "other")
    estimator = make(n_estimators=2, clip_values=None, random_state=seed).fit(X, y)
    if kind == "steep":  # its outputs overflow for large X
        for parameter in estimator.module_.parameters():
            parameter.data *= 1e4
    return estimator


@contextmanager
def counted_steps():
    """Give a list that gets an entry for each training step."""
    steps = []
    step = EnsembleNet.train_step

    def counted(self, *args, **kwargs):
        steps.append(1)
        return step(self, *args, **kwargs)

    with patch.object(EnsembleNet, "train_step", counted):
        yield steps
