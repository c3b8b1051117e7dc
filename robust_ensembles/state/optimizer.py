"""The state of an optimizer: its parameter groups, and its memory of past gradients."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._checks import is_number
from .values import NotStorableError, TensorsAside, decode_with

OPTIMIZER = "optimizer."
"""Prefix of the names of an optimizer's tensors."""

# settings of how a step is computed, which each machine chooses itself
_TECHNICAL = {"params", "fused", "foreach", "capturable", "differentiable"}
# settings that training adds to those of the optimizer
_DECAYED_IN = "decayed_in"


def split_state(
    state: Mapping[str, Any], aside: TensorsAside, *, memory: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split the state of an optimizer into plain values and tensors.

    Parameters
    ----------
    state : mapping
        From `Optimizer.state_dict`.
    aside : TensorsAside
        Takes the tensors that do not belong to a single parameter.
    memory : bool
        Whether to include more than the groups (learning rates etc.).

    Returns
    -------
    plain : dict
    tensors : dict of str to Tensor
        By the number of the parameter and the name of its state.

    Raises
    ------
    NotStorableError
        If its state cannot be stored.
    """
    groups = [_storable(group, aside) for group in state["param_groups"]]
    tensors: dict[str, Tensor] = {}
    other: list[list[Any]] = []
    for index, entries in state["state"].items() if memory else ():
        for name, value in entries.items():
            if isinstance(value, Tensor) and isinstance(index, int):
                tensors[f"{OPTIMIZER}{index}.{name}"] = value
                continue
            try:
                other.append([index, name, aside.encode(value)])
            except NotStorableError as error:
                raise NotStorableError(
                    f"the optimizer keeps {name!r}, a {error}, which a file cannot hold"
                ) from None
    return {"groups": groups, "numbers": other}, tensors


def _storable(group: Mapping[str, Any], aside: TensorsAside) -> dict[str, Any]:
    """Settings of a group, without functions, which the estimator's parameters provide again."""
    stored = {}
    for name in group.keys() - _TECHNICAL:
        try:
            stored[name] = aside.encode(_number(group[name]))
        except NotStorableError:
            continue
    return dict(sorted(stored.items()))


def restore_state(
    optimizer: Optimizer,
    plain: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    keep: Iterable[str] = (),
    whole: bool = False,
) -> None:
    """Load a stored state into a new optimizer of the same parameters.

    Parameters
    ----------
    optimizer : Optimizer
    plain : mapping
        From `split_state`.
    tensors : mapping of str to Tensor
        Those returned by `split_state`, and those put aside.
    keep : iterable of str
        Settings of the groups that are not changed.
    whole : bool, default=False
        Whether to also set what the optimizer does not have, such as settings of a schedule that
        continues.

    Raises
    ------
    ValueError, LookupError
        If it is the state of other parameters.
    """
    state, decode = optimizer.state_dict(), decode_with(tensors)
    groups = plain["groups"]
    if len(groups) != len(state["param_groups"]):
        raise ValueError(
            f"its optimizer has {len(groups)} parameter groups, but should have "
            f"{len(state['param_groups'])}"
        )
    for group, stored in zip(state["param_groups"], groups, strict=True):
        known = {*group, _DECAYED_IN} if not whole else {*group, *stored}
        names = known - _TECHNICAL - set(keep)
        values = {name: decode(value) for name, value in stored.items() if name in names}
        _check_group(optimizer, group, values)
        group.update({name: _as_in(group, name, value) for name, value in values.items()})
    optimizer.load_state_dict({**state, "state": _memory(optimizer, plain, tensors)})


def _memory(
    optimizer: Optimizer, plain: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[Any, dict[str, Any]]:
    """The optimizer's state of each parameter."""
    owned = [p for group in optimizer.param_groups for p in group["params"]]
    decode = decode_with(tensors)
    memory: dict[Any, dict[str, Any]] = {}
    for index, name, value in plain["numbers"]:
        of_user = isinstance(index, str) and not _is_of_torch(optimizer)
        key = index if of_user else _checked_index(index, owned)
        memory.setdefault(key, {})[str(name)] = decode(value)
    for full, tensor in tensors.items():
        if not full.startswith(OPTIMIZER):
            continue
        position, _, name = full.removeprefix(OPTIMIZER).partition(".")
        index = _checked_index(int(position), owned)
        if _is_elementwise(optimizer) and not _goes_with(tensor, owned[index]):
            raise ValueError(f"{full!r} has shape {tuple(tensor.shape)}, unlike its parameter")
        memory.setdefault(index, {})[name] = tensor
    if _is_elementwise(optimizer) and len({frozenset(names) for names in memory.values()}) > 1:
        raise ValueError("its optimizer remembers other things of some parameters than of others")
    numbered = sorted(key for key in memory if isinstance(key, int))
    return {key: memory[key] for key in (*numbered, *(memory.keys() - set(numbered)))}


def _check_group(optimizer: Optimizer, group: dict[str, Any], values: dict[str, Any]) -> None:
    """Raise for settings that no training could produce."""
    usual = {_DECAYED_IN: 0, **group}
    for name, value in values.items():
        if name in usual and not _is_like(value, _number(usual[name])):
            raise ValueError(f"its optimizer has {name}={str(value)[:80]}")
    if not _is_of_torch(optimizer):
        return
    taken = inspect.signature(type(optimizer)).parameters
    settings = {**group, **values}
    # torch itself checks the ranges
    type(optimizer)(
        [torch.zeros(1, requires_grad=True)],
        **{name: value for name, value in settings.items() if name in set(taken) - {"params"}},
    )


def _is_of_torch(optimizer: Optimizer) -> bool:
    """Whether it is an optimizer of torch, not of the user."""
    return getattr(torch.optim, type(optimizer).__name__, None) is type(optimizer)


def _is_elementwise(optimizer: Optimizer) -> bool:
    """Whether its state of a parameter has that parameter's shape, or that of a summary."""
    return _is_of_torch(optimizer) and not isinstance(optimizer, torch.optim.LBFGS)


def _is_like(value: Any, usual: Any) -> bool:
    """Whether a stored setting is of the same kind as the present one, as after a schedule."""
    if isinstance(usual, (tuple, list)):
        same = isinstance(value, (tuple, list)) and len(value) == len(usual)
        return same and all(map(_is_like, value, usual))
    if isinstance(usual, Tensor):
        return isinstance(value, Tensor) and value.shape == usual.shape
    if is_number(usual):
        return is_number(value)
    return type(value) is type(usual) and bool(value == usual)


def _as_in(group: dict[str, Any], name: str, value: Any) -> Any:
    """The value as a tensor, if the optimizer has one."""
    own = group.get(name)
    return torch.full_like(own, value) if isinstance(own, Tensor) and is_number(value) else value


def _checked_index(index: Any, owned: list[Tensor]) -> int:
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
    """A number instead of a scalar tensor, as learning rates may be."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
