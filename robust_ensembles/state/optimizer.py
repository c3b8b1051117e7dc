"""The state of an optimizer: what its groups have become, and its memory of past gradients."""

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
"""How names of the tensors begin that an optimizer remembers."""

# how a step is computed, which each machine decides for itself
_TECHNICAL = {"params", "fused", "foreach", "capturable", "differentiable"}
# settings that training adds to those of the optimizer
_DECAYED_IN = "decayed_in"


def split_state(
    state: Mapping[str, Any], aside: TensorsAside, *, memory: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Take the state of an optimizer apart into plain values and tensors.

    Parameters
    ----------
    state : mapping
        From `Optimizer.state_dict`.
    aside : TensorsAside
        Takes the tensors that do not belong to one parameter alone.
    memory : bool
        Whether to take more than the groups (learning rates and such).

    Returns
    -------
    plain : dict
    tensors : dict of str to Tensor
        By the number of the parameter and the name of what is remembered of it.

    Raises
    ------
    NotStorableError
        If its memory is of a kind that cannot be stored.
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
    """Settings of a group; functions among them come from the estimator's parameters again."""
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
    """Put a stored state into a fresh optimizer of the same parameters.

    Parameters
    ----------
    optimizer : Optimizer
    plain : mapping
        From `split_state`.
    tensors : mapping of str to Tensor
        Those of `split_state`, and those that it has put aside.
    keep : iterable of str
        Settings of the groups that stay as they are now.
    whole : bool, default=False
        Whether to take settings too that the optimizer does not have, such as those of a schedule
        that goes on.

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
    """What the optimizer remembers of each parameter."""
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
    """Raise for settings that no training could have led to."""
    usual = {_DECAYED_IN: 0, **group}
    for name, value in values.items():
        if name in usual and not _is_like(value, _number(usual[name])):
            raise ValueError(f"its optimizer has {name}={str(value)[:80]}")
    if not _is_of_torch(optimizer):
        return
    taken = inspect.signature(type(optimizer)).parameters
    settings = {**group, **values}
    # torch itself knows the ranges
    type(optimizer)(
        [torch.zeros(1, requires_grad=True)],
        **{name: value for name, value in settings.items() if name in set(taken) - {"params"}},
    )


def _is_of_torch(optimizer: Optimizer) -> bool:
    """Whether it is an optimizer of torch's, and none of the user's."""
    return getattr(torch.optim, type(optimizer).__name__, None) is type(optimizer)


def _is_elementwise(optimizer: Optimizer) -> bool:
    """Whether what it remembers of a parameter has that parameter's shape, or a summary's."""
    return _is_of_torch(optimizer) and not isinstance(optimizer, torch.optim.LBFGS)


def _is_like(value: Any, usual: Any) -> bool:
    """Whether a stored setting is of the kind of the one that it replaces: schedules do that."""
    if isinstance(usual, (tuple, list)):
        same = isinstance(value, (tuple, list)) and len(value) == len(usual)
        return same and all(map(_is_like, value, usual))
    if isinstance(usual, Tensor):
        return isinstance(value, Tensor) and value.shape == usual.shape
    if is_number(usual):
        return is_number(value)
    return type(value) is type(usual) and bool(value == usual)


def _as_in(group: dict[str, Any], name: str, value: Any) -> Any:
    """The value as a tensor, where the optimizer has one."""
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
    """A number instead of a tensor of one, as learning rates may be."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
