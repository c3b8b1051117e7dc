"""Adversarially robust ensembles of neural networks with the scikit-learn API."""

from ._version import __version__
from .estimators import (
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

__all__ = [
    "ADPEnsembleClassifier",
    "AdversarialEnsembleClassifier",
    "CEATEnsembleClassifier",
    "CLDLEnsembleClassifier",
    "CollaborativeCalibration",
    "DVERGEEnsembleClassifier",
    "FASTENEnsembleClassifier",
    "GALEnsembleClassifier",
    "GPMREnsembleClassifier",
    "LAFEDEnsembleClassifier",
    "NCEnEnsembleClassifier",
    "TRSEnsembleClassifier",
    "VanillaEnsembleClassifier",
    "__version__",
]
