"""Layers and argument checks that the networks of the package share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._checks import one_of


class Normalize(nn.Module):
    """Subtract a mean and divide by a standard deviation, channel by channel.

    As a layer of the network, the normalisation is differentiated by attacks, so inputs, their
    bounds and `eps` all stay in the scale of the data.

    Parameters
    ----------
    mean : float or sequence of float
        Mean of each channel, in the scale of the input; one number applies to all channels.
    std : float or sequence of float
        Standard deviation of each channel, above 0; one number applies to all channels.

    Attributes
    ----------
    mean, std : Tensor of shape (n_channels,)
        Buffers: they move with the module and are in its ``state_dict``.

    Raises
    ------
    ValueError
        If a value is not finite, a `std` is not above 0 or the lengths of `mean` and `std`
        differ; in the forward pass, if the input has another number of channels.

    Examples
    --------
    >>> import torch
    >>> from robust_ensembles.modules import Normalize
    >>> Normalize(0.5, 0.25)(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        mean_values, std_values = _as_vector(mean, "mean"), _as_vector(std, "std")
        if not bool((std_values > 0).all()):
            raise ValueError(f"std must be above 0 in every channel, got {std!r}")
        sizes = {len(mean_values), len(std_values)} - {1}
        if len(sizes) > 1:
            raise ValueError(
                f"mean has {len(mean_values)} channels and std has {len(std_values)}; "
                f"give both the same length, or one number for all channels"
            )
        device = torch.empty(0).device  # get_default_device of torch 2.6 misses the context
        self.register_buffer("mean", mean_values.to(device))
        self.register_buffer("std", std_values.to(device))

    @property
    def n_channels(self) -> int:
        """Channels that the layer expects; 1 means any number."""
        return max(len(self.mean), len(self.std))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a batch.

        Parameters
        ----------
        x : Tensor of shape (n, channels, ...)
            Images, or features of shape (n, n_features).

        Returns
        -------
        Tensor of the shape of `x`
            ``(x - mean) / std``.
        """
        # without this check, broadcasting would silently turn one channel into several
        if x.ndim < 2 or self.n_channels not in (1, x.shape[1]):
            raise ValueError(
                f"Normalize has {self.n_channels} channels, but its input has shape "
                f"{tuple(x.shape)}; the channels must be on axis 1"
            )
        trailing = (1,) * (x.ndim - 2)
        return (x - self.mean.view(1, -1, *trailing)) / self.std.view(1, -1, *trailing)

    def extra_repr(self) -> str:
        """Mean and standard deviation, for ``repr``."""
        return f"mean={self.mean.tolist()}, std={self.std.tolist()}"


def _as_vector(values: float | Sequence[float], name: str) -> Tensor:
    """Return one or more numbers as a finite vector of the default float dtype."""
    try:
        # through Python floats, so that NumPy arrays and integers get the same dtype
        items = [float(v) for v in values] if isinstance(values, Iterable) else [float(values)]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be a number or a flat sequence of numbers, got {values!r}"
        ) from error
    # the checks need values, which the default device may not have (meta)
    vector = torch.tensor(items, dtype=torch.get_default_dtype(), device="cpu")
    if not items or not bool(torch.isfinite(vector).all()):
        raise ValueError(f"{name} must hold one or more finite numbers, got {values!r}")
    return vector


Channelwise: TypeAlias = float | Sequence[float]
NormalizeParam: TypeAlias = tuple[Channelwise, Channelwise] | None

# negative slopes: ReLU is the leaky ReLU of slope 0, which also gives its Kaiming gain
_SLOPES: dict[str, float] = {"relu": 0.0, "leaky_relu": 0.1}


def activation_slope(activation: str) -> float:
    """Negative slope of the activation called `activation`."""
    one_of(activation, _SLOPES, "activation")
    return _SLOPES[activation]


def make_activation(activation: str) -> nn.Module:
    """Activation layer, not in place (double backward and hooks need its input)."""
    slope = activation_slope(activation)
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


def check_size(value: Any, name: str) -> int:
    """Return `value` as an int; raise unless it is a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number above 0, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a whole number above 0, got {value!r}")
    return int(value)


def check_input_shape(input_shape: Any, *, owner: str, images: bool = False) -> tuple[int, ...]:
    """Return `input_shape` as a tuple of ints; with `images`, of (channels, height, width)."""
    if isinstance(input_shape, str) or not isinstance(input_shape, Sequence):
        raise TypeError(
            f"input_shape must be a tuple of whole numbers without the batch axis, "
            f"such as (3, 32, 32), got {input_shape!r}"
        )
    shape = tuple(check_size(size, "each entry of input_shape") for size in input_shape)
    if not shape:
        raise ValueError("input_shape is empty; give the shape of one sample, such as (3, 32, 32)")
    if images and len(shape) != 3:
        raise ValueError(
            f"{owner} takes images: input_shape must be (channels, height, width), got {shape}; "
            f"reshape the samples, or use MLP, which takes any shape"
        )
    return shape


def make_normalize(normalize: NormalizeParam, channels: int) -> nn.Module:
    """Return the first layer of a network: `Normalize`, or an identity if `normalize` is None."""
    if normalize is None:
        return nn.Identity()
    if not isinstance(normalize, Sequence) or len(normalize) != 2:
        raise ValueError(
            f"normalize must be None or a pair (mean, std), such as (0.5, 0.25), got {normalize!r}"
        )
    layer = Normalize(*normalize)
    if layer.n_channels not in (1, channels):
        raise ValueError(
            f"normalize has {layer.n_channels} channels, the input has {channels}; "
            f"give one number for all channels or one for each"
        )
    return layer


def make_embedding(n_features: int, embedding_size: int) -> nn.Linear:
    """Linear layer to the embedding, whose size is checked."""
    return nn.Linear(n_features, check_size(embedding_size, "embedding_size"))


def uses_batch_statistics(layer: _BatchNorm) -> bool:
    """Whether a layer normalises by batch statistics in its present mode.

    Parameters
    ----------
    layer : _BatchNorm
    """
    return layer.training or (layer.running_mean is None and layer.running_var is None)


def next_update(layer: _BatchNorm) -> tuple[float, Tensor | None, Tensor | None]:
    """Parameters of a layer's next update of its running statistics; counts the batch.

    Parameters
    ----------
    layer : _BatchNorm

    Returns
    -------
    momentum : float
        Weight of the new statistics.
    running_mean, running_var : Tensor of shape (n_channels,) or None
        Statistics to use or, in train mode, to update. None if there are none, or if they are not
        to be updated.
    """
    momentum = layer.momentum or 0.0
    if layer.training and layer.track_running_stats and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if layer.momentum is None:
            momentum = 1.0 / float(layer.num_batches_tracked)
    tracked = not layer.training or layer.track_running_stats
    running = (layer.running_mean, layer.running_var) if tracked else (None, None)
    return momentum, *running


@contextmanager
def patched_forwards(forwards: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Replace the forward passes of layers within the context.

    Parameters, buffers, hooks and `state_dict` are unchanged.

    Parameters
    ----------
    forwards : mapping of nn.Module to callable
        The replacement of each layer's `forward`. If layers may be copied in the meantime, use a
        `functools.partial` of the layer and not a closure: copies must call themselves.
    """
    own = {layer: vars(layer).get("forward") for layer in forwards}
    try:
        for layer, forward in forwards.items():
            vars(layer)["forward"] = forward
        yield
    finally:
        for layer, before in own.items():
            vars(layer).pop("forward", None)
            if before is not None:
                vars(layer)["forward"] = before
