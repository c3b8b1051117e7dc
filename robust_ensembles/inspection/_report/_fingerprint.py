"""What attacks and models are, in plain values: for a report to state, and to compare by content.

Everything here is the same in another process, so that an interrupted report goes on later.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ... import _plain as _describe
from ..._plain import digest, digest_of_array, type_name
from ...attacks import Attack, as_torch
from ...exceptions import NotDifferentiableError

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


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
    return _describe.describe(value, _describe_object)


def _describe_object(value: Any) -> Any:
    if isinstance(value, Attack):
        params = value.get_params(deep=False)
        return {"type": type_name(value), "params": {k: describe(v) for k, v in params.items()}}
    if isinstance(value, nn.Module) or hasattr(value, "predict"):
        return {"type": type_name(value), "digest": digest_of_model(value)}
    return type_name(value)


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
