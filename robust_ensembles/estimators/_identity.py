"""What a fit is about, in plain values: the same in another process, to be compared by content."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .._digest import digest_of_array
from ._parameters import EnsembleParameters

# parameters that say how a fit is run, and not what it computes
_HOW = {"accelerate", "checkpoint_dir", "device", "verbose"}


def describe_fit(
    estimator: Any, X: NDArray[Any], y: NDArray[np.int64], sample_weight: NDArray[Any] | None
) -> dict[str, Any]:
    """Describe the parameters and the data of a fit.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
        With `classes_`.
    X : ndarray of shape (n_samples, ...)
    y : int64 ndarray of shape (n_samples,)
        Class indices.
    sample_weight : ndarray of shape (n_samples,) or None

    Returns
    -------
    about : dict
        Of values that JSON knows, by name. Functions are represented by their names.
    """
    data = {"X": X, "y": y, "classes": estimator.classes_, "sample_weight": sample_weight}
    described = {"estimator": _type_name(estimator), **_params(estimator)}
    return {**described, **{name: _describe(value) for name, value in data.items()}}


def _params(estimator: Any) -> dict[str, Any]:
    skipped = _HOW if isinstance(estimator, EnsembleParameters) else set()
    params = estimator.get_params(deep=False)
    return {name: _describe(value) for name, value in params.items() if name not in skipped}


def _describe(value: Any) -> Any:
    """The value, if it is plain, or what tells it from others."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): _describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    if isinstance(value, Set):
        return sorted(map(str, value))
    return _describe_object(value)


def _describe_object(value: Any) -> Any:
    if isinstance(value, np.ndarray | Tensor):
        return {"shape": list(value.shape), "digest": digest_of_array(value)}
    if isinstance(value, np.random.RandomState):
        state = value.get_state(legacy=True)
        return {"type": "RandomState", "state": [_describe(part) for part in state]}
    if isinstance(value, nn.Module):
        weights = {name: _describe(part) for name, part in value.state_dict().items()}
        return {"type": _type_name(value), "weights": weights}
    if isinstance(value, partial):
        return [_describe(part) for part in (value.func, value.args, value.keywords)]
    if hasattr(value, "__qualname__"):
        return _type_name(value)
    if not hasattr(value, "get_params"):
        return {"type": _type_name(value), "attributes": _plain_attributes(value)}
    fitted = {"module": _describe(value.module_)} if hasattr(value, "net_") else {}
    return {"type": _type_name(value), "params": _params(value), **fitted}


def _plain_attributes(value: Any) -> dict[str, Any]:
    """Settings of an object such as skorch's `ValidSplit`, which has no `get_params`."""
    return {
        name: _describe(part)
        for name, part in getattr(value, "__dict__", {}).items()
        if not name.startswith("_")
        and not name.endswith("_")
        and (part is None or isinstance(part, bool | str | Real))
    }


def _type_name(value: Any) -> str:
    """Name of a class or function, or of an object's class."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"
