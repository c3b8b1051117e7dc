"""Trainings of several processes that are refused, interrupted or resumed."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import threading
from pathlib import Path

import numpy as np
import torch.distributed as dist
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import Subset
from trainings import digits, make, outcome, perceptron, same, train_all

from robust_ensembles import (
    CLDLEnsembleClassifier,
    FASTENEnsembleClassifier,
    VanillaEnsembleClassifier,
)


class OwnNorm(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x) + 1


def own_norm(n_classes):
    return nn.Sequential(nn.Flatten(), OwnNorm(64), nn.Linear(64, n_classes))


def dropping(n_classes):
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, n_classes))


def plain(**params):
    params = {"module": perceptron, "max_epochs": 2, **params}
    return make(VanillaEnsembleClassifier, **params)


def by_itself(estimator, data):
    """Fit in a thread, which no other process waits for."""
    thread = threading.Thread(target=estimator.fit, args=data)
    thread.start()
    thread.join()
    return estimator


def own_half(dataset, y=None, groups=None):
    rank = dist.get_rank()
    indices = np.arange(len(dataset))
    return Subset(dataset, indices[rank::2]), Subset(dataset, indices[1 - rank :: 2])


def refused(folder):
    """The errors of fits that cannot be shared out, by what is wrong."""
    rank = dist.get_rank()
    X, y = digits(60)
    last = np.arange(60) == 59
    trained_apart = by_itself(plain(warm_start=True, random_state=rank), (X, y))
    trained_apart.random_state = 0
    taken = Path(folder) / "a file"
    taken.touch()
    trials = {
        "X": (plain(), (X * (1 - 0.5 * (last & rank))[:, None, None, None], y)),
        "y": (plain(), (X, np.where(last & rank, (y + 1) % 10, y))),
        "sample_weight": (plain(), (X, y, 1.0 + (last & rank))),
        "max_epochs": (plain(max_epochs=2 + rank), (X, y)),
        "checkpoint_dir": (plain(checkpoint_dir=folder if rank else None), (X, y)),
        "batch_size": (plain(batch_size="auto"), (X, y)),
        "vmap": (plain(accelerate="vmap"), (X, y)),
        "OwnNorm": (plain(module=own_norm), (X, y)),
        "train_split": (plain(train_split=own_half), (X, y)),
        "fitted before": (trained_apart, (X, y)),
        "cannot be written": (plain(checkpoint_dir=taken), (X, y)),
    }
    errors = {}
    for name, (estimator, data) in trials.items():
        try:
            estimator.fit(*data)
        except (ValueError, OSError) as error:
            errors[name] = f"{type(error).__name__}: {error}"
    return errors


class AtBatch(Callback):
    """Does something at a batch, counted over the whole training, on one process or on all."""

    def __init__(self, number, rank=None):
        self.number, self.rank = number, rank

    def doing(self, act):
        self.act_ = act  # with this name it is no parameter
        return self

    def on_train_begin(self, net, **kwargs):
        self.seen_ = 0

    def on_batch_begin(self, net, **kwargs):
        self.seen_ += 1
        if self.seen_ == self.number and self.rank in (None, dist.get_rank()):
            self.act_()


def nothing():
    pass


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def fail():
    raise LookupError("on purpose")


def stopped(estimator, data, error):
    """The number of batches begun and of epochs finished of a fit that ends with an error."""
    try:
        estimator.fit(*data)
    except error:
        return estimator.callbacks[0].seen_, len(estimator.history_)
    raise AssertionError("the fit went on")


def resumed(folder):
    """How fits go on that were interrupted in the third epoch; whether each process wrote."""
    data = digits(111)
    own = Path(folder) / str(dist.get_rank())
    courses = {}
    for cls in (CLDLEnsembleClassifier, FASTENEnsembleClassifier):
        expected = outcome(make(cls, max_epochs=3).fit(*data))
        settings = {"max_epochs": 3, "checkpoint_dir": own / cls.__name__}
        interrupted = make(cls, **settings, callbacks=[AtBatch(10).doing(interrupt)])
        where = stopped(interrupted, data, KeyboardInterrupt)
        again = make(cls, **settings, callbacks=[AtBatch(10).doing(nothing)]).fit(*data)
        courses[cls.__name__] = where, again.callbacks[0].seen_, same(outcome(again), expected)
    plain(checkpoint_dir=Path(folder) / "of both").fit(*data)  # only one of them locks it
    return courses, own.exists()


def terminated():
    """Where a fit stops on SIGTERM to the second process, and that it goes on afterwards."""
    data = digits(111)
    clf = plain(callbacks=[AtBatch(3, rank=1).doing(terminate)], warm_start=True)
    where = stopped(clf, data, SystemExit)
    clf.callbacks[0].number = -1
    return where, outcome(clf), outcome(clf.fit(*data))


def agreed():
    """What processes find that were not given a seed, or draw numbers in their layers."""
    data = digits(64)
    unseeded = outcome(plain(random_state=None).fit(*data))
    dropped = outcome(plain(module=dropping, random_state=None).fit(*data))
    grown = plain().partial_fit(*data, classes=np.arange(10)).partial_fit(*data)
    return unseeded, dropped, outcome(grown)


def logged():
    """How many lines of each level this process logs and prints."""
    logger = logging.getLogger("robust_ensembles")
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger.addHandler(handler)
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.info("to be seen of one process")
    logger.warning("to be seen of all")
    logger.setLevel(before)
    logger.removeHandler(handler)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        clf = plain(verbose=1).fit(*digits(64))
    names = [type(callback).__name__ for _, callback in clf.net_.callbacks_]
    return [record.levelno for record in records], len(printed.getvalue().splitlines()), names


def train_and_run(jobs, folder):
    """Outcomes of fits, and of all courses."""
    courses = refused(folder), resumed(folder), terminated(), agreed(), logged()
    return train_all(jobs), courses


def one_fails():
    """An error in the second process."""
    plain(callbacks=[AtBatch(3, rank=1).doing(fail)]).fit(*digits(111))
