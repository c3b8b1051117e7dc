"""The processes that train one ensemble together, and what they tell each other.

Without `together` there is one process, and everything here does what that one would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
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
        How many there are.
    control : ProcessGroup
        All of them, for objects on the host; tensors go through the default group.
    """

    rank: int
    size: int
    control: Any

    def collect(self, value: T) -> list[T]:
        """What each process gives, on all of them."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def share(self, value: T) -> T:
        """What the first process gives, on all of them."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def any(self, flag: bool) -> bool:
        """Whether a process says yes."""
        raised = torch.tensor(int(flag))
        dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self.control)
        return bool(raised)


_RANKS: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def current_ranks() -> Ranks | None:
    """The processes that train together, or None if this one trains alone.

    A thread of its own trains alone.
    """
    return _RANKS.get()


@contextmanager
def together(ranks: Ranks) -> Iterator[Ranks]:
    """Let these processes train together, for as long as the context lasts.

    Parameters
    ----------
    ranks : Ranks
    """
    token = _RANKS.set(ranks)
    try:
        yield ranks
    finally:
        _RANKS.reset(token)


def own_stream() -> tuple[int, ...]:
    """What tells this process's random streams from the first one's."""
    ranks = current_ranks()
    return () if ranks is None or ranks.rank == 0 else (ranks.rank,)


def is_first() -> bool:
    """Whether this process writes and prints for all."""
    ranks = current_ranks()
    return ranks is None or ranks.rank == 0


def any_rank(flag: bool) -> bool:
    """Whether a process says yes; all of them must ask."""
    ranks = current_ranks()
    return flag if ranks is None else ranks.any(flag)


def shared(value: T) -> T:
    """What the first process has here; all of them must ask."""
    ranks = current_ranks()
    return value if ranks is None else ranks.share(value)


def on_first_rank(act: Callable[[], T]) -> T:
    """Let the first process do something for all: they get its result, or its exception.

    Parameters
    ----------
    act : callable
        Such as reading or writing a file. What it returns or raises must be picklable.

    Returns
    -------
    result : object
    """
    ranks = current_ranks()
    if ranks is None:
        return act()
    outcome: Any = None
    failure: Exception | None = None
    if ranks.rank == 0:
        try:
            outcome = act()
        except Exception as error:  # whatever it is, the others must not wait for a result
            failure = error
    outcome, failure = ranks.share((outcome, failure))
    if failure is not None:
        raise failure
    result: T = outcome
    return result


def check_same(value: Any, explain: Callable[[Any, Any, int], str]) -> None:
    """Raise on all processes unless they have the same.

    Parameters
    ----------
    value : object
        Plain.
    explain : callable
        From the first process's value, another one's and that one's number to what differs, in
        words.

    Raises
    ------
    ValueError
    """
    ranks = current_ranks()
    if ranks is None:
        return
    values = ranks.collect(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise ValueError(
                f"data_parallel: process {rank} differs from process 0: "
                f"{explain(values[0], other, rank)}. All processes must call fit on estimators "
                "with the same parameters and with the same, whole data; each then computes its "
                "share"
            )


def share_tensors(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if current_ranks() is None:
        return
    for tensor in tensors:
        dist.broadcast(tensor.detach(), src=0)


def sum_tensors(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors with their sums over the processes, by one message for each dtype."""
    if current_ranks() is None:
        return
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in alike])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in alike])
        for tensor, part in zip(alike, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
