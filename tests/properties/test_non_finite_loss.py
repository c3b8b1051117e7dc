"""A loss that becomes NaN: the message, and what is left."""

import numpy as np
import pytest
import torch
from small_estimators import every_class, make, same_weights, weights
from torch import nn

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.exceptions import NonFiniteLossError


class Fails(nn.Sequential):
    """Returns NaN after some forward passes in one mode."""

    after, mode = 8, True

    def __init__(self, n_classes):
        super().__init__(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, n_classes))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training == self.mode and x.shape[0] > 2:
            self.calls += 1
        factor = float("nan") if self.training == self.mode and self.calls > self.after else 1.0
        return factor * super().forward(x)


class FailsInValidation(Fails):
    after, mode = 2, False


class FailsBackward(nn.Module):
    """A finite loss whose gradient is not: the derivative of a root at zero."""

    def __init__(self, n_classes):
        super().__init__()
        self.layer = nn.Linear(64, n_classes)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.layer(x) + self.scale.sqrt()


def usable(estimator, X):
    finite = all(bool(w.isfinite().all()) for w in weights(estimator).values())
    return finite and np.isfinite(estimator.predict_proba(X)).all()


def test_message_and_restored_weights(digit_rows):
    """7 batches an epoch: the ninth forward is the second batch of epoch 2."""
    X, X_test, y, _ = digit_rows
    estimator = make(module=Fails, n_estimators=1)
    with pytest.raises(NonFiniteLossError) as info:
        estimator.fit(X, y)
    message = str(info.value)
    assert "epoch 2, batch 2" in message
    assert "cross_entropy is nan" in message
    last = float(message.split("last finite value: ")[1].split(")")[0])
    assert 0.5 < last < 5
    assert usable(estimator, X_test)
    assert estimator.n_iter_ == 1
    assert same_weights(estimator, make(module=Fails, n_estimators=1, max_epochs=1).fit(X, y))


def test_no_finite_value_before(digit_rows):
    X, _, y, _ = digit_rows
    with pytest.raises(NonFiniteLossError, match="epoch 1, batch 2"):
        make(lr=1e30).fit(X, y)


@every_class
@pytest.mark.parametrize("batch_size", [32, 1000])
def test_huge_learning_rate(digit_rows, cls, batch_size):
    """With one batch an epoch, the weights from the start of epoch 2 are no good."""
    X, X_test, y, _ = digit_rows
    estimator = make(cls, lr=1e30, batch_size=batch_size, max_epochs=5)
    with pytest.raises(NonFiniteLossError, match="Lower lr"):
        estimator.fit(X, y)
    assert usable(estimator, X_test)


def test_validation_loss(digit_rows):
    X, X_test, y, _ = digit_rows
    settings = {"module": FailsInValidation, "n_estimators": 1, "train_split": 0.2}
    estimator = make(**settings, max_epochs=3)
    with pytest.raises(NonFiniteLossError, match=r"valid loss .* epoch 2"):
        estimator.fit(X, y)
    for member in estimator.estimators_:
        member.after = 100
    assert usable(estimator, X_test)
    first = make(**settings, max_epochs=1).fit(X, y)
    for name in ("0.weight", "2.bias"):
        assert torch.equal(
            estimator.estimators_[0].state_dict()[name], first.estimators_[0].state_dict()[name]
        )


def test_gradient_of_the_last_batch(digit_rows):
    X, X_test, y, _ = digit_rows
    estimator = make(module=FailsBackward, max_epochs=1, batch_size=1000)
    with pytest.raises(NonFiniteLossError, match="gradient"):
        estimator.fit(X, y)
    assert usable(estimator, X_test)


def test_names_the_term(digit_rows):
    class Broken(VanillaEnsembleClassifier):
        def _objective(self, step):
            terms = super()._objective(step)
            return {**terms, "odd": terms["cross_entropy"] * float("inf")}

    X, _, y, _ = digit_rows
    with pytest.raises(NonFiniteLossError, match=r"odd is inf .* none in this epoch"):
        make(Broken).fit(X, y)
