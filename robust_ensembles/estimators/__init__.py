"""What a user fits: one file per paper, read from top to bottom like the paper."""

from ._adversarial import AdversarialTrainingMixin
from ._parameters import EnsembleParameters
from .adversarial import AdversarialEnsembleClassifier
from .base import BaseEnsembleClassifier
from .ceat import CEATEnsembleClassifier
from .cldl import CLDLEnsembleClassifier
from .ncen import NCEnEnsembleClassifier
from .vanilla import VanillaEnsembleClassifier

__all__ = [
    "AdversarialEnsembleClassifier",
    "AdversarialTrainingMixin",
    "BaseEnsembleClassifier",
    "CEATEnsembleClassifier",
    "CLDLEnsembleClassifier",
    "EnsembleParameters",
    "NCEnEnsembleClassifier",
    "VanillaEnsembleClassifier",
]
