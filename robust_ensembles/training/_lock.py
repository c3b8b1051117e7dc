"""One fit at a time in a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..distributed import on_first_rank

_LOGGER = logging.getLogger("robust_ensembles")
_NAME = ".lock"


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other fits, here or in other processes, out of a folder; death of the process frees it.

    Where the file system has no locks, or nothing can be written, there is none.

    Parameters
    ----------
    folder : path-like
        Made if it does not exist.

    Raises
    ------
    RuntimeError
        If another fit is at work in it.
    """
    file = Path(folder) / _NAME
    lock = FileLock(file, timeout=0)
    on_first_rank(lambda: _acquire(lock, file))
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                file.unlink()
            lock.release()


def _acquire(lock: FileLock, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RuntimeError(
            f"another fit is writing its checkpoints to {file.parent} at this moment: wait for its "
            'end, or give each fit a folder of its own, such as checkpoint_dir="runs/{fit}". (If '
            f"none is, remove {file})"
        ) from None
    except (OSError, NotImplementedError) as error:
        _LOGGER.info("%s cannot be locked: %s", file.parent, error)
