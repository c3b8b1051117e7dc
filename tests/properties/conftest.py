"""Fitted models that several tests share, and a counter of training steps."""

import joblib
import pytest
from small_estimators import VanillaEnsembleClassifier, make, weights

from robust_ensembles.training import EnsembleNet


@pytest.fixture(scope="session")
def data(digit_rows):
    X, _, y, _ = digit_rows
    return X, y


def digest(estimator):
    arrays = {name: tensor.numpy() for name, tensor in weights(estimator).items()}
    return joblib.hash((arrays, repr(estimator.get_params()), repr(list(estimator.history_))))


@pytest.fixture(scope="session")
def reference(data):
    """Fits once what several tests compare with or ask, and sees that no test changes it."""
    fits = {}

    def fitted(cls=VanillaEnsembleClassifier, make=make, **params):
        key = joblib.hash((cls, make, params))
        if key not in fits:
            estimator = make(cls, **params).fit(*data)
            fits[key] = estimator, digest(estimator)
        return fits[key][0]

    yield fitted
    assert all(digest(estimator) == before for estimator, before in fits.values())


@pytest.fixture
def steps(monkeypatch):
    """Counts training steps, and does something before the one that was asked for."""

    class Steps:
        count, at, action = 0, None, None

        def plan(self, at=None, action=None):
            self.count, self.at, self.action = 0, at, action

        def interrupt(self, at):
            def action():
                raise KeyboardInterrupt

            self.plan(at, action)

    planned = Steps()
    train_step = EnsembleNet.train_step

    def counted(net, *args, **kwargs):
        planned.count += 1
        if planned.count == planned.at:
            planned.action()
        return train_step(net, *args, **kwargs)

    monkeypatch.setattr(EnsembleNet, "train_step", counted)
    return planned
