"""Every kind of network that `module` may be, and ensembles of different ones."""

import functools

import numpy as np
import pytest
import torch
import torchvision
from sklearn.base import clone
from small_estimators import FEATURE_SPACE, every_class, make, make_full, weights
from torch import nn

from robust_ensembles import TRSEnsembleClassifier
from robust_ensembles.modules import MLP, LeNet5
from robust_ensembles.training import EnsembleNet


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
        (["mlp", LeNet5], [MLP, LeNet5]),
    ],
)
def test_kinds(digit_images, module, expected):
    X, X_test, y, _ = digit_images
    estimator = make(module=module, max_epochs=1, n_estimators=2).fit(X, y)
    expected = expected if isinstance(expected, list) else [expected] * 2
    assert [type(member) for member in estimator.estimators_] == expected
    first, second = (next(member.parameters()) for member in estimator.estimators_)
    assert first.shape != second.shape or not torch.equal(first, second)
    assert estimator.member_predict_proba(X_test).shape == (2, 100, 10)


@pytest.mark.usefixtures("untrained")
def test_default_for_rows(digit_rows):
    X, _, y, _ = digit_rows
    estimator = make(module=None, module_params=None).fit(X, y)
    assert isinstance(estimator.estimators_[0], MLP)


@every_class
def test_torchvision(cls):
    rng = np.random.default_rng(0)
    X, y = rng.random((4, 3, 32, 32), dtype=np.float32), np.arange(4)
    estimator = make_full(cls, module=torchvision.models.shufflenet_v2_x0_5, max_epochs=1)
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


# --- mixed ensembles -----------------------------------------------------------------------

MIXED_SIZES = [(8,), (16, 8), (12, 12, 8)]  # CLDL's members have embeddings of one size


@every_class
def test_mixed_widths(digit_rows, cls):
    X, X_test, y, _ = digit_rows
    estimator = make_full(
        cls,
        module=["mlp"] * 3,
        module_params=[{"hidden_sizes": sizes} for sizes in MIXED_SIZES],
        max_epochs=1,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: None)
        before = weights(clone(estimator).fit(X, y))
    estimator.fit(X, y)
    widths = [
        tuple(m.out_features for m in member.modules() if isinstance(m, nn.Linear))
        for member in estimator.estimators_
    ]
    assert widths == [(*sizes, 10) for sizes in MIXED_SIZES]
    after = weights(estimator)
    assert all(not torch.equal(before[name], after[name]) for name in after)
    assert np.isfinite(estimator.predict_proba(X_test)).all()


@every_class
def test_mixed_depths(digit_images, cls):
    """Residual networks, whose layers for features lie at different places."""
    X, X_test, y, _ = digit_images
    params = {"n_steps": 1} if cls in FEATURE_SPACE else {}
    if cls is TRSEnsembleClassifier:
        params["n_inner_steps"] = 1
    estimator = make_full(
        cls,
        module=["resnet20", "resnet26", "resnet32"],
        module_params={"width": 2},
        max_epochs=1,
        batch_size=16,
        **params,
    ).fit(X[:32], y[:32])
    convolutions = [
        sum(isinstance(m, nn.Conv2d) for m in e.modules()) for e in estimator.estimators_
    ]
    assert convolutions == [19, 25, 31]
    assert np.isfinite(estimator.history_[-1]["train_loss"])
    assert np.isfinite(estimator.predict_proba(X_test)).all()
