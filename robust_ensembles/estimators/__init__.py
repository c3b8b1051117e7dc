"""What a user fits: one file per paper, read from top to bottom like the paper."""

from .adp import ADPEnsembleClassifier
from .adversarial import AdversarialEnsembleClassifier
from .adversarial_training import AdversarialTrainingMixin, CalibrationMixin, DiversityMixin
from .base import BaseEnsembleClassifier
from .calibration import CalibrationParameters, CollaborativeCalibration
from .ceat import CEATEnsembleClassifier
from .cldl import CLDLEnsembleClassifier
from .dverge import DVERGEEnsembleClassifier
from .fasten import FASTENEnsembleClassifier
from .feature_space import DistillationMixin, PretrainedMixin
from .gal import GALEnsembleClassifier
from .gpmr import GPMREnsembleClassifier
from .lafed import LAFEDEnsembleClassifier
from .ncen import NCEnEnsembleClassifier
from .parameters import EnsembleParameters
from .trs import TRSEnsembleClassifier
from .vanilla import VanillaEnsembleClassifier

__all__ = [
    "ADPEnsembleClassifier",
    "AdversarialEnsembleClassifier",
    "AdversarialTrainingMixin",
    "BaseEnsembleClassifier",
    "CEATEnsembleClassifier",
    "CLDLEnsembleClassifier",
    "CalibrationMixin",
    "CalibrationParameters",
    "CollaborativeCalibration",
    "DVERGEEnsembleClassifier",
    "DistillationMixin",
    "DiversityMixin",
    "EnsembleParameters",
    "FASTENEnsembleClassifier",
    "GALEnsembleClassifier",
    "GPMREnsembleClassifier",
    "LAFEDEnsembleClassifier",
    "NCEnEnsembleClassifier",
    "PretrainedMixin",
    "TRSEnsembleClassifier",
    "VanillaEnsembleClassifier",
]
