"""Encoding of parameters as JSON: plain values, and the objects and classes that a file may name.

``{"object": "PGD", "params": {...}}`` is an object made from its parameters, ``{"type": "Adam"}`` a
class. Names are only looked up in the tables of this module.
"""

from __future__ import annotations

from types import GenericAlias
from typing import Any

import torch
from sklearn.base import BaseEstimator

from .. import _registry
from .. import modules as _modules
from .. import training as _training
from ..attacks import GradientAttack
from ..estimators import BaseEnsembleClassifier, CollaborativeCalibration
from ..state.values import decode as decode_plain
from ..state.values import encode as encode_plain
from ..state.values import refuse_to_decode, refuse_to_encode

ENSEMBLES: dict[str, type[BaseEnsembleClassifier]] = {
    method.cls.__name__: method.cls for method in _registry.methods().values()
}
"""Estimators by name."""

OBJECTS: dict[str, type[BaseEstimator]] = {
    **ENSEMBLES,
    # the others contain a function or a trained model
    **{name: a.cls for name, a in _registry.attacks().items() if a.from_parameters},
    **{
        name: kind
        for name in _training.__all__
        # on Python 3.10, aliases such as dict[str, Tensor] count as types
        if isinstance(kind := getattr(_training, name), type)
        and not isinstance(kind, GenericAlias)
        and issubclass(kind, _training.BatchTransform)
        and not kind.__abstractmethods__
    },
    "CollaborativeCalibration": CollaborativeCalibration,
    "GradientAttack": GradientAttack,  # a base, but one that can be used as it is
}
"""Classes whose objects are defined by their parameters, by name: estimators, attacks, etc."""

NETWORKS: dict[str, type] = {
    kind.__name__: kind for kind in (*_modules.MODULES.values(), _modules.CifarResNet)
}
"""Networks of the package by class name."""

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
"""Classes that may be values of `module` and `optimizer`, by name."""

# a file must not choose where a fit writes
_OF_THE_MACHINE = {"checkpoint_dir"}


def encode(value: Any) -> Any:
    """Describe a parameter by values that JSON can hold.

    Parameters
    ----------
    value : object
        A plain value, an object or class that this module lists, or a container of these.

    Returns
    -------
    plain : None, bool, int, float, str, list or dict

    Raises
    ------
    NotStorableError
        For anything else.
    """
    return encode_plain(value, _encode_object)


def _encode_object(value: Any) -> Any:
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    # the exact class: a user's class of the same name or a subclass is not the same
    if isinstance(value, BaseEstimator) and OBJECTS.get(type(value).__name__) is type(value):
        params = {name: encode(param) for name, param in storable_params(value).items()}
        return {"object": type(value).__name__, "params": params}
    return refuse_to_encode(value)


def storable_params(estimator: BaseEstimator) -> dict[str, Any]:
    """The parameters of an object that a file may set, not yet encoded."""
    params = estimator.get_params(deep=False)
    return {name: value for name, value in params.items() if name not in _OF_THE_MACHINE}


def decode(plain: Any) -> Any:
    """The inverse of `encode`.

    Parameters
    ----------
    plain : object
        From a file, so it may be anything that JSON can hold.

    Returns
    -------
    value : object

    Raises
    ------
    ValueError
        If `encode` does not make such values, or for a class that is not allowed.
    """
    return decode_plain(plain, _decode_object)


def _decode_object(plain: dict[str, Any]) -> Any:
    if set(plain) == {"object", "params"}:
        return decode_object(plain["object"], plain["params"], OBJECTS)
    if set(plain) == {"type"}:
        return _look_up(plain["type"], TYPES)
    return refuse_to_decode(plain)


def decode_object(name: Any, params: Any, allowed: dict[str, Any]) -> Any:
    """Make an object from its parameters; the class is only looked up in the given dict.

    Parameters
    ----------
    name : str
    params : dict
    allowed : dict of str to type

    Returns
    -------
    made : BaseEstimator

    Raises
    ------
    ValueError
        For an unknown class or parameter.
    """
    kind = _look_up(name, allowed)
    if not isinstance(params, dict):
        raise ValueError(f"it gives {name} no parameters by name")
    unknown = sorted(set(params) - set(kind._get_param_names()) | set(params) & _OF_THE_MACHINE)
    if unknown:
        raise ValueError(
            f"{name} has no parameters {unknown[:5]} in this version of robust_ensembles"
        )
    return kind(**{param: decode(value) for param, value in params.items()})


def _look_up(name: Any, allowed: dict[str, Any]) -> Any:
    if not isinstance(name, str) or name not in allowed:
        raise ValueError(
            f"it names the class {str(name)[:80]!r}, which is none that a file may name; known "
            f"are {sorted(allowed)}"
        )
    return allowed[name]
