"""How training ends before its last epoch."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from skorch.callbacks import Callback

if TYPE_CHECKING:
    from ._net import EnsembleNet

# what a shell reports of a process that SIGTERM has ended
_STATUS = 128 + int(signal.SIGTERM)


class _StopBetweenBatches(Callback):
    """Raises SystemExit at the next batch once it is asked to, at once when asked again."""

    def __init__(self) -> None:
        self.asked = False

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy of the net, made meanwhile by another callback, gets no signals
        return Callback, ()

    def ask(self, *_: Any) -> None:
        """Be the handler of a signal."""
        if self.asked:
            raise SystemExit(_STATUS)
        self.asked = True

    def check(self) -> None:
        """Stop if that was asked for."""
        if self.asked:
            raise SystemExit(_STATUS)

    def on_batch_begin(self, net: EnsembleNet, **kwargs: Any) -> None:
        """Stop if that was asked for; called by skorch."""
        self.check()


@contextmanager
def stopped_by_sigterm(net: EnsembleNet) -> Iterator[None]:
    """Let SIGTERM end the training of a net at its next batch, by ``SystemExit(143)``.

    So a checkpoint that is being written gets done, and what is open gets closed.
    Only in the main thread, where Python takes signals, and only if nobody else handles SIGTERM.
    The handler is put back when the context ends.

    Parameters
    ----------
    net : EnsembleNet
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    stop = _StopBetweenBatches()
    entry = ("stop_on_sigterm", stop)
    signal.signal(signal.SIGTERM, stop.ask)
    net.callbacks_.append(entry)
    try:
        yield
    finally:
        net.callbacks_.remove(entry)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stop.check()  # no batch came any more


def stopped_early(net: EnsembleNet) -> bool:
    """Whether an EarlyStopping ran out of patience; nobody else raises on its behalf."""
    return any(
        hasattr(callback, "patience") and callback.misses_ == callback.patience
        for _, callback in net.callbacks_
        if hasattr(callback, "misses_")
    )


def drop_unfinished_epoch(net: EnsembleNet) -> None:
    """Remove the row of an epoch that was cut short, so that rows count finished epochs."""
    if net.history and "dur" not in net.history[-1]:
        net.history.pop()
