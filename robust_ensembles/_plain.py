"""Values in words that JSON knows, and digests: the same in another process, to be compared."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Set
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def describe(value: Any, describe_object: Callable[[Any], Any]) -> Any:
    """Describe a value: plain ones by themselves, containers by what they hold.

    Parameters
    ----------
    value : object
    describe_object : callable
        Describes what is neither plain, nor a container, nor an array.

    Returns
    -------
    description : None, bool, int, float, str, list or dict
        Arrays are represented by a digest, numbers that JSON has not by their names.
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
    """Name of a class or function, or of an object's class; with its module if not of ours."""
    named = value if hasattr(value, "__qualname__") else type(value)
    if named.__module__.startswith("robust_ensembles."):
        return str(named.__qualname__)
    return f"{named.__module__}.{named.__qualname__}"


def digest(*parts: Any) -> str:
    """Digest of values that JSON knows."""
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
