"""Members whose forward passes processes share out, while all else sees whole batches.

Batches, attacks, losses and what a method trains beside its members are computed by every process
on the whole batch. Only a member's forward pass is not: each process runs its own rows and gets
those of the others back. So input gradients, their derivatives and attacks inside the step are
those of the whole batch, and no method needs to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor, nn

from .._exchange import exchanged
from ..modules import Ensemble
from ..training._distributed._share import Share, running
from ..training._distributed._synchronized import batch_norms, synchronized_forward
from .ranks import current_ranks, sum_tensors


class _LastTaken:
    """What was taken of the last batch, so that members that see one batch share its gradient.

    That is then gathered once, and not for each member.
    """

    def __init__(self) -> None:
        self._key: tuple[Tensor, int, bool] | None = None
        self._own: Tensor | None = None

    def take(self, share: Share, x: Tensor) -> Tensor:
        """What this process computes with."""
        tracked = torch.is_grad_enabled() and x.requires_grad
        last = self._key
        same = last is not None and last[0] is x and last[1:] == (x._version, tracked)
        if self._own is None or not same:
            self._key, self._own = (x, x._version, tracked), share.take(x)
        return self._own


_LAST: ContextVar[_LastTaken] = ContextVar("last_taken")


@contextmanager
def sharded(module: Ensemble) -> Iterator[None]:
    """Share out the members' forward passes among the processes, for as long as the context lasts.

    Nothing happens if this process trains alone.

    Parameters
    ----------
    module : Ensemble
        Batch normalisations in it that are in train mode use the statistics of all rows.
    """
    if current_ranks() is None:
        yield
        return
    # partials, not closures: copies of the layers have to call themselves
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {
        layer: partial(synchronized_forward, layer, layer.forward) for layer in batch_norms(module)
    }
    for member in module:
        forwards[member] = partial(_sharded_forward, member.forward)
    token = _LAST.set(_LastTaken())
    try:
        with exchanged(forwards):
            yield
    finally:
        _LAST.reset(token)


def _sharded_forward(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    ranks = current_ranks()
    if ranks is None or not len(x):  # nothing to share out
        return forward(x)
    with running(Share(len(x), ranks)) as share:
        return share.give(forward(_LAST.get().take(share, x)))


def sum_gradients(module: Ensemble, auxiliary: nn.Module | None) -> None:
    """Make the gradients those of the whole batch, after a backward pass.

    Nothing happens if this process trains alone.

    Parameters
    ----------
    module : Ensemble
        Each process has the gradients of its own rows' loss.
    auxiliary : nn.Module or None
        All processes have all of its gradient, up to what a GPU may compute in another order.
    """
    ranks = current_ranks()
    if ranks is None:
        return
    repeated = _gradients(auxiliary) if auxiliary is not None else []
    if ranks.rank > 0:  # so the sum is the first one's, and nobody drifts away
        for gradient in repeated:
            gradient.zero_()
    sum_tensors([*_gradients(module), *repeated])


def _gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]
