"""Faster layers of a frozen module in eval mode, with the same decisions.

Pairs of layers are fused: BatchNorm is folded into the convolution or linear layer before it, and
max pooling is moved before ReLU, which then has fewer values to process. Which layer follows which,
and that nothing else uses the tensor between them, is observed in a forward pass of the module,
whose code may be arbitrary Python. On a CPU, convolutions also get channels-last weights.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..._system import log_once
from ...modules.layers import patched_forwards
from .balls import exact
from .forward import member_logits

Forward = Callable[[Tensor], Tensor]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_FLOATS = (torch.float32, torch.float64)
# logits may differ from the module's own by this many units in the last place of the largest
_ULPS = 4096


class FastEval:
    """Faster replacements for the layers of a frozen module in eval mode, during an attack.

    BatchNorm in eval mode is a multiplication and a sum, which the convolution or linear layer
    before it can absorb; and on a CPU, float32 convolutions are faster with channels-last
    weights. Only `forward` of layers is replaced. If the logits of the trial samples change by more
    than rounding, nothing is replaced; the reason is logged once for each class of module.

    Parameters
    ----------
    module : nn.Module
        Frozen and in eval mode, see `frozen`.
    x : Tensor of shape (n_samples, ...)
        A few trial samples.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self._forwards: dict[nn.Module, Forward] = {}
        layers = plain_layers(module)
        if not len(x) or not any(isinstance(layer, nn.Conv2d | nn.BatchNorm1d) for layer in layers):
            return
        problems = []
        # user code may fail with channels-last, in view(n, -1) for instance
        for channels_last in (True, False):
            try:
                problem = self._prepare(module, layers, x, channels_last=channels_last)
            except RuntimeError as error:
                problem = f"{type(error).__name__}: {error}"
            if problem is None:
                break
            problems.append(problem)
            self._forwards = {}
        if problems:
            log_once(f"attacks on {type(module)} are slower than possible: {problems[0]}")

    def _prepare(
        self, module: nn.Module, layers: list[nn.Module], x: Tensor, *, channels_last: bool
    ) -> str | None:
        """Choose the replacements; return what is wrong with them, if anything."""
        expected, followers = observe(module, layers, x)
        self._forwards = fast_forwards(layers, followers, channels_last=channels_last)
        with self.on(), torch.no_grad():
            found = member_logits(module, x)
        tolerance = _ULPS * torch.finfo(expected.dtype).eps * float(expected.abs().max())
        if torch.allclose(found, expected, rtol=0.0, atol=tolerance, equal_nan=True):
            return None
        return "its outputs change, or are random"

    def __bool__(self) -> bool:
        """Whether any layer is replaced."""
        return bool(self._forwards)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Replace the layers within the context."""
        with patched_forwards(self._forwards):
            yield


def plain_layers(module: nn.Module) -> list[nn.Module]:
    """Layers of a module that compute exactly what torch's layers do.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    layers : list of nn.Module
        Its convolutions, linear layers, BatchNorms, ReLUs and max poolings, except those with
        hooks, parametrisations or their own forward pass, and those in half precision.
    """
    compiled = any(
        isinstance(m, torch.jit.ScriptModule) or hasattr(m, "_orig_mod") for m in module.modules()
    )
    return [] if compiled else [layer for layer in module.modules() if _is_plain(layer)]


def _is_plain(layer: nn.Module) -> bool:
    kind: Any = type(layer)
    if isinstance(layer, _NORMS):
        own = kind.forward is nn.BatchNorm2d.forward and layer.running_var is not None
    elif isinstance(layer, nn.Conv2d):
        own = kind.forward is nn.Conv2d.forward
        own = own and kind._conv_forward is nn.Conv2d._conv_forward
    elif isinstance(layer, nn.MaxPool2d):
        own = kind.forward is nn.MaxPool2d.forward and not layer.return_indices
    else:
        own = kind.forward in (nn.Linear.forward, nn.ReLU.forward)
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks
    if not own or hooked or layer._backward_pre_hooks or "forward" in vars(layer):
        return False
    return not parametrize.is_parametrized(layer) and all(
        p.dtype in _FLOATS for p in layer.parameters()
    )


@torch.no_grad()
def observe(
    module: nn.Module, layers: Sequence[nn.Module], x: Tensor
) -> tuple[Tensor, dict[nn.Module, nn.Module]]:
    """Logits of a module, and the pairs of layers found in the forward pass.

    Parameters
    ----------
    module : nn.Module
    layers : sequence of nn.Module
        See `plain_layers`.
    x : Tensor of shape (n_samples, ...)

    Returns
    -------
    logits : Tensor of shape (n_members, n_samples, n_classes)
    followers : dict of nn.Module to nn.Module
        Maps layers to the BatchNorms that follow them, and ReLUs to the poolings that follow them.
        Both are called once, and only the second uses the output of the first.
    """
    calls: list[_Call] = []

    def recording(layer: nn.Module) -> Forward:
        def forward(x: Tensor) -> Tensor:
            y: Tensor = type(layer).forward(layer, x)
            calls.append(_Call(layer, x, y))
            return y

        return forward

    with patched_forwards({layer: recording(layer) for layer in layers}), _Uses() as uses:
        logits = member_logits(module, x)
    times = Counter(call.layer for call in calls)
    once = [call for call in calls if times[call.layer] == 1]
    makers = {id(call.y): call for call in once}
    followers = {}
    for call in once:
        maker = makers.get(id(call.x))
        if maker is not None and uses.counts[id(call.x)] == 1 and _fits(maker, call.layer):
            followers[maker.layer] = call.layer
    return logits, followers


class _Call(NamedTuple):
    layer: nn.Module
    x: Tensor
    y: Tensor


class _Uses(TorchDispatchMode):
    """Counts how many operations use each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.seen: list[Tensor] = []  # kept, so that their ids stay theirs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        taken = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        self.counts.update(map(id, taken))
        self.seen += taken
        return func(*args, **kwargs)


