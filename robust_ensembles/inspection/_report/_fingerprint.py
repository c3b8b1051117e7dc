"""What attacks and models are, in plain values: for a report to state, and to compare by content.

Everything here is the same in another process, so that an interrupted report goes on later.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import singledispatch
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..._digest import digest_of_array
from ...attacks import Attack, as_torch
from ...exceptions import NotDifferentiableError

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@singledispatch
def describe(value: Any) -> Any:
    """Describe a parameter by values that JSON knows.

    Parameters
    ----------
    value : object
        Attacks become ``{"type": ..., "params": {...}}``. Models and arrays are represented by a
        digest of their content, functions and other objects by their name.

    Returns
    -------
    description : None, bool, int, float, str, list or dict
    """
    if hasattr(value, "predict"):
        return {"type": type_name(value), "digest": digest_of_model(value)}
    return type_name(value)


@describe.register(type(None))
@describe.register(bool)
@describe.register(str)
def _plain(value: bool | str | None) -> bool | str | None:
    return value


@describe.register
def _numpy_bool(value: np.bool_) -> bool:
    return bool(value)


@describe.register
def _integer(value: Integral) -> int:
    return int(value)


@describe.register
def _real(value: Real) -> float | str:
    # JSON has no infinity
    return float(value) if math.isfinite(value) else str(float(value))


@describe.register
def _attack(value: Attack) -> dict[str, Any]:
    params = value.get_params(deep=False)
    return {"type": type_name(value), "params": {k: describe(v) for k, v in params.items()}}


@describe.register
def _module(value: nn.Module) -> dict[str, Any]:
    return {"type": type_name(value), "digest": digest_of_model(value)}


@describe.register
def _mapping(value: Mapping) -> dict[str, Any]:  # type: ignore[type-arg]
    return {str(key): describe(item) for key, item in value.items()}


@describe.register(list)
@describe.register(tuple)
def _sequence(value: list[Any] | tuple[Any, ...]) -> list[Any]:
    return [describe(item) for item in value]


@describe.register(np.ndarray)
@describe.register(Tensor)
def _array(value: NDArray[Any] | Tensor) -> dict[str, Any]:
    return {"shape": list(value.shape), "digest": digest_of_array(value)}


def type_name(value: Any) -> str:
    """Name of a class or function, or of an object's class; with its module if not of ours."""
    named = value if hasattr(value, "__qualname__") else type(value)
    if named.__module__.startswith("robust_ensembles."):
        return str(named.__qualname__)
    return f"{named.__module__}.{named.__qualname__}"


def digest(*parts: Any) -> str:
    """Digest of values that JSON knows."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest_of_model(model: Any) -> str:
    """Digest of what a fitted estimator or a module computes.

    Weights and buffers, the architecture, the parameters (steps of a Pipeline that learn nothing
    obey those) and the classes. Functions are compared by name.

    Parameters
    ----------
    model : fitted estimator or nn.Module

    Returns
    -------
    digest : str
    """
    parts: list[Any] = [type_name(model)]
    try:
        module = as_torch(model)
    except NotDifferentiableError:
        parts.append("no differentiable twin")
    else:
        weights = {k: describe(v) for k, v in sorted(module.state_dict().items())}
        parts += [weights, _without_addresses(module)]
    if hasattr(model, "get_params"):
        parts.append(_without_addresses(model.get_params()))
    if hasattr(model, "classes_"):
        parts.append(digest_of_array(model.classes_))
    return digest(*parts)


def _without_addresses(value: Any) -> str:
    """Text of an object, without what differs from process to process."""
    return _ADDRESS.sub("", repr(value))
