"""The state of an optimizer: what its groups have become, and its memory of past gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._checks import is_number
from .values import NotStorableError, decode, encode

PREFIX = "optimizer."
# how a step is computed, which each machine decides for itself
_TECHNICAL = {"params", "fused", "foreach", "capturable", "differentiable"}


def split_state(optimizer: Optimizer, *, memory: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take an optimizer apart into plain values and tensors.

    Parameters
    ----------
    optimizer : Optimizer
    memory : bool
        Whether to take more than the groups (learning rates and such).

    Returns
    -------
    plain : dict
    tensors : dict of str to Tensor

    Raises
    ------
    ValueError
        If its memory is of a kind that cannot be stored.
    """
    state = optimizer.state_dict()
    groups = [
        {name: encode(_number(value)) for name, value in group.items() if name not in _TECHNICAL}
        for group in state["param_groups"]
    ]
    tensors: dict[str, Tensor] = {}
    numbers: list[list[Any]] = []
    for index, entries in state["state"].items() if memory else ():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{PREFIX}{index}.{name}"] = value
                continue
            try:
                numbers.append([index, name, encode(value)])
            except NotStorableError:
                raise ValueError(
                    f"optimizer_state=True: {type(optimizer).__name__} keeps {name!r}, which is "
                    "neither a tensor nor a number; save without it"
                ) from None
    return {"groups": groups, "numbers": numbers}, tensors


def restore_state(
    optimizer: Optimizer,
    plain: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    keep: Iterable[str],
) -> None:
    """Put a stored state into a fresh optimizer of the same parameters.

    Parameters
    ----------
    optimizer : Optimizer
    plain : mapping
    tensors : mapping of str to Tensor
    keep : iterable of str
        Options of the groups that stay as they are now.

    Raises
    ------
    ValueError
        If it is the state of other parameters.
    """
    state = optimizer.state_dict()
    groups = plain["groups"]
    if len(groups) != len(state["param_groups"]):
        raise ValueError(
            f"its optimizer has {len(groups)} parameter groups, but should have "
            f"{len(state['param_groups'])}"
        )
    for group, stored in zip(state["param_groups"], groups, strict=True):
        # decayed_in: which epoch has lowered the learning rate last
        known = {*group, "decayed_in"} - _TECHNICAL - set(keep)
        values = {name: decode(value) for name, value in stored.items() if name in known}
        _check_group(optimizer, group, values)
        group.update(values)
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    memory: dict[int, dict[str, Any]] = {}
    for index, name, value in plain["numbers"]:
        memory.setdefault(_index(index, owned), {})[str(name)] = decode(value)
    for full, tensor in tensors.items():
        position, _, name = full.removeprefix(PREFIX).partition(".")
        index = _index(int(position), owned)
        if not _goes_with(tensor, owned[index]):
            raise ValueError(f"{full!r} has shape {tuple(tensor.shape)}, unlike its parameter")
        memory.setdefault(index, {})[name] = tensor
    if len({frozenset(names) for names in memory.values()}) > 1:
        raise ValueError("its optimizer remembers other things of some parameters than of others")
    optimizer.load_state_dict({**state, "state": memory})


def _check_group(optimizer: Optimizer, group: dict[str, Any], values: dict[str, Any]) -> None:
    """Raise for settings that no training could have led to."""
    for name, value in values.items():
        if not _is_like(value, group.get(name, 0)):
            raise ValueError(f"its optimizer has {name}={str(value)[:80]}")
    taken = inspect.signature(type(optimizer)).parameters
    settings = {**group, **values}
    # torch itself knows the ranges
    type(optimizer)(
        [torch.zeros(1, requires_grad=True)],
        **{name: value for name, value in settings.items() if name in set(taken) - {"params"}},
    )


def _is_like(value: Any, usual: Any) -> bool:
    """Whether a stored setting is of the kind of the one that it replaces: schedules do that."""
    if isinstance(usual, (tuple, list)):
        same = isinstance(value, (tuple, list)) and len(value) == len(usual)
        return same and all(map(_is_like, value, usual))
    if is_number(usual):
        return is_number(value)
    return type(value) is type(usual) and bool(value == usual)


def _index(index: Any, owned: list[Tensor]) -> int:
    if type(index) is not int or not 0 <= index < len(owned):
        raise ValueError(f"its optimizer remembers a parameter {index!r}, but has {len(owned)}")
    return index


def _goes_with(tensor: Tensor, parameter: Tensor) -> bool:
    """Whether a tensor has the shape of a parameter, or summarises it along some axes."""
    try:
        return torch.broadcast_shapes(tensor.shape, parameter.shape) == parameter.shape
    except RuntimeError:
        return False


def _number(value: Any) -> Any:
    """A number instead of a tensor of one, as learning rates may be."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
