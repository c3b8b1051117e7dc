"""What the methods are for, on real images; the full comparison is `benchmarks.fashion_mnist`."""

import pytest
import torch

from robust_ensembles import (
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import PGD, is_broken
from robust_ensembles.datasets import load_fashion_mnist
from robust_ensembles.exceptions import DatasetNotFoundError
from robust_ensembles.metrics import robust_accuracy_score

pytestmark = pytest.mark.slow

EPS = 0.1
TRAINING = {
    "module": "lenet5",
    "module_params": {"embedding_size": 64},
    "max_epochs": 6,
    "lr_milestones": [4],
    "random_state": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def images():
    try:
        X, y = load_fashion_mnist("train", download=False)
        X_test, y_test = load_fashion_mnist("test", download=False)
    except DatasetNotFoundError as error:
        pytest.skip(str(error))
    return X[:8000], y[:8000], X_test[:300], y_test[:300]


@pytest.fixture(scope="module")
def vanilla(images):
    return VanillaEnsembleClassifier(**TRAINING).fit(*images[:2])


def test_adversarial_training_survives_where_vanilla_does_not(images, vanilla):
    X, y, X_test, y_test = images
    ceat = CEATEnsembleClassifier(**TRAINING, attack=PGD(eps=EPS, n_steps=5)).fit(X, y)
    attack = PGD(eps=EPS, n_steps=20)
    gain = robust_accuracy_score(ceat, X_test, y_test, attack=attack)
    gain -= robust_accuracy_score(vanilla, X_test, y_test, attack=attack)
    assert gain > 0.2


def test_gradient_diversity_withstands_transfer(images, vanilla):
    X, y, X_test, y_test = images
    cldl = CLDLEnsembleClassifier(**TRAINING, gamma=3, alpha=2, beta=4).fit(X, y)
    surrogate = VanillaEnsembleClassifier(**{**TRAINING, "random_state": 7}).fit(X, y)
    x, labels = torch.from_numpy(X_test).float() / 255, torch.from_numpy(y_test)
    attack = PGD(eps=EPS, n_steps=10, step_size=EPS / 5, loss="cross_entropy")
    x_adv = attack(surrogate.as_module(), x, labels, stop_when_broken=False)
    broken = [is_broken(m.as_module(), x_adv, labels).float().mean() for m in (vanilla, cldl)]
    assert broken[0] - broken[1] > 0.08
