"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
