"""Every hyper-parameter that a method has of its own can be set, cloned and searched over."""

from dataclasses import fields

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, ParameterGrid
from small_estimators import CLASSES, every_class, make

from robust_ensembles import (
    ADPEnsembleClassifier,
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    CollaborativeCalibration,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    GALEnsembleClassifier,
    GPMREnsembleClassifier,
    LAFEDEnsembleClassifier,
    NCEnEnsembleClassifier,
    TRSEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import FGSM
from robust_ensembles.estimators import EnsembleParameters

FORMULATION = {"formulation": ["paper", "released"]}
COSINES = {"cos_eps_mode": ["torch1", "torch2"]}
TRAINING = {
    "attack": [FGSM(eps=0.02), FGSM(eps=0.1)],
    "attack__eps": [0.02, 0.1],
    "attack_target": ["ensemble", "member"],
    "craft_bn": ["eval", "train"],
}
DISTANCES = {
    "lam": [0.0, 1.0],
    "mu": [0.0, 5.0],
    "lam_exp": [None, 0.5],
    "mu_exp": [None, 0.5],
    "peers": ["pair_mean", "range"],
    "distance_on": ["probabilities", "logits"],
    "distance_reduce": ["sum", "mean"],
    "stop_gradient_clean": [False, True],
    "normalize_weights": [False, True],
}
PLUG_IN = {
    **TRAINING,
    "calibration": [None, CollaborativeCalibration(mu=1.0)],
    "calibration__mu": [0.0, 5.0],
}
DISTILLATION = {
    "eps": [0.05, 0.2],
    "step_size": [0.01, 0.1],
    "n_steps": [1, 3],
    "layers": [None, ["classifier"]],
    "layer_schedule": ["epoch", "step"],
    "pretrained": [None, 1],
    "pretrained__lr": [0.001, 0.1],
}

GRIDS = {
    VanillaEnsembleClassifier: FORMULATION,
    AdversarialEnsembleClassifier: {
        **FORMULATION,
        **PLUG_IN,
        **{f"calibration__{name}": values for name, values in DISTANCES.items()},
    },
    ADPEnsembleClassifier: {
        **FORMULATION,
        **PLUG_IN,
        "alpha": [0.0, 2.0],
        "beta": [0.0, 0.5],
        "regularize_adversarial": [False, True],
    },
    GALEnsembleClassifier: {
        **FORMULATION,
        **PLUG_IN,
        **COSINES,
        "lam": [0.1, 0.5],
        "cross_entropy_reduce": ["mean", "sum"],
    },
    GPMREnsembleClassifier: {
        **FORMULATION,
        **PLUG_IN,
        "lambda_div": [0.04, 0.1],
        "lambda_eq": [1.0, 10.0],
    },
    DVERGEEnsembleClassifier: {**FORMULATION, **PLUG_IN, **DISTILLATION},
    TRSEnsembleClassifier: {
        **FORMULATION,
        **PLUG_IN,
        **COSINES,
        "scale": [0.5, 1.0],
        "coeff": [0.5, 2.0],
        "lamda": [0.5, 2.5],
        "delta_init": [0.0, 0.01],
        "delta_final": [0.03, 0.2],
        "n_inner_steps": [1, 2],
        "inner_max": [False, True],
        "inner_momentum": [False, True],
        "norm_power": [1, 2],
        "gradient_scale": ["mean", "sum"],
        "cross_entropy_reduce": ["mean", "sum"],
    },
    CLDLEnsembleClassifier: {
        **FORMULATION,
        **PLUG_IN,
        **COSINES,
        "gamma": [3.0, 4.0],
        "alpha": [0.0, 2.0],
        "beta": [0.5, 4.0],
        "label_diversity_on": ["soft_labels", "confusion_vectors"],
        "jsd_reduction": ["sample", "element_mean"],
        "gradient_norm": ["pairs", "members"],
    },
    NCEnEnsembleClassifier: {
        **FORMULATION,
        **PLUG_IN,
        "lambda_cos": [0.02, 0.06],
        "lambda_norm": [0.0, 0.04],
        "norm_sign": [1, -1],
        "ce_on_probabilities": [False, True],
    },
    LAFEDEnsembleClassifier: {
        **FORMULATION,
        **PLUG_IN,
        **DISTILLATION,
        "smoothing": [0.0, 0.05],
    },
    FASTENEnsembleClassifier: {
        **FORMULATION,
        **PLUG_IN,
        **DISTILLATION,
        "beta": [0.0, 3.0],
        "eps_init": [0.0, 0.1],
        "inter_gradient": [False, True],
        "clean_cross_entropy": [False, True],
    },
    CEATEnsembleClassifier: {
        "formulation": ["paper"],
        **TRAINING,
        **DISTANCES,
        "clean_cross_entropy": [False, True],
    },
}


def grid(cls):
    """What is listed, or each parameter of its own by its default and another value."""
    if cls in GRIDS:
        return GRIDS[cls]
    common = {field.name for field in fields(EnsembleParameters)}
    known = {**FORMULATION, **COSINES, **PLUG_IN, **DISTILLATION}
    default = cls().get_params(deep=False)
    own = {name: value for name, value in default.items() if name not in common}
    return {name: known.get(name) or [value, another(value)] for name, value in own.items()}


def another(value):
    if isinstance(value, bool):
        return not value
    return value / 2 if isinstance(value, float) else value


FOLD = np.arange(40), np.arange(40)  # every sample, for training and for the score


def with_parts(cls):
    """An estimator that has every part whose parameters can be set through it."""
    small = {"max_epochs": 1, "module_params": {"hidden_sizes": (8,)}}
    parts = {
        "attack": FGSM(eps=0.05),
        "calibration": CollaborativeCalibration(),
        "pretrained": make(**small),
    }
    own = cls().get_params(deep=False)
    return make(cls, **small, **{name: part for name, part in parts.items() if name in own})


@pytest.mark.parametrize("cls", CLASSES)
def test_grids_are_complete(cls):
    common = set(VanillaEnsembleClassifier().get_params(deep=False)) - set(FORMULATION)
    own = set(cls().get_params(deep=False)) - common
    assert own == {name for name in grid(cls) if "__" not in name}


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("cls", CLASSES)
def test_every_value_is_taken(digit_rows, cls):
    """By a clone too, as searches make them, and up to the first step of a fit."""
    X, y = digit_rows[0][:40], np.arange(40) % 4
    for name, values in grid(cls).items():
        for value in values:
            estimator = clone(with_parts(cls)).set_params(**{name: value})
            estimator = clone(estimator).fit(X, y)
            assert repr(estimator.get_params()[name]) == repr(value)


@every_class
def test_search(digit_rows, cls):
    """Over one after the other, each value fitted and scored."""
    X, y = digit_rows[0][:40], np.arange(40) % 4
    grids = [{name: values} for name, values in grid(cls).items()]
    search = GridSearchCV(
        with_parts(cls), grids, cv=[FOLD], scoring="accuracy", error_score="raise"
    )
    search.fit(X, y)
    assert len(search.cv_results_["params"]) == len(ParameterGrid(grids))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    for name, value in search.best_params_.items():
        assert repr(search.best_estimator_.get_params()[name]) == repr(value)
