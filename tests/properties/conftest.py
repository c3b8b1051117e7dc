"""Data and a counter of training steps for tests of fits that are interrupted."""

import pytest

from robust_ensembles.training import EnsembleNet


@pytest.fixture
def data(digit_rows):
    X, _, y, _ = digit_rows
    return X, y


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
