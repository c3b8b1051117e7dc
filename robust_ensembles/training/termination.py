"""Early ends of training: by a signal, by early stopping, or within an epoch.

SIGTERM is the only request to end a process: clusters send it, and in a worker process the watch
of `end_with_main_process` does. Training handles the signal and checks nothing else.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from skorch.callbacks import Callback

from .._strategy import SingleProcess
from .._system import (
    end_with_main_process,
    exit_by_sigterm,
    handled_sigterm,
    in_worker,
    n_signals_of_watch,
)

if TYPE_CHECKING:
    from .net import EnsembleNet


class _StopBetweenBatches(Callback):
    """Raises SystemExit at the next batch after SIGTERM, and immediately after a second one."""

    def __init__(self) -> None:
        self.n_signals = 0

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy of the net made by another callback gets no signals
        return Callback, ()

    def ask(self, *_: Any) -> None:
        """Handle the signal."""
        self.n_signals += 1
        # for this process alone: others that train with it cannot be reached within a batch
        if self.n_signals > 1 + n_signals_of_watch():
            exit_by_sigterm()

    @property
    def is_due(self) -> bool:
        """Whether to stop."""
        return self.n_signals > 0

    def check(self, strategy: SingleProcess) -> None:
        """Stop if any of the processes that train together has received the signal."""
        if strategy.any_rank(self.is_due):
            exit_by_sigterm()

    def on_batch_begin(self, net: EnsembleNet, **kwargs: Any) -> None:
        """Stop if the signal was received; called by skorch."""
        self.check(net.strategy)


@contextmanager
def stopped_by_sigterm(net: EnsembleNet) -> Iterator[None]:
    """Let SIGTERM end the training of a net at its next batch, by ``SystemExit(143)``.

    So a checkpoint that is being written is completed, and open files are closed. A worker process
    of joblib is then ended by the signal, and likewise once its main process has died. Only in the
    main thread, where Python receives signals, and only if SIGTERM has no other handler. The
    previous handler is restored at the end of the context.

    Parameters
    ----------
    net : EnsembleNet
    """
    end_with_main_process()
    stop = _StopBetweenBatches()
    entry = ("stop_on_sigterm", stop)
    with handled_sigterm(stop.ask) as handled:
        if not net.strategy.any_rank(handled):
            yield
            return
        net.callbacks_.append(entry)
        try:
            yield
            stop.check(net.strategy)  # no batch came any more
        except SystemExit:
            if in_worker() and stop.is_due:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.raise_signal(signal.SIGTERM)
            raise
        finally:
            net.callbacks_.remove(entry)


def stopped_early(net: EnsembleNet) -> bool:
    """Whether an EarlyStopping callback ran out of patience."""
    return any(
        hasattr(callback, "patience") and callback.misses_ == callback.patience
        for _, callback in net.callbacks_
        if hasattr(callback, "misses_")
    )


def drop_unfinished_epoch(net: EnsembleNet) -> None:
    """Remove the row of an epoch that was cut short, so that rows count finished epochs."""
    if net.history and "dur" not in net.history[-1]:
        net.history.pop()
