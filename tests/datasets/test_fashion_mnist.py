"""What the methods are for, on real images; the full comparison is `benchmarks.defences`."""

import pytest
import torch

from robust_ensembles import (
    ADPEnsembleClassifier,
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    GALEnsembleClassifier,
    GPMREnsembleClassifier,
    LAFEDEnsembleClassifier,
    NCEnEnsembleClassifier,
    TRSEnsembleClassifier,
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
    return X[:10_000], y[:10_000], X_test[:300], y_test[:300]


@pytest.fixture(scope="module")
def vanilla(images):
    return VanillaEnsembleClassifier(**TRAINING).fit(images[0][:8000], images[1][:8000])


def test_adversarial_training_survives_where_vanilla_does_not(images, vanilla):
    X, y, X_test, y_test = images
    X, y = X[:8000], y[:8000]
    ceat = CEATEnsembleClassifier(**TRAINING, attack=PGD(eps=EPS, n_steps=5)).fit(X, y)
    attack = PGD(eps=EPS, n_steps=20)
    gain = robust_accuracy_score(ceat, X_test, y_test, attack=attack)
    gain -= robust_accuracy_score(vanilla, X_test, y_test, attack=attack)
    assert gain > 0.2


def test_gradient_diversity_withstands_transfer(images, vanilla):
    X, y, X_test, y_test = images
    X, y = X[:8000], y[:8000]
    cldl = CLDLEnsembleClassifier(**TRAINING, gamma=3, alpha=2, beta=4).fit(X, y)
    surrogate = VanillaEnsembleClassifier(**{**TRAINING, "random_state": 7}).fit(X, y)
    x, labels = torch.from_numpy(X_test).float() / 255, torch.from_numpy(y_test)
    attack = PGD(eps=EPS, n_steps=10, step_size=EPS / 5, loss="cross_entropy")
    x_adv = attack(surrogate.as_module(), x, labels, stop_when_broken=False)
    broken = [is_broken(m.as_module(), x_adv, labels).float().mean() for m in (vanilla, cldl)]
    assert broken[0] - broken[1] > 0.08


ATTACK = PGD(eps=EPS, n_steps=2)
DISTILLED = {"eps": 0.15, "step_size": 0.075, "n_steps": 2}
# the method's own hyper-parameters, with few steps where it crafts, and the term that shows its aim
METHODS = [
    (VanillaEnsembleClassifier, {}, "cross_entropy"),
    (AdversarialEnsembleClassifier, {"attack": ATTACK}, "adversarial_cross_entropy"),
    (ADPEnsembleClassifier, {}, "log_determinant"),
    (GALEnsembleClassifier, {}, "gradient_alignment"),
    (GPMREnsembleClassifier, {"lambda_div": 0.1}, "direction"),
    (DVERGEEnsembleClassifier, DISTILLED, "distilled_cross_entropy"),
    (TRSEnsembleClassifier, {"scale": 5, "coeff": 2, "lamda": 2, "n_inner_steps": 2}, "similarity"),
    (CLDLEnsembleClassifier, {"gamma": 3}, "gradient_diversity"),
    # gradients of raw pixels are nearly orthogonal at first, so that the term can only rise
    (
        NCEnEnsembleClassifier,
        {
            "lambda_cos": 0.2,
            "lambda_norm": 0.0,
            "module_params": {"embedding_size": 64, "normalize": (0.2854, 0.3527)},
        },
        "direction",
    ),
    (LAFEDEnsembleClassifier, DISTILLED, "smoothed_cross_entropy"),
    (FASTENEnsembleClassifier, {"eps": 0.15, "step_size": 0.15}, "perturbed_cross_entropy"),
    (CEATEnsembleClassifier, {"attack": ATTACK}, "natural_distance"),
]


@pytest.mark.parametrize(
    ("cls", "params", "term"), METHODS, ids=lambda v: getattr(v, "__name__", "")
)
def test_diversity_moves_where_it_is_trained_to(images, cls, params, term):
    """Warnings are errors here, as in all tests."""
    X, y, X_test, y_test = images
    settings = {**TRAINING, "max_epochs": 3, "lr_milestones": None}
    estimator = cls(**{**settings, **params}).fit(X, y)
    column = estimator.history_[:, f"train_{term}"]
    assert column[0] > column[-1]
    assert estimator.score(X_test, y_test) > 0.6
