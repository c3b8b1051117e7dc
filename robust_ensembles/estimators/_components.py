"""What a parameter stands for: devices, optimizers, and double-underscore names."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from .._checks import as_array, one_of

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}

# for sparse gradients only
_UNFIT_OPTIMIZERS = {torch.optim.SparseAdam}

# parameters that may be None, and what to put there
_EXAMPLES = {
    "attack": "PGD(eps=8 / 255, n_steps=10)",
    "calibration": "CollaborativeCalibration()",
    "pretrained": "VanillaEnsembleClassifier(max_epochs=20)",
}

# parameters that are not estimators, but take double-underscore names: where those are kept
_PARAMS_OF = {"module": "module_params", "optimizer": "optimizer_params"}


def resolve_device(device: Any) -> torch.device:
    """The device that is meant, which must be there.

    Parameters
    ----------
    device : str, torch.device or OneFitPerGPU
        ``"auto"`` is CUDA, else MPS, else the CPU; a free one is the one that is reserved by now,
        or the same as ``"auto"`` where nothing is trained.

    Returns
    -------
    device : torch.device

    Raises
    ------
    ValueError
        If the device is absent from this machine.
    """
    if hasattr(device, "reserve"):
        device = device.held or "auto"
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is no torch device: {error}") from None
    absent = {
        "cuda": not torch.cuda.is_available() or (resolved.index or 0) >= torch.cuda.device_count(),
        "mps": not torch.backends.mps.is_available(),
    }
    if absent.get(resolved.type, False):
        raise ValueError(
            f"device={device!r} was asked for, but torch finds no such device here; use "
            "device='auto' or 'cpu', or install a torch build for your GPU"
        )
    return resolved


def reserved_device(device: Any, trained: torch.device | None) -> AbstractContextManager[Any]:
    """Keep the device of a fit from others, if that was asked for.

    Parameters
    ----------
    device : str, torch.device or OneFitPerGPU
    trained : torch.device or None
        Where the weights are, if they are trained on.

    Returns
    -------
    reserved : context manager
    """
    return device.reserve(trained) if hasattr(device, "reserve") else nullcontext()


def resolve_optimizer(
    optimizer: str | type[torch.optim.Optimizer], params: dict[str, Any] | None
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Class and arguments of the optimizer.

    Parameters
    ----------
    optimizer : str or type
    params : dict or None

    Returns
    -------
    optimizer : type
    params : dict
    """
    params = dict(params or {})
    if "lr" in params:
        raise ValueError("give the learning rate as lr=..., not in optimizer_params")
    if isinstance(optimizer, str):
        one_of(optimizer, _OPTIMIZERS, "optimizer")
        optimizer = _OPTIMIZERS[optimizer]
    if not issubclass(optimizer, torch.optim.Optimizer) or optimizer in _UNFIT_OPTIMIZERS:
        raise TypeError(
            "optimizer must be a class of torch.optim, for dense gradients, or a name; got "
            f"{optimizer!r}"
        )
    if not all(isinstance(name, str) for name in params):
        raise TypeError(f"optimizer_params must have names for keys; got {list(params)}")
    return optimizer, params


def resolve_milestones(milestones: Any) -> tuple[int, ...]:
    """Numbers of epochs as whole numbers.

    Parameters
    ----------
    milestones : array-like or None

    Returns
    -------
    milestones : tuple of int

    Raises
    ------
    ValueError
        For anything but whole numbers from 0.
    """
    values = as_array(() if milestones is None else milestones, "lr_milestones")
    numbers = values.dtype.kind in "iuf" and bool((values >= 0).all())
    if values.ndim != 1 or not numbers or not (values == np.floor(values)).all():
        raise ValueError(
            "lr_milestones must be a flat list of whole numbers of epochs, such as [30, 60], or "
            f"None; got {milestones!r}"
        )
    return tuple(int(value) for value in values)


def merge_component_params(estimator: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Turn ``module__x`` and ``optimizer__x`` into new dicts, which no clone shares.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    params : dict
        As given to `set_params`.

    Returns
    -------
    params : dict
        With plain names, and ``attack__x``, which the attack itself understands.
    """
    plain: dict[str, Any] = {}
    merged: dict[str, dict[str, Any]] = {}
    for name, value in params.items():
        component, separator, key = name.partition("__")
        if separator and component in _PARAMS_OF:
            merged.setdefault(_PARAMS_OF[component], {})[key] = value
        else:
            plain[name] = value
    for name, added in merged.items():
        present = plain.get(name, getattr(estimator, name))
        if isinstance(present, list):
            plain[name] = [{**(entry or {}), **added} for entry in present]
        else:
            plain[name] = {**(present or {}), **added}
    return {**_default_components(estimator, plain), **plain}


def _default_components(estimator: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Components that are None so far, for the parameters that name something inside them."""
    defaults: dict[str, Any] = {}
    for component, example in _EXAMPLES.items():
        inner = next((name for name in params if name.startswith(f"{component}__")), None)
        if inner is None or component in params or not hasattr(estimator, component):
            continue
        present = getattr(estimator, component)
        if present is not None and not isinstance(present, int):
            continue
        default = estimator._default_attack() if component == "attack" else None
        if default is None:
            raise ValueError(
                f"{inner} cannot be set: {component}={present!r} has no parameters; set "
                f"{component} first, such as {component}={example}"
            )
        defaults[component] = default
    return defaults
