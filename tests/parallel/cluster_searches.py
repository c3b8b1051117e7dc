"""A search on a cluster, and callbacks that kill the worker they run on."""

from __future__ import annotations

import os
import signal

import numpy as np
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback

from robust_ensembles import CEATEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.metrics import robust_scoring

GRID = {"mu": [0.0, 1.0, 5.0], "lr": [0.003, 0.03]}


class KillWorker(Callback):
    """Kills its process after the first epoch, unless that is the main one.

    Parameters
    ----------
    flag : path-like or None
        File that says that it was done; None does it every time.
    main : int, default=None
        The process that lives on, by default this one.
    """

    def __init__(self, flag=None, main=None):
        self.flag = flag
        self.main = os.getpid() if main is None else main

    def on_epoch_end(self, net, **kwargs):
        if os.getpid() == self.main:
            return
        if self.flag is not None:
            try:
                os.close(os.open(self.flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
        os.kill(os.getpid(), signal.SIGKILL)


def make_search(callback=None, **params):
    estimator = CEATEnsembleClassifier(
        module_params={"hidden_sizes": (16,)},
        attack=PGD(eps=0.05, n_steps=1),
        max_epochs=2,
        batch_size=32,
        device=params.pop("device", "cpu"),
        callbacks=None if callback is None else [callback],
        random_state=0,
    )
    settings = {
        "cv": 2,
        "scoring": robust_scoring("fgsm", "pgd20", eps=0.08),
        "refit": "worst",
        "error_score": "raise",
    }
    return GridSearchCV(estimator, GRID, **{**settings, **params})


def assert_same_results(search, expected):
    """All of `cv_results_` but the times, to the bit."""
    assert search.cv_results_.keys() == expected.cv_results_.keys()
    columns = [name for name in expected.cv_results_ if not name.endswith("_time")]
    assert len(columns) == len(expected.cv_results_) - 4
    for name in columns:
        np.testing.assert_array_equal(search.cv_results_[name], expected.cv_results_[name])
    assert search.best_params_ == expected.best_params_
    assert search.best_score_ == expected.best_score_
