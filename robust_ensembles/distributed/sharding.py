"""Sharding of the members' forward passes over processes, while all else uses whole batches.

Every process computes batches, attacks, losses and auxiliary modules on the whole batch. Only a
member's forward pass is sharded: each process runs its own rows and receives the outputs of the
others. So input gradients, their derivatives and attacks inside the step are those of the whole
batch, and methods need no change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..modules import Ensemble
from ..modules.layers import next_update, patched_forwards, uses_batch_statistics
from .collectives import all_rows, own_rows, row_counts, summed
from .ranks import Ranks, sum_tensors


@dataclass(frozen=True)
class Share:
    """The rows of this process in a batch that a member is running on.

    If the batch is smaller than the number of processes, a process without rows runs one row of
    padding, so that networks never get an empty batch. Padding does not affect any result.

    Parameters
    ----------
    n_rows : int
        Number of rows of the whole batch.
    ranks : Ranks
    """

    n_rows: int
    ranks: Ranks

    @property
    def counts(self) -> list[int]:
        """Number of rows of each process."""
        return row_counts(self.n_rows, self.ranks.size)

    @property
    def n_own(self) -> int:
        """Number of rows of this process, without padding."""
        return self.counts[self.ranks.rank]

    @property
    def n_run(self) -> int:
        """Number of rows of this process, with padding."""
        return max(self.n_own, 1)

    def take(self, x: Tensor) -> Tensor:
        """The rows of this process, from those of the whole batch."""
        own = own_rows(x, self.ranks)
        return own if self.n_own else torch.cat([own, x.detach()[:1]])

    def give(self, own: Tensor) -> Tensor:
        """The rows of the whole batch, from those computed by each process."""
        if len(own) != self.n_run:
            raise RuntimeError(
                f"a layer or a member returned {len(own)} rows for {self.n_run} samples; "
                "data_parallel needs one for each"
            )
        return all_rows(own[: self.n_own], self.n_rows, self.ranks)


_SHARE: ContextVar[Share | None] = ContextVar("share", default=None)
current_share = _SHARE.get


@contextmanager
def running(share: Share) -> Iterator[Share]:
    """Declare within the context that a member runs on this share."""
    token = _SHARE.set(share)
    try:
        yield share
    finally:
        _SHARE.reset(token)


def gather_rows(own: Tensor) -> Tensor:
    """Gather the rows of all samples from the rows that a member has in each process.

    Parameters
    ----------
    own : Tensor of shape (n_own, ...)

    Returns
    -------
    x : Tensor of shape (n_samples, ...)
        Outside a member's forward pass, the same tensor.
    """
    share = current_share()
    return own if share is None else share.give(own)


def take_own_rows(x: Tensor) -> Tensor:
    """Take the rows that a member computes in this process: the inverse of `gather_rows`.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)

    Returns
    -------
    own : Tensor of shape (n_own, ...)
        Outside a member's forward pass, the same tensor.
    """
    share = current_share()
    return x if share is None else share.take(x)


# the three plain classes share one forward pass; torch's own synchronised class computes the same
_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)


def batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    """The layers of a module that need statistics of the whole batch.

    Parameters
    ----------
    module : nn.Module
    """
    return (layer for layer in module.modules() if isinstance(layer, _BatchNorm))


def check_batch_norms(module: nn.Module) -> None:
    """Raise for batch normalisation layers that cannot be synchronised.

    Parameters
    ----------
    module : nn.Module

    Raises
    ------
    ValueError
    """
    for layer in batch_norms(module):
        if type(layer).forward not in _FORWARDS:
            raise ValueError(
                f"data_parallel: {type(layer).__name__} computes otherwise than torch's batch "
                "normalisation, so it cannot be made to look at the rows of all processes; use "
                "nn.BatchNorm1d, 2d or 3d, or a normalisation of single samples such as "
                "nn.GroupNorm"
            )


def synchronized_forward(layer: _BatchNorm, plain: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Forward pass of a batch normalisation layer inside a member.

    Parameters
    ----------
    layer : _BatchNorm
    plain : callable
        Its forward pass for one process, which is used with running statistics.
    x : Tensor of shape (n_own, n_channels, ...)

    Returns
    -------
    y : Tensor of the shape of x
        What `layer` would compute from the rows of all processes; running statistics likewise.
    """
    share = current_share()
    if share is None or not uses_batch_statistics(layer):
        return plain(x)
    layer._check_input_dim(x)
    wide = x if x.dtype == torch.float64 else x.float()
    counts = _counts(x, share)
    mean, variance = _statistics(wide, counts, share)
    _move_running_statistics(layer, mean.detach(), variance.detach(), sum(counts))
    scale = torch.rsqrt(variance + layer.eps)
    if layer.weight is not None:
        scale = scale * layer.weight
    y = (wide - _of_channels(mean, x)) * _of_channels(scale, x)
    if layer.bias is not None:
        y = y + _of_channels(layer.bias, x)
    return y.to(x.dtype)


