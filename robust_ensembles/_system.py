"""Services of the operating system that the package uses.

Atomic file writes; SIGTERM, which clusters send before they kill a process; out-of-memory errors;
the log; versions.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import current_process
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import sklearn
import skorch
import torch

from ._version import __version__

LOGGER = logging.getLogger("robust_ensembles")
"""Logger of the package, also for warnings about what does not change the result."""

# the exit status that a shell reports for a process ended by SIGTERM
_STATUS = 128 + int(signal.SIGTERM)
_PARENT = os.getppid()
# seconds between two checks whether the main process is alive
_PAUSE = 1.0

# torch's messages where running out of memory has no exception class of its own
_MESSAGES = (
    "can't allocate memory",  # a CPU
    "not enough memory",  # a CPU, Windows
    "bad_alloc",  # a CPU, in libraries
    "CUDA error: out of memory",  # by the driver, past torch's allocator
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
    "MPS backend out of memory",
)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; the file written there then replaces the one at `path`.

    Parameters
    ----------
    path : path-like

    Yields
    ------
    beside : Path
        In the same folder.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    OSError
        If it cannot be written, such as on a full disk; the file at `path` is as it was.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} does not exist: make it first")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        before = "what was there before is kept" if path.exists() else "no part of it is left"
        message = f"{path} cannot be written ({reason}); {before}"
        raise OSError(error.errno, message) from error
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.absolute().parent)


def write_whole(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Replace a file atomically: readers see the complete old or the complete new one.

    Parameters
    ----------
    path : path-like
    content : bytes-like

    Raises
    ------
    FileNotFoundError
        If there is no folder to write it to.
    OSError
        If it cannot be written; the file is as it was.
    """
    with replacing(path) as beside, beside.open("wb") as file:
        file.write(content)


def _sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, where the system supports it."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders there have no fsync
            raise
    finally:
        os.close(descriptor)


@contextmanager
def handled_sigterm(handler: Callable[..., Any]) -> Iterator[bool]:
    """Handle SIGTERM within the context.

    Only in the main thread, where Python receives signals, and only if no other handler is set.

    Parameters
    ----------
    handler : callable
        As in `signal.signal`.

    Yields
    ------
    handled : bool
        Whether the handler is installed.
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
    """Exit with the status of SIGTERM after an orderly cleanup. Also serves as a signal handler.

    Raises
    ------
    SystemExit
        With status 143.
    """
    raise SystemExit(_STATUS)


def in_worker() -> bool:
    """Whether this is a worker process of joblib's default backend.

    Such a process takes SystemExit as the result of its task and continues with the next one.
    """
    return current_process().name.startswith("LokyProcess")


@cache
def end_with_main_process() -> None:
    """Send SIGTERM to this worker process once its main process has died.

    Otherwise it would wait between two fits for the next task, for ever if the main process was
    killed while writing that task.
    """
    if in_worker():
        threading.Thread(target=_watch_main_process, daemon=True).start()


def n_signals_of_watch() -> int:
    """How many times `end_with_main_process` has sent SIGTERM to this process, or is about to.

    A cluster that has ended the main process may also send SIGTERM to its workers: both signals
    are one request.
    """
    return int(_is_orphan())


def _is_orphan() -> bool:
    """Whether this is a worker process whose main process has died."""
    return in_worker() and os.getppid() != _PARENT


def _watch_main_process() -> None:
    while not _is_orphan():
        time.sleep(_PAUSE)
    os.kill(os.getpid(), signal.SIGTERM)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory has run out, on a CPU or an accelerator.

    Parameters
    ----------
    error : exception

    Returns
    -------
    out_of_memory : bool
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MESSAGES)


def release_frames(error: BaseException) -> None:
    """Free the memory that an exception holds: all tensors of the calls that it has ended.

    Its traceback still shows these calls. Also frees torch's cached memory on CUDA devices.

    Parameters
    ----------
    error : exception
        Caught after the calls that it comes from have ended.
    """
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@cache
def log_once(message: str) -> None:
    """Log a message once in a process, such as that something is slower than requested.

    Parameters
    ----------
    message : str
        What happens, and why.
    """
    LOGGER.info(message)


def versions() -> dict[str, str]:
    """Versions of the package, of Python, and of the libraries that results depend on."""
    return {
        "robust_ensembles": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "skorch": skorch.__version__,
        "numpy": np.__version__,
    }
