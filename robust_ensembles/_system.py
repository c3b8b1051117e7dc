"""Files that are written whole or not at all."""

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


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give another path to write to; what is there at the end replaces the file at `path`.

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
    """Replace a file; whoever reads it sees the old or the new one, complete, on the disk.

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
    """Put the names of a folder's files on the disk, where the system has a way to."""
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


# what torch says where running out of memory has no exception class of its own
_MESSAGES = (
    "can't allocate memory",  # a CPU
    "not enough memory",  # a CPU, Windows
    "bad_alloc",  # a CPU, in libraries
    "CUDA error: out of memory",  # by the driver, past torch's allocator
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
    "MPS backend out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no more memory, on a CPU or an accelerator.

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
    """Free what an exception keeps in memory: all tensors of the calls that it has ended.

    Its traceback still says where they were. Frees torch's reserve on CUDA devices, too.

    Parameters
    ----------
    error : exception
        Caught where the calls that it comes from have ended.
    """
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


_LOGGER = logging.getLogger("robust_ensembles")


@cache
def tell_once(message: str) -> None:
    """Log that something is slower or otherwise done than asked for, the first time in a process.

    Parameters
    ----------
    message : str
        What, and why.
    """
    _LOGGER.info(message)


def versions() -> dict[str, str]:
    """Of the package, of Python, and of the libraries that results depend on."""
    return {
        "robust_ensembles": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "skorch": skorch.__version__,
        "numpy": np.__version__,
    }
