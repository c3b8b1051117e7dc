"""ReLU and leaky ReLU without a second derivative: it is zero, and torch computes the zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_aten = torch.ops.aten


class FastRectifier(Function):
    """As `torch.nn.functional.leaky_relu` with a slope of 0 (ReLU) or more.

    Like torch's own, a ReLU keeps its output and a leaky one its input: either tells the sign,
    and what comes next may change the other in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        # a ReLU of its own: 0 times infinity is no number
        y: Tensor = _aten.leaky_relu(x, slope) if slope else _aten.relu(x)
        ctx.save_for_backward(x if slope else y)
        ctx.slope = slope
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        # the slope does not change with x
        return _Slopes.apply(grad_y, kept.detach(), ctx.slope), None


class _Slopes(Function):
    """A gradient times 1 where a tensor is positive, else times the slope."""

    @staticmethod
    def forward(ctx: Any, grad_y: Tensor, kept: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.slope = slope
        return _times_slopes(grad_y, kept, slope)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _times_slopes(v, kept, ctx.slope), None, None


def _times_slopes(gradient: Tensor, kept: Tensor, slope: float) -> Tensor:
    result: Tensor = (
        _aten.leaky_relu_backward(gradient, kept, slope, False)
        if slope
        else _aten.threshold_backward(gradient, kept, 0)
    )
    return result
