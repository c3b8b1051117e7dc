"""The folder of a fit's checkpoints, with atomic writes and a lock for one fit at a time."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from .._checks import warn
from .._strategy import current_strategy
from .._system import write_whole
from .former import FORMER_SUFFIX
from .model_file import Header, OtherFormatError, read_checkpoint

LAST_KEPT = 2
"""Number of last checkpoints that are kept, besides the best one, during a fit."""

SUFFIX = ".safetensors"
"""Suffix of checkpoint files."""

# the content's digest is part of the name: altered numbers are not noticed otherwise
_NAME = re.compile(r"epoch-(\d+)\.([0-9a-f]{16})(\.safetensors|\.pt)")
_UNFINISHED = ".epoch-*.tmp"
_BEST = "best"
_LOCK = ".lock"

_LOGGER = logging.getLogger("robust_ensembles")


class CheckpointFolder:
    """The checkpoints of one fit: the last ones, the best one, and its link ``best.safetensors``.

    Parameters
    ----------
    path : path-like
        Created with the first checkpoint, if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def has_epochs(self) -> bool:
        """Whether there is a checkpoint of a finished epoch."""
        return any(epoch for epoch, _ in self._files())

    def read_newest(self) -> tuple[Header, dict[str, Tensor]] | None:
        """Read the newest intact checkpoint.

        Truncated or altered files are skipped with a warning. Temporary files of killed processes
        are removed.

        Returns
        -------
        header : Header
        tensors : dict of str to Tensor
            None instead of both, if there is no checkpoint.

        Raises
        ------
        OtherFormatError
            If it was written by a later version of this package.
        """
        for left_over in self.path.glob(_UNFINISHED):
            left_over.unlink(missing_ok=True)
        for _, file in reversed(self._files()):
            content = _read(file)
            if content is not None:
                return content
        return None

    def write(
        self, epoch: int, content: bytes, *, best: int | None = None, last: int = LAST_KEPT
    ) -> None:
        """Add a checkpoint, then remove old ones.

        Parameters
        ----------
        epoch : int
            Number of finished epochs.
        content : bytes
            Content of the file.
        best : int, default=None
            The epoch whose checkpoint is always kept.
        last : int, default=LAST_KEPT
            Number of last checkpoints to keep.

        Raises
        ------
        OSError
            If the disk is full or cannot be written to. Earlier checkpoints are kept.
        """
        file = self.path / f"epoch-{epoch:05d}.{digest(content)}{SUFFIX}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(file, content)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the checkpoint of epoch {epoch} cannot be written to {self.path} "
                f"({_reason(error)}; it takes {len(content) / 1e6:.3g} MB). The checkpoints before "
                "it are kept. Make room, or let this process write there, then call fit again: "
                "training goes on from the last one",
            ) from error
        self._tidy(epoch, file, best, last)

    def _files(self) -> list[tuple[int, Path]]:
        """Epochs and files of all checkpoints, the oldest first."""
        if not self.path.is_dir():
            return []
        named = ((_NAME.fullmatch(file.name), file) for file in self.path.iterdir())
        return sorted((int(match[1]), file) for match, file in named if match)

    def _tidy(self, epoch: int, newest: Path, best: int | None, last: int) -> None:
        """Keep the newest checkpoints up to this epoch and the best one, and link the best one."""
        # an epoch that was trained again may also have a truncated checkpoint
        files = [(n, file) for n, file in self._files() if n != epoch] + [(epoch, newest)]
        earlier = sorted({number for number, _ in files if number <= epoch})
        kept = {best, *earlier[-last:]}
        of_best = [file for number, file in files if number == best]
        if of_best:
            with suppress(OSError):  # not every file system has links
                self._link_best(of_best[-1])
        needed = {file for number, file in files if number in kept}
        for _, file in self._files():
            if file not in needed:
                with suppress(OSError):  # in use elsewhere: the next checkpoint tries again
                    file.unlink(missing_ok=True)

    def _link_best(self, file: Path) -> None:
        link = self.path / f"{_BEST}{file.suffix}"
        if not link.is_symlink() or os.readlink(link) != file.name:
            beside = link.with_name(f".{file.stem}.tmp")
            beside.unlink(missing_ok=True)
            os.symlink(file.name, beside)
            os.replace(beside, link)
        if file.suffix != FORMER_SUFFIX:
            (self.path / f"{_BEST}{FORMER_SUFFIX}").unlink(missing_ok=True)


def digest(content: bytes) -> str:
    """The digest of a file's content in its name."""
    return hashlib.sha256(content).hexdigest()[:16]


def _read(file: Path) -> tuple[Header, dict[str, Tensor]] | None:
    """Read a checkpoint, or return None with a warning if it is not intact."""
    match: Any = _NAME.fullmatch(file.name)
    try:
        if digest(file.read_bytes()) != match[2]:
            raise ValueError("its content is not what was written")
        return read_checkpoint(file)
    except OtherFormatError:
        raise
    except Exception as error:  # whatever is wrong with it, an earlier one may be good
        warn(
            f"the checkpoint {file} is skipped, since it cannot be read: {error}. Training goes "
            "on from the one before it, if there is one."
        )
        return None


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Lock a folder against other fits, in this or other processes; released if the process dies.

    Without effect if the file system has no locks or cannot be written to.

    Parameters
    ----------
    folder : path-like
        Created if it does not exist.

    Raises
    ------
    RuntimeError
        If another fit is using it.
    """
    file = Path(folder) / _LOCK
    lock = FileLock(file, timeout=0)
    current_strategy().on_first_rank(lambda: _acquire(lock, file))
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
