"""Searches over every hyper-parameter that a method has of its own."""

from dataclasses import fields

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from small_estimators import ADVERSARIAL, CLASSES, make

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
from robust_ensembles.estimators.parameters import EnsembleParameters

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
CASES = [(cls, name) for cls in CLASSES for name in GRIDS[cls]]


@pytest.mark.parametrize("cls", CLASSES)
def test_grids_are_complete(cls):
    common = {field.name for field in fields(EnsembleParameters)}
    own = set(cls().get_params(deep=False)) - common
    assert own == {name for name in GRIDS[cls] if "__" not in name}


@pytest.mark.parametrize(("cls", "name"), CASES)
def test_search(digit_rows, cls, name):
    X, y = digit_rows[0][:40], np.arange(40) % 4
    params = {"max_epochs": 1, "module_params": {"hidden_sizes": (8,)}}
    if cls in ADVERSARIAL or name.startswith(("attack", "calibration", "regularize")):
        params["attack"] = FGSM(eps=0.05)
    if name.startswith("calibration__"):
        params["calibration"] = CollaborativeCalibration()
    if name.startswith("pretrained__"):
        params["pretrained"] = make(**params)
    values = GRIDS[cls][name]
    search = GridSearchCV(
        make(cls, **params),
        {name: values},
        cv=2,
        scoring="accuracy",
        error_score="raise",
    ).fit(X, y)
    assert len(search.cv_results_["params"]) == len(values)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    chosen = search.best_estimator_.get_params()[name]
    assert repr(chosen) == repr(search.best_params_[name])
