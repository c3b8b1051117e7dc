"""Differentiable exchanges between processes, to any order.

A tensor is either replicated, the same on all processes, or each process has its own rows of it.
Results of replicated tensors alone are computed by every process, and so are their gradients: they
are replicated too. The gradient of a process's own rows is local. So the gradient of `own_rows` is
`all_rows` of a gradient, and vice versa; nothing is summed twice. All processes must run the same
exchanges in the same order, in their backward passes too: they do if they build the same graph,
since autograd follows the order in which the graph was built.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from .ranks import Ranks


def row_counts(n_rows: int, size: int) -> list[int]:
    """Number of rows of each process: equal, or one more for the first processes."""
    share, rest = divmod(n_rows, size)
    return [share + (rank < rest) for rank in range(size)]


def own_rows(x: Tensor, ranks: Ranks) -> Tensor:
    """The rows of this process.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
        Replicated.
    ranks : Ranks

    Returns
    -------
    own : Tensor of shape (n_own, ...)
        n_own is an entry of `row_counts`.
    """
    own: Tensor = _OwnRows.apply(x, ranks)
    return own


def all_rows(own: Tensor, n_rows: int, ranks: Ranks) -> Tensor:
    """The rows of all processes.

    Parameters
    ----------
    own : Tensor of shape (n_own, ...)
    n_rows : int
        Number of rows of all processes.
    ranks : Ranks

    Returns
    -------
    x : Tensor of shape (n_rows, ...)
        Replicated.
    """
    x: Tensor = _AllRows.apply(own, n_rows, ranks)
    return x


def summed(own: Tensor, ranks: Ranks) -> Tensor:
    """The sum over the processes, each of which then uses it on its own rows.

    So the gradient of the sum is local to each process, and is summed as well.

    Parameters
    ----------
    own : Tensor of any shape
        The same shape everywhere.
    ranks : Ranks

    Returns
    -------
    total : Tensor of the same shape
    """
    total: Tensor = _Summed.apply(own, ranks)
    return total


class _OwnRows(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.n_rows, ctx.ranks = len(x), ranks
        return x.tensor_split(ranks.size)[ranks.rank].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_rows(grad, ctx.n_rows, ctx.ranks), None


class _AllRows(Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, n_rows: int, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        counts = row_counts(n_rows, ranks.size)
        # messages of equal size: a row of zeros where others have one more row
        message = own.new_zeros(counts[0], *own.shape[1:])
        message[: len(own)] = own
        received = [torch.empty_like(message) for _ in counts]
        dist.all_gather(received, message)
        return torch.cat([rows[:n] for rows, n in zip(received, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return own_rows(grad, ctx.ranks), None, None


class _Summed(Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return summed(grad, ctx.ranks), None
