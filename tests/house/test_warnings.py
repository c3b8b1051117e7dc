"""Warnings point at the line of the user that has led to them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    CollaborativeCalibration,
    VanillaEnsembleClassifier,
)
from robust_ensembles._checks import warn
from robust_ensembles.attacks import FGSM
from robust_ensembles.persistence import load

ROOT = Path(__file__).parents[2]
SMALL = {
    "module": "mlp",
    "module_params": {"hidden_sizes": (3,)},
    "max_epochs": 1,
    "device": "cpu",
    "random_state": 0,
}


@pytest.fixture
def images():
    """In [0, 300], which no box fits."""
    X = np.random.default_rng(0).random((12, 1, 4, 4)).astype(np.float32) * 300
    return X, np.arange(12) % 3


@pytest.fixture
def rows(images):
    return images[0].reshape(12, 16) / 300, images[1]


def check_place(call, message, category=UserWarning):
    """Each warning is from the line of this file where the call stands."""
    with pytest.warns(category, match=message) as caught:
        call()
    places = {(warning.filename, warning.lineno) for warning in caught}
    assert places == {(__file__, call.__code__.co_firstlineno)}


def test_of_a_fit(rows):
    clf = CEATEnsembleClassifier(n_estimators=2, attack=FGSM(), **SMALL)
    check_place(lambda: clf.fit(*rows), "CEAT with n_estimators=2")
    check_place(lambda: clf.partial_fit(*rows), "CEAT with n_estimators=2")


def test_of_a_fit_in_a_pipeline_and_in_a_search(rows):
    clf = AdversarialEnsembleClassifier(
        n_estimators=2, attack=FGSM(), calibration=CollaborativeCalibration(), **SMALL
    )
    pipeline = make_pipeline(FunctionTransformer(), clf)
    check_place(lambda: pipeline.fit(*rows), "calibration with n_estimators=2")
    search = GridSearchCV(clf, {"lr": [0.1]}, cv=2)
    check_place(lambda: search.fit(*rows), "calibration with n_estimators=2")


def test_of_the_data(images):
    clf = VanillaEnsembleClassifier(**SMALL)
    check_place(lambda: clf.fit(*images), "attacks stay in no box")
    check_place(lambda: FGSM().generate(clf, *images), "less than half of a grey level")
    x, y = torch.tensor(images[0]), torch.tensor(images[1])
    check_place(lambda: FGSM()(clf.as_module(), x, y), "less than half of a grey level")


def test_of_a_file(rows, tmp_path):
    clf = VanillaEnsembleClassifier(augmentation=lambda x, generator: x, **SMALL).fit(*rows)
    clf.save(tmp_path / "model.safetensors")
    check_place(lambda: load(tmp_path / "model.safetensors"), "could not hold")


def test_category_and_a_call_from_nowhere():
    check_place(lambda: warn("old", DeprecationWarning), "^old$", DeprecationWarning)
    code = compile("warn('new')", str(ROOT / "robust_ensembles" / "inside.py"), "exec")
    check_place(lambda: exec(code, {"warn": warn}), "^new$")


def test_nobody_else_warns_or_counts_frames():
    pattern = re.compile(r"warnings\.warn\(|stacklevel")
    files = (ROOT / "robust_ensembles").rglob("*.py")
    found = {f.name for f in files if pattern.search(f.read_text(encoding="utf-8"))}
    assert found == {"_checks.py"}
