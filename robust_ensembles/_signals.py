"""SIGTERM, which clusters send before they kill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

# what a shell reports of a process that SIGTERM has ended
_STATUS = 128 + int(signal.SIGTERM)


@contextmanager
def handled_sigterm(handler: Callable[..., Any]) -> Iterator[bool]:
    """Handle SIGTERM, for as long as the context lasts.

    Only in the main thread, where Python takes signals, and only if nobody else handles it.

    Parameters
    ----------
    handler : callable
        As in `signal.signal`.

    Yields
    ------
    handled : bool
        Whether the handler is used.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield False
        return
    signal.signal(signal.SIGTERM, handler)
    try:
        yield True
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def exit_by_sigterm(*_: Any) -> NoReturn:
    """End as SIGTERM asks for, but orderly: what is open gets closed. Serves as a handler too.

    Raises
    ------
    SystemExit
        With status 143.
    """
    raise SystemExit(_STATUS)
