"""Descriptions of objects as plain values, and digests, that are the same in every process.

`describe` turns a value into one that JSON can hold. The caller decides by `describe_object` what
matters about an object: resuming a fit compares other things than completing a report.
`described` gives one line for readers.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Set
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from torch import Tensor

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def describe(value: Any, describe_object: Callable[[Any], Any]) -> Any:
    """Describe a value: plain values as they are, containers by their content.

    Parameters
    ----------
    value : object
    describe_object : callable
        Describes objects that are neither plain values, nor containers, nor arrays.

    Returns
    -------
    description : None, bool, int, float, str, list or dict
        Arrays are represented by a digest, numbers that JSON does not have by their names.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): describe(item, describe_object) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item, describe_object) for item in value]
    if isinstance(value, Set):
        return sorted(map(str, value))
    if isinstance(value, np.ndarray | Tensor):
        return {"shape": list(value.shape), "digest": digest_of_array(value)}
    return describe_object(value)


def type_name(value: Any) -> str:
    """Name of a class or function, or of an object's class; with the module outside the package."""
    named = value if hasattr(value, "__qualname__") else type(value)
    if named.__module__.startswith("robust_ensembles."):
        return str(named.__qualname__)
    return f"{named.__module__}.{named.__qualname__}"


def described(item: Any) -> str:
    """One line: the non-default parameters of an estimator or attack, or a module's layers."""
    # scikit-learn shortens long ones otherwise
    text = item.__repr__(N_CHAR_MAX=100_000) if isinstance(item, BaseEstimator) else repr(item)
    return " ".join(text.split())


def without_addresses(value: Any) -> str:
    """The ``repr`` of an object without memory addresses, which differ between processes."""
    return _ADDRESS.sub("", repr(value))


def digest(*parts: Any) -> str:
    """Digest of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def digest_of_array(values: ArrayLike | Tensor) -> str:
    """Digest of the type, shape and content of an array.

    Parameters
    ----------
    values : array-like or Tensor
        Objects other than numbers are told apart by their ``repr``.

    Returns
    -------
    digest : str
    """
    if isinstance(values, Tensor):
        kind, shape = str(values.dtype), list(values.shape)
        # as bytes, because NumPy lacks some of torch's types
        content = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    else:
        content = np.ascontiguousarray(values)
        kind, shape = str(content.dtype), list(np.shape(values))
    hashed = hashlib.sha256(f"{kind} {shape} ".encode())
    if content.dtype.kind in "biufc":
        hashed.update(content.reshape(-1).view(np.uint8).data)
    else:
        hashed.update(repr(content.ravel().tolist()).encode())
    return hashed.hexdigest()
