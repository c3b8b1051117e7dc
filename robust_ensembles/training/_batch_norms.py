"""What torch's batch normalisation does before it computes, for layers that compute otherwise."""

from __future__ import annotations

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


def uses_batch_statistics(layer: _BatchNorm) -> bool:
    """Whether a layer normalises by the statistics of its batch now.

    Parameters
    ----------
    layer : _BatchNorm
    """
    return layer.training or (layer.running_mean is None and layer.running_var is None)


def next_update(layer: _BatchNorm) -> tuple[float, Tensor | None, Tensor | None]:
    """How a forward pass moves a layer's running statistics, which counts the batch.

    Parameters
    ----------
    layer : _BatchNorm

    Returns
    -------
    momentum : float
        Share of the new statistics.
    running_mean, running_var : Tensor of shape (n_channels,) or None
        To be read or, in train mode, moved. None if there are none, or not to be moved.
    """
    momentum = layer.momentum or 0.0
    if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:
            momentum = 1.0 / float(layer.num_batches_tracked)
    tracked = not layer.training or layer.track_running_stats
    running = (layer.running_mean, layer.running_var) if tracked else (None, None)
    return momentum, *running
