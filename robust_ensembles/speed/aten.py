"""The one door to private parts of torch: ATen's kernels, and what a running backward pass wants.

torch promises nothing of these: what a new release changes is mended here. The kernels are those
that torch's own layers come to, given directly because autograd functions of ours need them one by
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]

_aten = torch.ops.aten


def rectify(x: Tensor, slope: float) -> Tensor:
    """A tensor where it is positive, else itself times the slope."""
    # a ReLU of its own: 0 times infinity is no number
    y: Tensor = _aten.leaky_relu(x, slope) if slope else _aten.relu(x)
    return y


def rectify_backward(grad_y: Tensor, kept: Tensor, slope: float) -> Tensor:
    """A gradient where another tensor is positive, else times the slope."""
    grad_x: Tensor = (
        _aten.leaky_relu_backward(grad_y, kept, slope, False)
        if slope
        else _aten.threshold_backward(grad_y, kept, 0)
    )
    return grad_x


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolution in as many dimensions as the weight has."""
    y: Tensor = _aten.convolution(x, weight, bias, stride, padding, dilation, False, (0,), groups)
    return y


def convolution_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mask: Sequence[bool],
) -> Gradients:
    """Gradients of a convolution by x, weight and bias, as far as the mask asks for them."""
    sizes = [len(weight)] if mask[2] else None
    gradients: Gradients = _aten.convolution_backward(
        grad_y, x, weight, sizes, stride, padding, dilation, False, (0,), groups, list(mask)
    )
    return gradients


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    of_batch: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch normalisation, and the mean and inverse standard deviation of each channel."""
    y, mean, invstd = _aten.native_batch_norm(
        x, weight, bias, running_mean, running_var, of_batch, momentum, eps
    )
    return y, mean, invstd


def batch_norm_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    of_batch: bool,
    mask: Sequence[bool],
) -> Gradients:
    """Gradients of batch normalisation by x, weight and bias, as far as the mask asks for them.

    Parameters
    ----------
    grad_y, x : Tensor of shape (n_samples, n_channels, ...)
    weight : Tensor of shape (n_channels,) or None
    mean, invstd : Tensor of shape (n_channels,)
        What x is normalised by.
    of_batch : bool
        Whether they depend on x.
    mask : sequence of three bools

    Returns
    -------
    gradients : tuple of three Tensors or None
    """
    if of_batch:
        four: Gradients = (None, None, mean, invstd)
    else:  # the kernel takes a variance; eps = 0 gives back the inverse root
        four = (mean, invstd.pow(-2), None, None)
    gradients: Gradients = _aten.native_batch_norm_backward(
        grad_y, x, weight, *four, of_batch, 0.0, list(mask)
    )
    return gradients


def needed_gradients(ctx: Any, n: int) -> tuple[bool, ...]:
    """Which of a node's first inputs the running backward pass wants a gradient of.

    `needs_input_grad` is fixed in the forward pass: by it, a gradient by the input alone would
    cost those of all parameters too.

    Parameters
    ----------
    ctx : torch.autograd.function.FunctionCtx
    n : int
        How many inputs.

    Returns
    -------
    mask : tuple of n bools
    """
    return tuple(
        ctx.needs_input_grad[i] and _will_execute(ctx.next_functions[i][0]) for i in range(n)
    )


def _will_execute(node: Any) -> bool:
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except (AttributeError, RuntimeError):
        # torch does not tell for a leaf that `autograd.grad` is asked for, and the function is
        # private: without it nothing is skipped, and the result is the same
        return True
