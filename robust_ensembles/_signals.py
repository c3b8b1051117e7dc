"""SIGTERM, which clusters send before they kill."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import current_process
from typing import Any, NoReturn

# what a shell reports of a process that SIGTERM has ended
_STATUS = 128 + int(signal.SIGTERM)
_PARENT = os.getppid()
# seconds between two looks at whether the main process lives
_PAUSE = 1.0


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


def in_worker() -> bool:
    """Whether this is a worker process of joblib's default backend.

    Such a process takes SystemExit for the result of its task, and goes on to the next one.
    """
    return current_process().name.startswith("LokyProcess")


def is_orphan() -> bool:
    """Whether this is a worker process whose main process has died: nobody waits for it."""
    return in_worker() and os.getppid() != _PARENT


@cache
def end_with_main_process() -> None:
    """Let a worker process get SIGTERM once its main process has died, whatever it does then.

    Between two fits it would wait for the next task, for ever if the main process was killed while
    it wrote that task.
    """
    if in_worker():
        threading.Thread(target=_watch_main_process, daemon=True).start()


def _watch_main_process() -> None:
    while not is_orphan():
        time.sleep(_PAUSE)
    os.kill(os.getpid(), signal.SIGTERM)
