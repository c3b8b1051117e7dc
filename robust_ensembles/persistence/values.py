"""Parameters as plain JSON, and back.

What JSON knows stays as it is. Everything else is an object with one key, a tag that says how to
read it: ``{"tuple": [1, 2]}``, ``{"object": "PGD", "params": {...}}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from numbers import Integral, Real
from types import GenericAlias
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from .. import _registry
from .. import modules as _modules
from .. import training as _training
from ..attacks import GradientAttack
from ..estimators import BaseEnsembleClassifier, CollaborativeCalibration

ENSEMBLES: dict[str, type[BaseEnsembleClassifier]] = {
    method.cls.__name__: method.cls for method in _registry.methods().values()
}
"""The estimators, by name."""

OBJECTS: dict[str, type[BaseEstimator]] = {
    **ENSEMBLES,
    # what the others are made of is a function or a trained model, not parameters
    **{name: a.cls for name, a in _registry.attacks().items() if a.from_parameters},
    **{
        name: kind
        for name in _training.__all__
        # on Python 3.10, aliases such as dict[str, Tensor] pass for types as well
        if isinstance(kind := getattr(_training, name), type)
        and not isinstance(kind, GenericAlias)
        and issubclass(kind, _training.BatchTransform)
        and not kind.__abstractmethods__
    },
    "CollaborativeCalibration": CollaborativeCalibration,
    "GradientAttack": GradientAttack,  # a base, but one that can be used as it is
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


# bytes of an array in a header, where labels and names of columns are
_MAX_ARRAY = 64 * 2**20
_DTYPE = re.compile(r"[<>|=]?[biufU]\d{1,6}")
_CONTAINERS: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}

# where a fit writes is its owner's affair: a file from elsewhere must not choose
_OF_THE_MACHINE = {"checkpoint_dir"}


class NotStorableError(TypeError):
    """A value that only code could make again."""


def encode(value: Any) -> Any:
    """Describe a value by what JSON knows.

    Parameters
    ----------
    value : object
        None, a number, a string, a container of these, an array, a device, an object or a class
        that `_allowed` lists.

    Returns
    -------
    plain : None, bool, int, float, str, list or dict

    Raises
    ------
    NotStorableError
        For anything else.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return _encode_container(value)
    return _encode_object(value)


def _encode_container(value: Any) -> Any:
    if type(value) is list:
        return [encode(entry) for entry in value]
    if type(value) is dict:
        return {"dict": [[encode(key), encode(entry)] for key, entry in value.items()]}
    tag = next((tag for tag, kind in _CONTAINERS.items() if type(value) is kind), None)
    if tag is None:
        raise NotStorableError(_name(value))
    return {
        tag: [encode(entry) for entry in (value if tag == "tuple" else sorted(value, key=repr))]
    }


def _encode_object(value: Any) -> Any:
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, np.ndarray):
        return {"array": encode_array(value)}
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    # the class itself: a user's class of the same name, or one derived from ours, is another
    if isinstance(value, BaseEstimator) and OBJECTS.get(type(value).__name__) is type(value):
        return {"object": type(value).__name__, "params": encode_params(value)}
    raise NotStorableError(_name(value))


def encode_params(estimator: BaseEstimator) -> dict[str, Any]:
    """All parameters of an object, described.

    Parameters
    ----------
    estimator : BaseEstimator

    Returns
    -------
    params : dict

    Raises
    ------
    NotStorableError
    """
    return {name: encode(value) for name, value in storable_params(estimator).items()}


def storable_params(estimator: BaseEstimator) -> dict[str, Any]:
    """The parameters of an object that a file may give, undescribed."""
    params = estimator.get_params(deep=False)
    return {name: value for name, value in params.items() if name not in _OF_THE_MACHINE}


def encode_array(array: NDArray[Any]) -> dict[str, Any]:
    """Describe an array of one axis: numbers, truth values or strings.

    Parameters
    ----------
    array : ndarray of shape (n,)

    Returns
    -------
    plain : dict

    Raises
    ------
    NotStorableError
    """
    values = array.tolist()
    if array.dtype.kind == "O":
        if not all(type(value) in (str, int, bool) for value in values):
            raise NotStorableError(f"array of {array.dtype}")
        return {"dtype": "object", "values": values}
    if array.ndim != 1 or not _DTYPE.fullmatch(array.dtype.str):
        raise NotStorableError(f"array of shape {array.shape} and type {array.dtype}")
    return {"dtype": array.dtype.str, "values": [encode(value) for value in values]}


def decode(plain: Any) -> Any:
    """Make what `encode` described.

    Parameters
    ----------
    plain : object
        From a file, so that it may hold anything that JSON does.

    Returns
    -------
    value : object

    Raises
    ------
    ValueError
        If it is nothing that `encode` makes, or names a class that is not allowed.
    """
    if isinstance(plain, list):
        return [decode(entry) for entry in plain]
    if not isinstance(plain, dict):
        return plain
    if set(plain) == {"object", "params"}:
        return decode_object(plain["object"], plain["params"], OBJECTS)
    tag = next(iter(plain)) if len(plain) == 1 else None
    if tag not in _DECODERS:
        raise ValueError(f"it holds a value that is of no known kind: {str(plain)[:80]}")
    return _DECODERS[tag](plain[tag])


def decode_object(name: Any, params: Any, allowed: dict[str, Any]) -> Any:
    """Make an object of its parameters; nothing is looked up but in the given dict.

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
        For a class or a parameter that is not there.
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


def decode_array(plain: Any) -> NDArray[Any]:
    """Make an array that `encode_array` described.

    Parameters
    ----------
    plain : dict

    Returns
    -------
    array : ndarray of shape (n,)

    Raises
    ------
    ValueError
    """
    if not isinstance(plain, dict) or set(plain) != {"dtype", "values"}:
        raise ValueError("it describes an array by something else than dtype and values")
    name, values = plain["dtype"], decode(plain["values"])
    if not isinstance(values, list) or any(isinstance(v, (list, tuple, dict)) for v in values):
        raise ValueError("it holds an array of something else than numbers and strings")
    if name == "object":
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise ValueError(f"it holds an array of the type {str(name)[:80]!r}")
    dtype = np.dtype(name)
    if dtype.itemsize * len(values) > _MAX_ARRAY:
        raise ValueError(f"it claims {len(values)} values of {dtype.itemsize} bytes in its header")
    return np.array(values, dtype=dtype)


def _look_up(name: Any, allowed: dict[str, Any]) -> Any:
    if not isinstance(name, str) or name not in allowed:
        raise ValueError(
            f"it names the class {str(name)[:80]!r}, which is none that a file may name; known "
            f"are {sorted(allowed)}"
        )
    return allowed[name]


def _decode_dict(pairs: Any) -> dict[Any, Any]:
    return {decode(key): decode(value) for key, value in pairs}


def _decode_float(text: Any) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"it holds {str(text)[:80]!r} as a number")
    return float(text)


def _container(kind: type) -> Callable[[Any], Any]:
    return lambda entries: kind([decode(entry) for entry in entries])


_DECODERS: dict[str | None, Callable[[Any], Any]] = {
    "array": decode_array,
    "device": torch.device,
    "dict": _decode_dict,
    "float": _decode_float,
    "type": lambda name: _look_up(name, TYPES),
    **{tag: _container(kind) for tag, kind in _CONTAINERS.items()},
}


def _name(value: Any) -> str:
    """Name of an object or a class, for messages."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
