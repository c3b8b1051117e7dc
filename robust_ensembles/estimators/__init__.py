"""The estimators, one file per paper."""

from .adversarial_training import AdversarialTraining
from .base import BaseEnsembleClassifier
from .calibration import CalibrationParameters, CollaborativeCalibration
from .feature_space import FeatureSpaceMethod
from .parameters import EnsembleParameters

__all__ = [
    "AdversarialTraining",
    "BaseEnsembleClassifier",
    "CalibrationParameters",
    "CollaborativeCalibration",
    "EnsembleParameters",
    "FeatureSpaceMethod",
]

# list of methods: begin (written by `make lists`)
from .adp import ADPEnsembleClassifier
from .adversarial import AdversarialEnsembleClassifier
from .ceat import CEATEnsembleClassifier
from .cldl import CLDLEnsembleClassifier
from .dverge import DVERGEEnsembleClassifier
from .fasten import FASTENEnsembleClassifier
from .gal import GALEnsembleClassifier
from .gpmr import GPMREnsembleClassifier
from .lafed import LAFEDEnsembleClassifier
from .ncen import NCEnEnsembleClassifier
from .trs import TRSEnsembleClassifier
from .vanilla import VanillaEnsembleClassifier

__all__ += [
    "ADPEnsembleClassifier",
    "AdversarialEnsembleClassifier",
    "CEATEnsembleClassifier",
    "CLDLEnsembleClassifier",
    "DVERGEEnsembleClassifier",
    "FASTENEnsembleClassifier",
    "GALEnsembleClassifier",
    "GPMREnsembleClassifier",
    "LAFEDEnsembleClassifier",
    "NCEnEnsembleClassifier",
    "TRSEnsembleClassifier",
    "VanillaEnsembleClassifier",
]
# list of methods: end
