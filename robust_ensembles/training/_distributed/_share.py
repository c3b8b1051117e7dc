"""The rows of a batch that a process computes with, while it runs a member."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from ...distributed.collectives import all_rows, own_rows, row_counts
from ...distributed.ranks import Ranks


@dataclass(frozen=True)
class Share:
    """The rows of this process in a batch that a member is running on.

    A process without rows, where the batch is smaller than the number of processes, runs one row
    of padding, so that networks need not know what an empty batch is. It counts nowhere.

    Parameters
    ----------
    n_rows : int
        Of the whole batch.
    ranks : Ranks
    """

    n_rows: int
    ranks: Ranks

    @property
    def counts(self) -> list[int]:
        """Rows of each process."""
        return row_counts(self.n_rows, self.ranks.size)

    @property
    def n_own(self) -> int:
        """Rows of this process, without the padding."""
        return self.counts[self.ranks.rank]

    @property
    def n_run(self) -> int:
        """Rows of this process, with the padding."""
        return max(self.n_own, 1)

    def take(self, x: Tensor) -> Tensor:
        """What this process computes with, from the rows of all."""
        own = own_rows(x, self.ranks)
        return own if self.n_own else torch.cat([own, x.detach()[:1]])

    def give(self, own: Tensor) -> Tensor:
        """The rows of all, from what each process has computed."""
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
    """Say that a member runs on this share, for as long as the context lasts."""
    token = _SHARE.set(share)
    try:
        yield share
    finally:
        _SHARE.reset(token)


def whole(own: Tensor) -> Tensor:
    """Rows of all samples, from what a layer inside a member has here.

    Whoever looks into a member by a hook must take it through this.

    Parameters
    ----------
    own : Tensor of shape (n_own, ...)

    Returns
    -------
    x : Tensor of shape (n_samples, ...)
        The same tensor if one process trains alone.
    """
    share = current_share()
    return own if share is None else share.give(own)


def part(x: Tensor) -> Tensor:
    """What a member goes on with here, from the rows of all samples: the inverse of `whole`.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)

    Returns
    -------
    own : Tensor of shape (n_own, ...)
        The same tensor if one process trains alone.
    """
    share = current_share()
    return x if share is None else share.take(x)
