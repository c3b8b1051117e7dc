"""Who trains an ensemble: this process alone, or several processes together.

Training asks its strategy at every place where several processes would have to agree, exchange
rows, or leave something to the first of them. A process that trains alone has nobody to ask, so
`SingleProcess` does nothing anywhere. `robust_ensembles.parallel.data_parallel` puts another
strategy in its place, and only then is the code for several processes imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


class SingleProcess:
    """One process that trains alone; other strategies override all of this."""

    @property
    def is_single(self) -> bool:
        """Whether there are no other processes to agree with."""
        return True

    @property
    def rank_stream(self) -> tuple[int, ...]:
        """What tells this process's random streams from the first one's."""
        return ()

    def any_rank(self, flag: bool) -> bool:
        """Whether one of the processes says yes; all of them must ask."""
        return flag

    def broadcast_from_first(self, value: T) -> T:
        """What the first process has here; all of them must ask."""
        return value

    def on_first_rank(self, act: Callable[[], T]) -> T:
        """Let the first process do something for all, who get its result or its exception.

        Parameters
        ----------
        act : callable
            Such as reading or writing a file. What it returns or raises must be picklable.

        Returns
        -------
        result : object
        """
        return act()

    def check_same(self, value: Any, explain: Callable[[Any, Any, int], str]) -> None:
        """Raise on all processes unless they have the same.

        Parameters
        ----------
        value : object
            Plain.
        explain : callable
            From the first process's value, another one's and that one's number to what differs,
            in words.

        Raises
        ------
        ValueError
        """

    def check_same_batches(self, iterator: Any) -> None:
        """Raise, on all processes, unless they draw their batches from the same samples.

        Parameters
        ----------
        iterator : MiniBatches

        Raises
        ------
        ValueError
        """

    def in_lockstep(self, net: Any) -> AbstractContextManager[None]:
        """Check that processes can train a net together; only the first prints meanwhile.

        Parameters
        ----------
        net : EnsembleNet

        Returns
        -------
        context : context manager

        Raises
        ------
        ValueError
            If they cannot, on all of them.
        """
        return nullcontext()

    def share_weights(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the first one's weights and buffers."""

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes what the first one's layers remember beside their weights."""

    def shard(self, module: Any) -> AbstractContextManager[None]:
        """Share out the members' forward passes, for as long as the context lasts.

        Parameters
        ----------
        module : Ensemble

        Returns
        -------
        context : context manager
        """
        return nullcontext()

    def gather_rows(self, own: Tensor) -> Tensor:
        """Rows of all samples, from the rows that a layer inside a member has in this process.

        Wrap any tensor read by a forward hook in it.

        Parameters
        ----------
        own : Tensor of shape (n_own, ...)

        Returns
        -------
        x : Tensor of shape (n_samples, ...)
        """
        return own

    def take_own_rows(self, x: Tensor) -> Tensor:
        """The rows that a member computes with in this process: the inverse of `gather_rows`.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)

        Returns
        -------
        own : Tensor of shape (n_own, ...)
        """
        return x

    def sum_gradients(self, module: nn.Module, auxiliary: nn.Module | None) -> None:
        """Make the gradients those of the whole batch, after a backward pass.

        Parameters
        ----------
        module : Ensemble
        auxiliary : nn.Module or None
            What the method trains beside the members.
        """


_STRATEGY: ContextVar[SingleProcess] = ContextVar("strategy", default=SingleProcess())  # noqa: B039


def current_strategy() -> SingleProcess:
    """The strategy of trainings in this thread; a thread of its own trains alone."""
    return _STRATEGY.get()


@contextmanager
def trained_by(strategy: SingleProcess) -> Iterator[None]:
    """Let trainings in this thread use a strategy, for as long as the context lasts.

    Parameters
    ----------
    strategy : SingleProcess
        Or a subclass.
    """
    token = _STRATEGY.set(strategy)
    try:
        yield
    finally:
        _STRATEGY.reset(token)