def _counts(x: Tensor, share: Share) -> list[int]:
    """Number of values per channel in each process."""
    n_values = x.numel() // x.shape[1]
    if n_values % share.n_run:
        raise RuntimeError(
            f"a batch normalisation got an input of shape {tuple(x.shape)} for {share.n_run} "
            "samples; data_parallel needs as many rows for each"
        )
    counts = [n * (n_values // share.n_run) for n in share.counts]
    if sum(counts) == 1:
        raise ValueError(
            "a batch normalisation needs more than one value per channel when training; got an "
            f"input of shape {tuple(x.shape)}"
        )
    return counts


def _statistics(x: Tensor, counts: list[int], share: Share) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over all processes.

    Each process sends its mean and squared deviations in one message, which are then combined:
    sums of squares around zero would lose precision.
    """
    axes = [0, *range(2, x.ndim)]
    own_mean = x.mean(axes)
    own_squares = (x - _of_channels(own_mean, x)).square().sum(axes)
    place = x.new_zeros(len(counts), 1, 1)
    place[share.ranks.rank] = float(share.n_own > 0)  # padding counts nowhere
    means, squares = summed(place * torch.stack([own_mean, own_squares]), share.ranks).unbind(1)
    weights = x.new_tensor(counts).unsqueeze(1) / sum(counts)
    mean = (weights * means).sum(0)
    variance = squares.sum(0) / sum(counts) + (weights * (means - mean).square()).sum(0)
    return mean, variance


@torch.no_grad()
def _move_running_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor, n: int) -> None:
    momentum, running_mean, running_var = next_update(layer)
    for running, value in ((running_mean, mean), (running_var, variance * (n / (n - 1)))):
        if running is not None:
            running.mul_(1 - momentum).add_(value, alpha=momentum)


def _of_channels(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))


class _Sharding:
    """Shards the members' forward passes, and remembers the rows taken from the last batch.

    So members with the same batch share its gradient, which is then gathered once instead of once
    for each member.

    Parameters
    ----------
    ranks : Ranks
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._key: tuple[Tensor, int, bool] | None = None
        self._own: Tensor | None = None

    def take(self, share: Share, x: Tensor) -> Tensor:
        """The rows of this process."""
        tracked = torch.is_grad_enabled() and x.requires_grad
        last = self._key
        same = last is not None and last[0] is x and last[1:] == (x._version, tracked)
        if self._own is None or not same:
            self._key, self._own = (x, x._version, tracked), share.take(x)
        return self._own


# forward passes look it up here: copying a member copies everything that a partial holds, and
# process groups cannot be copied
_SHARDING: ContextVar[_Sharding | None] = ContextVar("sharding", default=None)


@contextmanager
def sharded(module: Ensemble, ranks: Ranks) -> Iterator[None]:
    """Within the context, shard the members' forward passes over the processes.

    Parameters
    ----------
    module : Ensemble
        Its batch normalisation layers in train mode use the statistics of all rows.
    ranks : Ranks
    """
    # partials, not closures: copies of the layers must call themselves
    forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {
        layer: partial(synchronized_forward, layer, layer.forward) for layer in batch_norms(module)
    }
    for member in module:
        forwards[member] = partial(_sharded_forward, member.forward)
    token = _SHARDING.set(_Sharding(ranks))
    try:
        with patched_forwards(forwards):
            yield
    finally:
        _SHARDING.reset(token)


def _sharded_forward(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    sharding = _SHARDING.get()
    if sharding is None or not len(x):  # another thread, or nothing to share out
        return forward(x)
    with running(Share(len(x), sharding.ranks)) as share:
        return share.give(forward(sharding.take(share, x)))


def sum_gradients(module: nn.Module, auxiliary: nn.Module | None, ranks: Ranks) -> None:
    """After a backward pass, turn the gradients into those of the whole batch.

    Parameters
    ----------
    module : Ensemble
        In each process, its gradients come from the rows of that process.
    auxiliary : nn.Module or None
        In each process, its gradients are complete, up to rounding from another order on a GPU.
    ranks : Ranks
    """
    repeated = _gradients(auxiliary) if auxiliary is not None else []
    if ranks.rank > 0:  # so the sum is the first one's, and nobody drifts away
        for gradient in repeated:
            gradient.zero_()
    sum_tensors([*_gradients(module), *repeated])


def _gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]
