"""Batch normalisation and convolution whose gradient is cheap to differentiate once more.

The methods that penalise input gradients run backward through a backward pass. Torch's own second
derivative of batch normalisation is a long chain of elementwise operations, and that of a
convolution permutes its operands; here both are closed forms around the fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ._asked import Gradients, asked, total
from ._fast_batch_norm import FastBatchNorm

_aten = torch.ops.aten


@contextmanager
def fast_double_backward(module: nn.Module) -> Iterator[nn.Module]:
    """Give the layers of a module a fast double backward, for as long as the context lasts.

    Values, gradients, second derivatives and running statistics are those of torch, up to
    rounding; third derivatives raise torch's RuntimeError. A graph made inside may be
    differentiated outside. Only `forward` of the layers is exchanged, so parameters, buffers,
    hooks and `state_dict` are as they were.

    Parameters
    ----------
    module : nn.Module
        Its `nn.Conv2d`, `nn.BatchNorm1d` and `nn.BatchNorm2d` layers are accelerated, other
        layers and those with a forward pass of their own left alone. A layer computes as usual
        where its input needs no gradient and under autocast.

    Yields
    ------
    module : nn.Module
        The same.
    """
    exchanged: list[nn.Module] = []
    try:
        for layer in module.modules():
            forward = _fast_forward(layer)
            if forward is not None:
                vars(layer)["forward"] = forward
                exchanged.append(layer)
        yield module
    finally:
        for layer in exchanged:
            vars(layer).pop("forward", None)


def _fast_forward(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Forward pass to exchange a layer's own for; None where that is not torch's.

    A partial, not a closure: copies of the layer, made meanwhile, have to call themselves.
    """
    kind = type(layer)
    if "forward" in vars(layer):
        return None
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        if kind.forward is nn.BatchNorm2d.forward:
            return partial(_batch_norm_forward, layer)
    elif isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros":
        inner = getattr(kind, "_conv_forward", None)
        plain = kind.forward is nn.Conv2d.forward and inner is nn.Conv2d._conv_forward
        # "same" may pad one side more than the other, which the kernel cannot
        if plain and not isinstance(layer.padding, str):
            return partial(_conv_forward, layer)
    return None


def _pays(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether there may be a second derivative, of operands of one type."""
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and not torch.is_autocast_enabled(x.device.type)
        and all(p is None or p.dtype == x.dtype for p in parameters)
    )


def _batch_norm_forward(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> Tensor:
    of_batch = layer.training or (layer.running_mean is None and layer.running_var is None)
    single = of_batch and x.numel() == x.shape[1]  # torch has the error message for that
    if single or not _pays(x, layer.weight, layer.running_mean):
        return type(layer).forward(layer, x)
    layer._check_input_dim(x)
    momentum = layer.momentum or 0.0
    if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:
            momentum = 1.0 / float(layer.num_batches_tracked)
    tracked = not layer.training or layer.track_running_stats
    running = (layer.running_mean, layer.running_var) if tracked else (None, None)
    y: Tensor = FastBatchNorm.apply(
        x, layer.weight, layer.bias, *running, of_batch, momentum, layer.eps
    )
    return y


class _Geometry(NamedTuple):
    """What `nn.Conv2d` is made of, apart from its parameters."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y: Tensor = _aten.convolution(x, weight, bias, *self[:3], False, (0, 0), self.groups)
        return y

    def backward(
        self, grad_y: Tensor, x: Tensor, weight: Tensor, mask: Sequence[bool]
    ) -> Gradients:
        sizes = [len(weight)] if mask[2] else None
        result: Gradients = _aten.convolution_backward(
            grad_y, x, weight, sizes, *self[:3], False, (0, 0), self.groups, list(mask)
        )
        return result


def _conv_forward(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if x.ndim != 4 or not _pays(x, layer.weight, layer.bias):
        return type(layer).forward(layer, x)
    padding: Any = layer.padding
    geometry = _Geometry(layer.stride, padding, layer.dilation, layer.groups)
    y: Tensor = _Conv.apply(x, layer.weight, layer.bias, geometry)
    return y


class _Conv(Function):
    """Convolution of x with a weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: _Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return geometry.convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        mask = asked(ctx, 3)
        if torch.is_grad_enabled():
            return (*_ConvBackward.apply(grad_y, x, weight, ctx.geometry, mask), None)
        return (*ctx.geometry.backward(grad_y, x, weight, mask), None)


class _ConvBackward(Function):
    """Gradients of a convolution by its input, weight and bias, each bilinear in two operands."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_y: Tensor,
        x: Tensor,
        weight: Tensor,
        geometry: _Geometry,
        mask: tuple[bool, ...],
    ) -> Gradients:
        ctx.save_for_backward(grad_y, x, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        return geometry.backward(grad_y, x, weight, mask)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, v_weight: Tensor | None, v_bias: Tensor | None) -> Any:
        grad_y, x, weight = ctx.saved_tensors
        geometry = ctx.geometry
        by_grad_y, by_x, by_weight = None, None, None
        wanted = asked(ctx, 3)
        if wanted[0]:
            terms = [] if v is None else [geometry.convolve(v, weight)]
            if v_weight is not None:
                terms.append(geometry.convolve(x, v_weight))
            if v_bias is not None:
                terms.append(v_bias.view(-1, 1, 1).expand_as(grad_y))
            by_grad_y = total(terms)
        if wanted[1] and v_weight is not None:
            by_x = geometry.backward(grad_y, x, v_weight, (True, False, False))[0]
        if wanted[2] and v is not None:
            by_weight = geometry.backward(grad_y, v, weight, (False, True, False))[1]
        return by_grad_y, by_x, by_weight, None, None
