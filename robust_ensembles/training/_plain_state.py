"""State in types that can be read again without trusting the file; what callbacks have of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from skorch.callbacks import Callback, PrintLog
from torch import Tensor

if TYPE_CHECKING:
    from .net import EnsembleNet


def state_of_callbacks(net: EnsembleNet) -> dict[str, dict[str, Any]]:
    """What callbacks have learned: attributes that skorch does not take for parameters."""
    states = {}
    for name, callback in _resumable_callbacks(net).items():
        state = {}
        for attribute, value in vars(callback).items():
            if attribute.endswith("_"):
                state.update(_if_plain(attribute, _inner_state(value)))
        states[name] = state
    return states


def restore_callbacks(net: EnsembleNet, states: dict[str, dict[str, Any]]) -> None:
    """Let callbacks go on with what they had learned; others than those are left alone."""
    callbacks = _resumable_callbacks(net)
    for name in callbacks.keys() & states.keys():
        for attribute, value in states[name].items():
            present: Any = getattr(callbacks[name], attribute, None)
            if hasattr(present, "load_state_dict"):
                present.load_state_dict(value)
            else:
                setattr(callbacks[name], attribute, value)


def plain(value: Any) -> Any:
    """The same, of types that `torch.load` reads without trusting the file."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}: {value!r}")


def _resumable_callbacks(net: EnsembleNet) -> dict[str, Callback]:
    # a table that goes on in another process begins with its head again
    return {name: c for name, c in net.callbacks_ if not isinstance(c, PrintLog)}


def _inner_state(value: Any) -> Any:
    """The plain part of a schedule's state; other values as they are."""
    if isinstance(value, type) or not hasattr(value, "load_state_dict"):
        return value
    inner: dict[str, Any] = {}
    for name, part in value.state_dict().items():
        inner.update(_if_plain(name, part))
    return inner


def _if_plain(name: str, value: Any) -> dict[str, Any]:
    """The value under its name, or nothing if a checkpoint cannot hold it."""
    try:
        return {name: plain(value)}
    except TypeError:
        return {}
