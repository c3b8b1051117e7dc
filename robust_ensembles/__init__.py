"""Adversarially robust ensembles of neural networks with the scikit-learn API."""

from typing import TYPE_CHECKING

from ._version import __version__

__all__ = ["CollaborativeCalibration", "__version__"]

# list of methods: begin (written by `make lists`)
if TYPE_CHECKING:
    from .estimators import (
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

_ROOMS = (
    "attacks",
    "datasets",
    "estimators",
    "exceptions",
    "inspection",
    "losses",
    "metrics",
    "modules",
    "parallel",
    "persistence",
    "protocols",
    "recipes",
    "training",
)

if TYPE_CHECKING:
    from . import attacks as attacks
    from . import datasets as datasets
    from . import estimators as estimators
    from . import exceptions as exceptions
    from . import inspection as inspection
    from . import losses as losses
    from . import metrics as metrics
    from . import modules as modules
    from . import parallel as parallel
    from . import persistence as persistence
    from . import protocols as protocols
    from . import recipes as recipes
    from . import training as training
    from .estimators import CollaborativeCalibration
else:
    # sub-modules and classes are imported on first use: importing torch and scikit-learn takes
    # seconds, which `robust-ensembles --help` and reading the version do not need

    def __getattr__(name):
        """Import a sub-module, or a class from `estimators`."""
        from importlib import import_module

        if name in _ROOMS:
            return import_module(f".{name}", __name__)
        if name in __all__:
            value = getattr(import_module(".estimators", __name__), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        """All public names, imported or not."""
        return sorted({*globals(), *__all__, *_ROOMS})
