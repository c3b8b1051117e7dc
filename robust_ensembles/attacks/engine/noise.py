"""Random numbers that depend on the sample, not on its position in a batch.

Each sample gets a 64-bit key from its own values and a seed, and each of its numbers is a hash of
the key and the number's position (a counter-based generator). So the noise of a sample is the same
in any batch, in any order, with any number of other samples, on any device.
"""

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood 2014): Weyl increment and the two mixing multipliers,
# written as the signed integers that torch computes with, modulo 2^64
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
# seeds of restarts, and of the several numbers that one point needs, are this many bits apart, so
# that two small seeds of a user never share numbers
RESTART_SHIFT = 36
STREAM_SHIFT = 52
_MANTISSA_BITS = {torch.float32: 24, torch.float64: 53}

Seed = int | Tensor
"""A whole number, or a scalar int64 Tensor on the device of x, which gives the same numbers and
can be changed in place where the same computation is replayed."""


def _shift_right(z: Tensor, n: int) -> Tensor:
    """Logical shift: torch's own shift extends the sign."""
    return (z >> n) & ((1 << (64 - n)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser: every input bit affects every output bit."""
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIER_2
    return z ^ _shift_right(z, 31)


def sample_keys(x: Tensor, seed: Seed) -> Tensor:
    """One key per sample, from its values and the seed.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...), float32 or float64
    seed : int, or scalar int64 Tensor

    Returns
    -------
    keys : int64 Tensor of shape (n_samples,)
    """
    flat = x.detach().flatten(1).contiguous()
    bits = flat.view(torch.int32 if flat.dtype == torch.float32 else torch.int64).long()
    position = torch.arange(bits.shape[1], device=x.device)
    content = _mix(bits + position * _INCREMENT).sum(dim=1)
    number = seed % (1 << 62)
    if not isinstance(number, Tensor):
        number = torch.full((), number, dtype=torch.int64, device=x.device)
    return _mix(content + _mix(number))


def uniform(keys: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in [0, 1) for each key.

    Parameters
    ----------
    keys : int64 Tensor of shape (n_samples,)
    shape : torch.Size
        Shape of one sample.
    dtype : torch.float32 or torch.float64

    Returns
    -------
    numbers : Tensor of shape (n_samples, *shape)
    """
    bits = _MANTISSA_BITS[dtype]
    counter = torch.arange(1, shape.numel() + 1, device=keys.device)
    random = _mix(keys[:, None] + counter * _INCREMENT)
    numbers = _shift_right(random, 64 - bits).to(dtype) * 2.0**-bits
    return numbers.view(-1, *shape)


def stream(keys: Tensor, number: int) -> Tensor:
    """Keys of another stream of each sample, such as that of one query.

    Parameters
    ----------
    keys : int64 Tensor of shape (n_samples,)
    number : int

    Returns
    -------
    keys : int64 Tensor of shape (n_samples,)
    """
    return _mix(keys ^ _mix(torch.full_like(keys, number)))
