"""Techniques that make training steps faster without changing their result, and their selection.

`resolve_acceleration` chooses the techniques measured to be faster on a device, and `accelerated`
applies them to modules. A technique whose benefit has not been measured yet is in
`robust_ensembles.contrib`, in a file of its name, and is imported by `opt_in` if `accelerate`
names it. bfloat16 arithmetic, which does change results, is `mixed_precision`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import one_of
from .._registry import Technique
from .._system import log_once
from ..modules import Ensemble
from ..modules.layers import patched_forwards
from .double_backward import fast_double_backward

# "auto" uses the techniques measured to be faster on a kind of device
_DECLARED = {
    technique.name: technique
    for technique in (
        Technique("double_backward", auto=("any",), second_order_only=True),
        Technique("channels_last", auto=("cpu",)),
        Technique("fused_optimizer", auto=("cpu", "cuda")),
        Technique("flush_denormal", auto=("cpu",)),
        Technique("vmap"),
        Technique("cuda_graph", needs="cuda"),
    )
}

OPT_IN = tuple(name for name, technique in _DECLARED.items() if not technique.auto)
"""Techniques that are only used if `accelerate` names them."""

TECHNIQUES = tuple(_DECLARED)
"""Names for `accelerate` besides ``"auto"`` and ``"none"``."""


def resolve_acceleration(
    accelerate: str | Sequence[str], device: torch.device, *, second_order: bool
) -> frozenset[str]:
    """Techniques to use on a device.

    Parameters
    ----------
    accelerate : {"auto", "none"}, the name of a technique, or a sequence of names
        ``"auto"`` uses those measured to be faster on this kind of device.
    device : torch.device
    second_order : bool
        Whether the loss contains input gradients.

    Returns
    -------
    techniques : frozenset of str

    Raises
    ------
    ValueError
        For a name that does not exist, or one that needs another device.
    """
    if accelerate == "auto":
        return frozenset(
            name
            for name, technique in _DECLARED.items()
            if technique.is_automatic(device.type, second_order=second_order)
        )
    if accelerate == "none":
        return frozenset()
    names = [accelerate] if isinstance(accelerate, str) else list(accelerate)
    for name in names:
        one_of(name, TECHNIQUES, 'accelerate, if neither "auto" nor "none",')
        needs = _DECLARED[name].needs
        if needs is not None and needs != device.type:
            raise ValueError(
                f"accelerate: {name!r} needs a {needs.upper()} device, but the device is "
                f"{device}; leave it out, or use accelerate='auto'"
            )
    return frozenset(names)


def opt_in(technique: str) -> Any:
    """Import the module of an opt-in technique.

    Parameters
    ----------
    technique : str
        One of `OPT_IN`.

    Returns
    -------
    module : module
    """
    return importlib.import_module(f"..contrib.{technique}", __package__)


@contextmanager
def accelerated(
    techniques: frozenset[str], modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Apply acceleration techniques to modules within the context.

    Parameters
    ----------
    techniques : frozenset of str
    modules : sequence of nn.Module
    optimizer : torch.optim.Optimizer
        The optimizer of their parameters; its state gets their memory layout.
    """
    vectorized = _vectorized(techniques, modules)
    with ExitStack() as stack:
        if vectorized is not None:
            stack.enter_context(opt_in("vmap").vectorized_members(vectorized))
        if "double_backward" in techniques:
            # torch cannot vectorise custom autograd functions
            for module in [m for m in modules if m is not vectorized]:
                stack.enter_context(fast_double_backward(module))
        if "channels_last" in techniques:
            stack.enter_context(_channels_last(modules, optimizer))
        if "flush_denormal" in techniques:
            stack.enter_context(_flushed_denormals())
        yield


def _vectorized(techniques: frozenset[str], modules: Sequence[nn.Module]) -> Ensemble | None:
    """The ensemble, if its members shall and can run as one network."""
    ensembles = [module for module in modules if isinstance(module, Ensemble)]
    if "vmap" not in techniques or not ensembles:
        return None
    reason = opt_in("vmap").why_not_vectorized(ensembles[0])
    if reason is None:
        return ensembles[0]
    log_once(f"accelerate: 'vmap' is not used, since {reason}")
    return None


@contextmanager
def _channels_last(
    modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer
) -> Iterator[None]:
    """Convert weights of convolutions to channels-last; activations follow their layout."""
    layers = [layer for module in modules for layer in module.modules()]
    weights = [layer.weight for layer in layers if isinstance(layer, nn.Conv2d)]
    try:
        _lay_out(weights, optimizer, torch.channels_last)
        yield
    finally:
        _lay_out(weights, optimizer, torch.contiguous_format)


def _lay_out(
    weights: Sequence[Tensor], optimizer: torch.optim.Optimizer, layout: torch.memory_format
) -> None:
    for weight in weights:
        weight.data = weight.data.clone(memory_format=layout)
        if weight.grad is not None:
            weight.grad = weight.grad.clone(memory_format=layout)
        # fused steps assume that a weight and its state have the same layout
        state = optimizer.state.get(weight, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = value.clone(memory_format=layout)


@contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Round denormal numbers to zero: processors are slow with them."""
    before = _flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _flushes_denormals() -> bool:
    return bool(torch.tensor(torch.finfo(torch.float32).tiny) / 2 == 0)


def make_optimizer(
    optimizer: type[torch.optim.Optimizer],
    groups: list[dict[str, Any]],
    given: dict[str, Any],
    techniques: frozenset[str],
) -> torch.optim.Optimizer:
    """Make an optimizer, with a fused step if possible and not set otherwise.

    Parameters
    ----------
    optimizer : type
    groups : list of dict
        Parameter groups.
    given : dict
        Arguments of the optimizer.
    techniques : frozenset of str

    Returns
    -------
    optimizer : Optimizer

    Raises
    ------
    TypeError, ValueError
        If it does not accept these arguments, or several groups.
    """
    try:
        return optimizer(groups, **given, **_one_kernel(optimizer, given, techniques))
    except (TypeError, ValueError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"the optimizer {optimizer.__name__} cannot be made with {len(groups)} parameter "
            f"groups and optimizer_params (with lr) {given}: {error}"
        ) from error


def _one_kernel(
    optimizer: type[torch.optim.Optimizer], given: dict[str, Any], techniques: frozenset[str]
) -> dict[str, Any]:
    """Additional arguments for a fused step."""
    ways = {"fused", "foreach", "differentiable", "capturable"}
    fusible = "fused" in inspect.signature(optimizer).parameters and not ways & set(given)
    return {"fused": True} if fusible and "fused_optimizer" in techniques else {}


@contextmanager
def mixed_precision(members: Iterable[nn.Module]) -> Iterator[None]:
    """Let members compute in bfloat16 within the context.

    Weights, inputs and outputs keep their precision, and so do losses, input gradients and updates.

    Parameters
    ----------
    members : iterable of nn.Module
    """
    # partials, not closures: copies of the members must call themselves
    with patched_forwards({member: partial(_in_bfloat16, member.forward) for member in members}):
        yield


def _in_bfloat16(forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return full_precision(forward(x))


def full_precision(x: Tensor) -> Tensor:
    """Convert the output of a layer in mixed precision for use outside the network."""
    return x.float() if x.dtype == torch.bfloat16 else x
