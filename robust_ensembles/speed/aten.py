"""What a running backward pass asks a custom autograd function for."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


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


def total(terms: Sequence[Tensor]) -> Tensor | None:
    """Sum of tensors; None for the sum of none."""
    return reduce(torch.add, terms) if terms else None
