"""Private parts of torch: ATen kernels, and the gradients that a running backward pass needs.

torch gives no guarantees for these, so changes of a new release are handled here. The kernels are
those that torch's own layers call; custom autograd functions need them individually.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]

_aten = torch.ops.aten


def rectify(x: Tensor, slope: float) -> Tensor:
    """Leaky ReLU with a negative slope."""
    # slope 0 separately: 0 times infinity is NaN
    y: Tensor = _aten.leaky_relu(x, slope) if slope else _aten.relu(x)
    return y


def rectify_backward(grad_y: Tensor, kept: Tensor, slope: float) -> Tensor:
    """Gradient of `rectify`: scaled by the slope where `kept` is not positive."""
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
    """Convolution in the number of dimensions of the weight."""
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
    """Gradients of a convolution by x, weight and bias, where the mask is true."""
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
    """Gradients of batch normalisation by x, weight and bias, where the mask is true.

    Parameters
    ----------
    grad_y, x : Tensor of shape (n_samples, n_channels, ...)
    weight : Tensor of shape (n_channels,) or None
    mean, invstd : Tensor of shape (n_channels,)
        Statistics that normalise x.
    of_batch : bool
        Whether the statistics depend on x.
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
    """Whether the running backward pass needs the gradient of each of a node's first inputs.

    `needs_input_grad` is fixed in the forward pass: with it, a gradient by the input alone would
    also compute those of all parameters.

    Parameters
    ----------
    ctx : torch.autograd.function.FunctionCtx
    n : int
        Number of inputs.

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
        # torch raises for a leaf given to `autograd.grad`, and the function is private: without
        # it, nothing is skipped, and the result is the same
        return True
