"""Every kind of network that `module` may be."""

import functools

import numpy as np
import pytest
import torch
import torchvision
from small_estimators import CLASSES, make
from torch import nn

from robust_ensembles.modules import MLP, LeNet5


class Linear(nn.Module):
    """Takes the number of classes as torchvision's networks do."""

    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.layer(x.flatten(1))


class TenClasses(Linear):
    """Takes nothing."""

    def __init__(self):
        super().__init__(10)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (None, LeNet5),
        ("mlp", MLP),
        ("LeNet5", LeNet5),
        (MLP, MLP),
        (functools.partial(MLP, hidden_sizes=(3,)), MLP),
        (Linear, Linear),
        (TenClasses, TenClasses),
        (lambda: Linear(10), Linear),
    ],
)
def test_kinds(digit_images, module, expected):
    X, X_test, y, _ = digit_images
    estimator = make(module=module, max_epochs=1, n_estimators=2).fit(X, y)
    assert [type(member) for member in estimator.estimators_] == [expected] * 2
    first, second = (next(member.parameters()) for member in estimator.estimators_)
    assert not torch.equal(first, second)
    assert estimator.predict_proba(X_test).shape == (100, 10)


def test_default_for_rows(digit_rows):
    X, _, y, _ = digit_rows
    estimator = make(module=None, module_params=None, max_epochs=1).fit(X, y)
    assert isinstance(estimator.estimators_[0], MLP)


def test_mixed(digit_images):
    X, X_test, y, _ = digit_images
    params = [{"hidden_sizes": (7,)}, None, None]
    estimator = make(module=["mlp", LeNet5, Linear], module_params=params, max_epochs=1).fit(X, y)
    assert [type(member) for member in estimator.estimators_] == [MLP, LeNet5, Linear]
    assert estimator.estimators_[0].classifier.in_features == 7
    assert estimator.member_predict_proba(X_test).shape == (3, 100, 10)


@pytest.mark.filterwarnings("ignore:CEAT with n_estimators")
@pytest.mark.parametrize("cls", CLASSES)
def test_torchvision(cls):
    rng = np.random.default_rng(0)
    X, y = rng.random((4, 3, 32, 32), dtype=np.float32), np.arange(4)
    estimator = make(cls, module=torchvision.models.resnet18, max_epochs=1)
    estimator.fit(X, y)
    assert estimator.estimators_[0].fc.out_features == 4
    assert np.isfinite(estimator.predict_log_proba(X)).all()


def test_instance_is_copied_per_fit(digit_rows):
    """skorch #409: an instance must not be trained on by the next fit."""
    X, X_test, y, _ = digit_rows
    network = Linear(10)
    before = network.layer.weight.detach().clone()
    estimator = make(module=network, n_estimators=1)
    first = estimator.fit(X, y).predict_proba(X_test)
    assert torch.equal(network.layer.weight, before)
    assert not torch.equal(estimator.estimators_[0].layer.weight, before)
    second = estimator.fit(X, y).predict_proba(X_test)
    np.testing.assert_array_equal(first, second)