def _fits(maker: _Call, follower: nn.Module) -> bool:
    """Whether two layers are a pair, with the same channels."""
    if isinstance(maker.layer, nn.ReLU):
        return isinstance(follower, nn.MaxPool2d)
    if isinstance(maker.layer, nn.Conv2d | nn.Linear) and isinstance(follower, _NORMS):
        axes = 4 if isinstance(maker.layer, nn.Conv2d) else 2
        return maker.y.ndim == axes and not follower.training
    return False


def fast_forwards(
    layers: Sequence[nn.Module],
    followers: Mapping[nn.Module, nn.Module],
    *,
    channels_last: bool,
) -> dict[nn.Module, Forward]:
    """Faster forward passes of layers.

    Parameters
    ----------
    layers : sequence of nn.Module
    followers : mapping of nn.Module to nn.Module
        See `observe`.
    channels_last : bool
        Whether convolutions get channels-last weights where this is faster: in float32 on a CPU.

    Returns
    -------
    forwards : dict of nn.Module to callable
        For the layers that become faster.
    """
    forwards: dict[nn.Module, Forward] = {}
    for layer in layers:
        follower = followers.get(layer)
        if isinstance(follower, nn.MaxPool2d):
            forwards[layer] = _identity
            forwards[follower] = partial(_pooled_relu, follower)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            weight, bias = layer.weight.detach(), layer.bias
            if follower is not None:
                weight, bias = _folded(weight, bias, follower)
                forwards[follower] = _identity
            pays = weight.ndim == 4 and weight.dtype == torch.float32 and weight.is_cpu
            if pays and channels_last:
                # `contiguous` would not change weights with one input channel
                weight = weight.to(memory_format=torch.channels_last)
            if follower is not None or (pays and channels_last):
                forwards[layer] = _with_parameters(layer, weight, bias)
    return forwards


def _folded(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias with a BatchNorm in eval mode folded in."""
    scale = (exact(norm.running_var) + norm.eps).rsqrt()
    shift = -norm.running_mean * scale
    if bias is not None:
        shift = shift + bias.detach() * scale
    if norm.weight is not None:
        scale, shift = scale * norm.weight.detach(), shift * norm.weight.detach()
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    per_output = scale.view(-1, *([1] * (weight.ndim - 1)))
    return (weight * per_output).to(weight.dtype), shift.to(weight.dtype)


def _with_parameters(layer: Any, weight: Tensor, bias: Tensor | None) -> Forward:
    """The forward pass of a layer with other parameters."""
    if isinstance(layer, nn.Linear):
        return lambda x: nn.functional.linear(x, weight, bias)
    return lambda x: layer._conv_forward(x, weight, bias)


def _pooled_relu(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    return nn.functional.relu(nn.MaxPool2d.forward(pool, x))


def _identity(x: Tensor) -> Tensor:
    return x
