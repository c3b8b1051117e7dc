"""Mixed precision: members compute in bfloat16, everything around them does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .._exchange import exchanged


@contextmanager
def mixed_precision(members: Iterable[nn.Module]) -> Iterator[None]:
    """Let members compute in bfloat16, for as long as the context lasts.

    Weights, inputs and outputs stay as they are, and so do losses, input gradients and updates.

    Parameters
    ----------
    members : iterable of nn.Module
    """
    # partials, not closures: copies of the members have to call themselves
    with exchanged({member: partial(_in_bfloat16, member.forward) for member in members}):
        yield


def _in_bfloat16(forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return full_precision(forward(x))


def full_precision(x: Tensor) -> Tensor:
    """What a layer in mixed precision returns, for use outside the network."""
    return x.float() if x.dtype == torch.bfloat16 else x
