"""What a user fits: one file per paper, read from top to bottom like the paper."""

from .adp import ADPEnsembleClassifier
from .adversarial import AdversarialEnsembleClassifier
from .adversarial_training import AdversarialTraining
from .base import BaseEnsembleClassifier
from .calibration import CalibrationParameters, CollaborativeCalibration
from .ceat import CEATEnsembleClassifier
from .cldl import CLDLEnsembleClassifier
from .dverge import DVERGEEnsembleClassifier
from .fasten import FASTENEnsembleClassifier
from .feature_space import FeatureSpaceMethod
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
    "AdversarialTraining",
    "BaseEnsembleClassifier",
    "CEATEnsembleClassifier",
    "CLDLEnsembleClassifier",
    "CalibrationParameters",
    "CollaborativeCalibration",
    "DVERGEEnsembleClassifier",
    "EnsembleParameters",
    "FASTENEnsembleClassifier",
    "FeatureSpaceMethod",
    "GALEnsembleClassifier",
    "GPMREnsembleClassifier",
    "LAFEDEnsembleClassifier",
    "NCEnEnsembleClassifier",
    "TRSEnsembleClassifier",
    "VanillaEnsembleClassifier",
]
