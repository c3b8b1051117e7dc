"""Encoding of plain values as JSON, and decoding.

Values that JSON has are unchanged. Everything else is an object with one key, a tag for its
decoding: ``{"tuple": [1, 2]}``, ``{"float": "nan"}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# largest size in bytes of an array in a header, such as labels and column names
_MAX_ARRAY = 64 * 2**20
_DTYPE = re.compile(r"[<>|=]?[biufU]\d{1,6}")
_CONTAINERS: dict[str, type] = {"tuple": tuple, "set": set, "frozenset": frozenset}


class NotStorableError(TypeError):
    """A value cannot be stored, because only code could restore it."""


def refuse_to_encode(value: Any) -> NoReturn:
    """Raise for a value that is not plain.

    Raises
    ------
    NotStorableError
        The message is the name of its type.
    """
    named = value if hasattr(value, "__qualname__") else type(value)
    raise NotStorableError(f"{named.__module__}.{named.__qualname__}")


def refuse_to_decode(plain: Any) -> NoReturn:
    """Raise for a value that no encoder makes.

    Raises
    ------
    ValueError
    """
    raise ValueError(f"it holds a value of an unknown kind: {str(plain)[:80]}")


def encode(value: Any, encode_other: Callable[[Any], Any] = refuse_to_encode) -> Any:
    """Describe a value by values that JSON can hold.

    Parameters
    ----------
    value : object
        None, a number, a string, an array, a device, or a container of these.
    encode_other : callable, default=refuse_to_encode
        Describes any other value, also within a container.

    Returns
    -------
    plain : None, bool, int, float, str, list or dict

    Raises
    ------
    NotStorableError
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if type(value) is list:
        return [encode(entry, encode_other) for entry in value]
    if type(value) is dict:
        pairs = value.items()
        return {"dict": [[encode(k, encode_other), encode(v, encode_other)] for k, v in pairs]}
    tag = next((tag for tag, kind in _CONTAINERS.items() if type(value) is kind), None)
    if tag is not None:
        entries = value if tag == "tuple" else sorted(value, key=repr)
        return {tag: [encode(entry, encode_other) for entry in entries]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, np.ndarray):
        return {"array": encode_array(value)}
    return encode_other(value)


def encode_array(array: NDArray[Any]) -> dict[str, Any]:
    """Describe a one-dimensional array of numbers, booleans or strings.

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


def decode(plain: Any, decode_other: Callable[[Any], Any] = refuse_to_decode) -> Any:
    """The inverse of `encode`.

    Parameters
    ----------
    plain : object
        From a file, so it may be anything that JSON can hold.
    decode_other : callable, default=refuse_to_decode
        The inverse of the encoder's `encode_other`.

    Returns
    -------
    value : object

    Raises
    ------
    ValueError
        If `encode` does not make such values.
    """
    if isinstance(plain, list):
        return [decode(entry, decode_other) for entry in plain]
    if not isinstance(plain, dict):
        return plain
    none: tuple[Any, Any] = (None, None)
    tag, content = next(iter(plain.items())) if len(plain) == 1 else none
    if tag in _CONTAINERS:
        return _CONTAINERS[tag]([decode(entry, decode_other) for entry in content])
    if tag == "dict":
        return {decode(k, decode_other): decode(v, decode_other) for k, v in content}
    if tag == "array":
        return decode_array(content)
    if tag == "device":
        return torch.device(content)
    if tag == "float":
        return _decode_float(content)
    return decode_other(plain)


def decode_array(plain: Any) -> NDArray[Any]:
    """The inverse of `encode_array`.

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


def _decode_float(text: Any) -> float:
    if text not in ("nan", "inf", "-inf"):
        raise ValueError(f"it holds {str(text)[:80]!r} as a number")
    return float(text)


class TensorsAside:
    """Encodes values that may contain tensors, which are put aside under names.

    Containers are simplified: mappings become dicts, named tuples become tuples.

    Parameters
    ----------
    prefix : str
        Prefix of the names.

    Attributes
    ----------
    tensors : dict of str to Tensor
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.tensors: dict[str, Tensor] = {}

    def encode(self, value: Any) -> Any:
        """Describe a value; nothing is put aside if a part of it cannot be stored.

        Raises
        ------
        NotStorableError
        """
        before = dict(self.tensors)
        try:
            return encode(value, self._encode_other)
        except NotStorableError:
            self.tensors = before
            raise

    def _encode_other(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"{self.prefix}{len(self.tensors)}"
            self.tensors[name] = value
            return {"tensor": name}
        if isinstance(value, Mapping):
            return encode(dict(value), self._encode_other)
        if isinstance(value, (list, tuple)):
            plain = list(value) if isinstance(value, list) else tuple(value)
            return encode(plain, self._encode_other)
        return refuse_to_encode(value)


def decode_with(tensors: Mapping[str, Tensor]) -> Callable[[Any], Any]:
    """Make a function that decodes values encoded by `TensorsAside`.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    """

    def decode_other(plain: Any) -> Any:
        if set(plain) != {"tensor"} or not isinstance(plain["tensor"], str):
            refuse_to_decode(plain)
        return tensors[plain["tensor"]]

    return lambda plain: decode(plain, decode_other)
