"""The training strategy: one process alone, or several processes together.

Training calls its strategy wherever several processes would have to agree, exchange rows, or leave
something to the first one. With a single process there is nothing to do, so the methods of
`SingleProcess` are no-ops. `robust_ensembles.parallel.data_parallel` installs another strategy,
and only then is the code for several processes imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


class SingleProcess:
    """Strategy of a single process; other strategies override all its methods."""

    @property
    def is_single(self) -> bool:
        """Whether this is the only process."""
        return True

    @property
    def rank_stream(self) -> tuple[int, ...]:
        """Key that separates this process's random streams from the first one's."""
        return ()

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true in any process; all processes must call this."""
        return flag

    def broadcast_from_first(self, value: T) -> T:
        """The first process's value; all processes must call this."""
        return value

    def on_first_rank(self, act: Callable[[], T]) -> T:
        """Run a function in the first process only; all get its result or its exception.

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
        """Raise in all processes unless they have the same value.

        Parameters
        ----------
        value : object
            A plain value.
        explain : callable
            Takes the first process's value, another one's, and the number of that one; returns
            the difference in words.

        Raises
        ------
        ValueError
        """

    def check_same_batches(self, iterator: Any) -> None:
        """Raise in all processes unless they draw their batches from the same samples.

        Parameters
        ----------
        iterator : MiniBatches

        Raises
        ------
        ValueError
        """

    def in_lockstep(self, net: Any) -> AbstractContextManager[None]:
        """Check that the processes can train a net together, and let only the first one print.

        Parameters
        ----------
        net : EnsembleNet

        Returns
        -------
        context : context manager

        Raises
        ------
        ValueError
            In all processes, if they cannot.
        """
        return nullcontext()

    def share_weights(self, modules: Iterable[nn.Module]) -> None:
        """Copy the first process's weights and buffers to all processes."""

    def share_buffers(self, module: nn.Module) -> None:
        """Copy the first process's buffers to all processes."""

    def shard(self, module: Any) -> AbstractContextManager[None]:
        """Within the context, distribute the members' forward passes over the processes.

        Parameters
        ----------
        module : Ensemble

        Returns
        -------
        context : context manager
        """
        return nullcontext()

    def gather_rows(self, own: Tensor) -> Tensor:
        """Gather the rows of all samples from the rows that a member has in each process.

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
        """Take the rows that a member computes in this process: the inverse of `gather_rows`.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)

        Returns
        -------
        own : Tensor of shape (n_own, ...)
        """
        return x

    def sum_gradients(self, module: nn.Module, auxiliary: nn.Module | None) -> None:
        """After a backward pass, turn the gradients into those of the whole batch.

        Parameters
        ----------
        module : Ensemble
        auxiliary : nn.Module or None
            The module that the method trains beside the members.
        """


_STRATEGY: ContextVar[SingleProcess] = ContextVar("strategy", default=SingleProcess())  # noqa: B039


def current_strategy() -> SingleProcess:
    """The strategy of this thread's fits; a new thread begins with `SingleProcess`."""
    return _STRATEGY.get()


@contextmanager
def trained_by(strategy: SingleProcess) -> Iterator[None]:
    """Within the context, let fits in this thread use a strategy.

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
