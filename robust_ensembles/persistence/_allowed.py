"""What a file may name: public classes of this package, and torch's optimizers. Nothing else."""

from __future__ import annotations

from types import GenericAlias

import torch
from sklearn.base import BaseEstimator

from .. import attacks as _attacks
from .. import estimators as _estimators
from .. import modules as _modules
from .. import training as _training
from ..estimators import BaseEnsembleClassifier

# what these are made of is a function or a trained model, not parameters
_NOT_FROM_PARAMETERS = {_attacks.External, _attacks.Transfer}

ENSEMBLES: dict[str, type[BaseEnsembleClassifier]] = {
    name: kind
    for name in _estimators.__all__
    if name.endswith("Classifier")
    and issubclass(kind := getattr(_estimators, name), BaseEnsembleClassifier)
    and kind is not BaseEnsembleClassifier
}
"""The estimators, by name."""

OBJECTS: dict[str, type[BaseEstimator]] = {
    **ENSEMBLES,
    **{
        name: kind
        for room in (_attacks, _training, _estimators)
        for name in room.__all__
        # on Python 3.10, aliases such as dict[str, Tensor] pass for types as well
        if isinstance(kind := getattr(room, name), type)
        and not isinstance(kind, GenericAlias)
        and issubclass(kind, (_attacks.Attack, _training.BatchTransform))
        and kind not in _NOT_FROM_PARAMETERS
        and not kind.__abstractmethods__
    },
    "CollaborativeCalibration": _estimators.CollaborativeCalibration,
}
"""What is made of its parameters alone: estimators, attacks, transforms, by name."""

NETWORKS: dict[str, type] = {
    kind.__name__: kind for kind in (*_modules.MODULES.values(), _modules.CifarResNet)
}
"""Members, by the names of their classes."""

TYPES: dict[str, type] = {
    **NETWORKS,
    **{
        name: kind
        for name in dir(torch.optim)
        if isinstance(kind := getattr(torch.optim, name), type)
        and issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
    },
}
"""Classes that are themselves values of `module` and `optimizer`, by name."""
