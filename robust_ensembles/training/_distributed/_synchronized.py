"""Batch normalisation over the rows of all processes, differentiable any number of times."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...distributed.collectives import summed
from .._batch_norms import next_update, uses_batch_statistics
from ._share import Share, current_share

# the three plain kinds share one; torch's own synchronised one computes the same
_FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward)


def batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    """The layers of a module that have to look at the whole batch.

    Parameters
    ----------
    module : nn.Module
    """
    return (layer for layer in module.modules() if isinstance(layer, _BatchNorm))


def check_batch_norms(module: nn.Module) -> None:
    """Raise for batch normalisations that cannot be synchronised.

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
    """Forward pass of a batch normalisation inside a member.

    Parameters
    ----------
    layer : _BatchNorm
    plain : callable
        Its forward pass for one process, which serves where running statistics do.
    x : Tensor of shape (n_own, n_channels, ...)

    Returns
    -------
    y : Tensor of the shape of x
        What `layer` would compute from the rows of all processes; running statistics move alike.
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
    """How many values of a channel each process has."""
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

    Each process's mean and the squares around it are sent by one message and then combined:
    sums of squares around zero would lose digits.
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
