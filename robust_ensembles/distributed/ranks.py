"""The processes of a data-parallel training, and their messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes of one data-parallel training.

    Parameters
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.
    control : ProcessGroup
        A group of all processes for objects on the host; tensors use the default group.
    """

    rank: int
    size: int
    control: Any

    def collect(self, value: T) -> list[T]:
        """The values of all processes, in all processes."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def share(self, value: T) -> T:
        """The first process's value, in all processes."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process."""
        raised = torch.tensor(int(flag))
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.control)
        return bool(raised)


def share_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    for tensor in tensors:
        dist.broadcast(tensor.detach(), src=0)


def sum_tensors(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors with their sums over the processes, with one message for each dtype."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in alike])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in alike])
        for tensor, part in zip(alike, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
