"""Convolution, batch normalisation and ReLU with a fast double backward pass.

Methods that penalise input gradients differentiate a backward pass. Torch's own second derivative
of batch normalisation is a long chain of elementwise operations, and that of a convolution permutes
its operands; here both are closed forms based on the fused kernels. That of a ReLU is zero, which
torch writes into memory and adds.
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
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .._system import log_once
from ..modules.layers import next_update, patched_forwards, uses_batch_statistics
from .aten import (
    Gradients,
    convolution,
    convolution_backward,
    needed_gradients,
    rectify,
    rectify_backward,
)
from .batch_norm import FastBatchNorm, total

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def fast_double_backward(module: nn.Module) -> Iterator[nn.Module]:
    """Give the layers of a module a fast double backward pass within the context.

    Values, gradients, second derivatives and running statistics are those of torch, up to
    rounding; third derivatives raise torch's RuntimeError. A graph made inside may be
    differentiated outside. Only `forward` of the layers is replaced, so parameters, buffers,
    hooks and `state_dict` are unchanged.

    Parameters
    ----------
    module : nn.Module
        Its convolutions, batch normalisations and ReLUs are accelerated; other layers are left
        unchanged, as are convolutions and normalisations of another kind, which are logged. A layer
        computes as usual if its input needs no gradient, and under autocast.

    Yields
    ------
    module : nn.Module
        The same.
    """
    forwards = {layer: _fast_forward(layer) for layer in module.modules()}
    with patched_forwards(
        {layer: forward for layer, forward in forwards.items() if forward is not None}
    ):
        yield module


def _fast_forward(layer: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Replacement of a layer's forward pass; None if this is not torch's own.

    A partial, not a closure: copies of the layer made in the meantime must call themselves.
    """
    if "forward" in vars(layer):
        return None
    if isinstance(layer, (nn.ReLU, nn.LeakyReLU)):
        return _fast_rectifier(layer)
    if not isinstance(layer, (_BatchNorm, _ConvNd)):
        return None
    # the three batch normalisation classes share one forward pass, each convolution has its own
    if isinstance(layer, _BATCH_NORMS) and type(layer).forward is nn.BatchNorm2d.forward:
        return partial(_batch_norm_forward, layer)
    if isinstance(layer, _CONVOLUTIONS) and layer.padding_mode == "zeros":
        base = next(kind for kind in _CONVOLUTIONS if isinstance(layer, kind))
        own = type(layer).forward, type(layer)._conv_forward
        padding = _both_sides(layer)
        if own == (base.forward, base._conv_forward) and padding is not None:
            geometry = _Geometry(layer.stride, padding, layer.dilation, layer.groups)
            return partial(_conv_forward, layer, geometry)
    log_once(f"{layer} has no fast double backward, so torch's own is used for it")
    return None


def _fast_rectifier(layer: nn.ReLU | nn.LeakyReLU) -> Callable[[Tensor], Tensor] | None:
    base = nn.ReLU if isinstance(layer, nn.ReLU) else nn.LeakyReLU
    slope = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
    if type(layer).forward is not base.forward or layer.inplace or slope < 0:
        return None
    return partial(_rectifier_forward, layer, slope)


def _rectifier_forward(layer: nn.Module, slope: float, x: Tensor) -> Tensor:
    if not _pays(x):
        plain: Tensor = type(layer).forward(layer, x)
        return plain
    y: Tensor = FastRectifier.apply(x, slope)
    return y


def _both_sides(layer: _ConvNd) -> Sequence[int] | None:
    """Padding at both sides; None if it is not symmetric."""
    if not isinstance(layer.padding, str):
        return layer.padding
    sides = layer._reversed_padding_repeated_twice[::-1]
    return sides[::2] if sides[::2] == sides[1::2] else None


def _pays(x: Tensor, *parameters: Tensor | None) -> bool:
    """Whether a second derivative is possible, with operands of one dtype."""
    return (
        torch.is_grad_enabled()
        and x.requires_grad
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(x.device.type)
        and all(p is None or p.dtype == x.dtype for p in parameters)
    )


def _batch_norm_forward(layer: _BatchNorm, x: Tensor) -> Tensor:
    of_batch = uses_batch_statistics(layer)
    single = of_batch and x.numel() == x.shape[1]  # torch has the error message for that
    if single or not _pays(x, layer.weight, layer.running_mean):
        return type(layer).forward(layer, x)
    layer._check_input_dim(x)
    momentum, *running = next_update(layer)
    y: Tensor = FastBatchNorm.apply(
        x, layer.weight, layer.bias, *running, of_batch, momentum, layer.eps
    )
    return y


class _Geometry(NamedTuple):
    """Settings of a convolution other than its parameters."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return convolution(x, weight, bias, *self)

    def backward(
        self, grad_y: Tensor, x: Tensor, weight: Tensor, mask: Sequence[bool]
    ) -> Gradients:
        return convolution_backward(grad_y, x, weight, *self, mask)


def _conv_forward(layer: _ConvNd, geometry: _Geometry, x: Tensor) -> Tensor:
    if x.ndim != layer.weight.ndim or not _pays(x, layer.weight, layer.bias):
        plain: Tensor = type(layer).forward(layer, x)
        return plain
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
        mask = needed_gradients(ctx, 3)
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
        wanted = needed_gradients(ctx, 3)
        if wanted[0]:
            terms = [] if v is None else [geometry.convolve(v, weight)]
            if v_weight is not None:
                terms.append(geometry.convolve(x, v_weight))
            if v_bias is not None:
                terms.append(v_bias.view(-1, *[1] * (x.ndim - 2)).expand_as(grad_y))
            by_grad_y = total(terms)
        if wanted[1] and v_weight is not None:
            by_x = geometry.backward(grad_y, x, v_weight, (True, False, False))[0]
        if wanted[2] and v is not None:
            by_weight = geometry.backward(grad_y, v, weight, (False, True, False))[1]
        return by_grad_y, by_x, by_weight, None, None


class FastRectifier(Function):
    """Like `torch.nn.functional.leaky_relu` with a slope of 0 (ReLU) or more.

    As in torch, a ReLU keeps its output and a leaky ReLU its input: either has the sign, and a
    later layer may change the other in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        """See the class; called by torch."""
        y = rectify(x, slope)
        ctx.save_for_backward(x if slope else y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        """See the class; called by torch."""
        (kept,) = ctx.saved_tensors
        # the slope does not change with x
        return _Slopes.apply(grad_y, kept.detach(), ctx.slope), None


class _Slopes(Function):
    """A gradient times 1 where a tensor is positive, else times the slope."""

    @staticmethod
    def forward(ctx: Any, grad_y: Tensor, kept: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.slope = slope
        return rectify_backward(grad_y, kept, slope)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return rectify_backward(v, kept, ctx.slope), None, None
