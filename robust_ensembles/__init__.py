"""Adversarially robust ensembles of neural networks with the scikit-learn API."""

from ._version import __version__
from .estimators import (
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    NCEnEnsembleClassifier,
    VanillaEnsembleClassifier,
)

__all__ = [
    "AdversarialEnsembleClassifier",
    "CEATEnsembleClassifier",
    "CLDLEnsembleClassifier",
    "NCEnEnsembleClassifier",
    "VanillaEnsembleClassifier",
    "__version__",
]
