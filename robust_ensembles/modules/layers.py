"""Argument checks and the pieces that all networks of the package share."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

from torch import nn

from .._checks import one_of
from ._normalize import Normalize

Channelwise: TypeAlias = float | Sequence[float]
NormalizeParam: TypeAlias = tuple[Channelwise, Channelwise] | None

# Negative slopes: ReLU is the leaky ReLU of slope 0, which also gives its Kaiming gain.
_SLOPES: dict[str, float] = {"relu": 0.0, "leaky_relu": 0.1}


def activation_slope(activation: str) -> float:
    """Negative slope of the activation called `activation`."""
    one_of(activation, _SLOPES, "activation")
    return _SLOPES[activation]


def make_activation(activation: str) -> nn.Module:
    """Activation layer, never in place (double backward and hooks need its input intact)."""
    slope = activation_slope(activation)
    return nn.LeakyReLU(slope) if slope else nn.ReLU()


def check_size(value: Any, name: str) -> int:
    """Return `value` as an int, or refuse it unless it is a whole number above zero."""
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
    """Return the first layer of a network: `Normalize`, or nothing where `normalize` is None."""
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
    """Linear layer onto the embedding, with its size checked."""
    return nn.Linear(n_features, check_size(embedding_size, "embedding_size"))
