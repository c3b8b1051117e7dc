"""Files of checkpoints: written whole or not at all, and known to be whole when they are read."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .._system import write_whole

LAST_KEPT = 2
"""How many of the last checkpoints are kept, beside the best one."""

# the content's digest is part of the name: torch.load does not notice altered numbers
_NAME = re.compile(r"epoch-(\d+)\.([0-9a-f]{16})\.pt")
_UNFINISHED = ".epoch-*.tmp"
_BEST = "best.pt"


class CheckpointFolder:
    """The checkpoints of one fit: the last ones, the best one, and a link ``best.pt`` to it.

    Parameters
    ----------
    path : path-like
        Made with the first checkpoint, if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read_newest(self) -> dict[str, Any] | None:
        """What the newest whole checkpoint holds.

        Files that are torn or altered are skipped with a warning. What a writer that was killed
        has left behind is removed.

        Returns
        -------
        state : dict or None
            None if there is no checkpoint.
        """
        for left_over in self.path.glob(_UNFINISHED):
            left_over.unlink(missing_ok=True)
        for _, file in reversed(self._files()):
            state = _read(file)
            if state is not None:
                return state
        return None

    def write(self, epoch: int, state: dict[str, Any], *, best: int | None = None) -> None:
        """Add a checkpoint, then remove those that are no longer needed.

        Parameters
        ----------
        epoch : int
            Finished epochs.
        state : dict
            Of tensors and plain values only.
        best : int, default=None
            The epoch whose checkpoint is kept whatever its age.

        Raises
        ------
        OSError
            If the disk is full or cannot be written to. The former checkpoints are untouched.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        file = self.path / f"epoch-{epoch:05d}.{_digest(content)}.pt"
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
        self._tidy(epoch, file, best)

    def _files(self) -> list[tuple[int, Path]]:
        """Epochs and files of all checkpoints, the oldest first."""
        if not self.path.is_dir():
            return []
        named = ((_NAME.fullmatch(file.name), file) for file in self.path.iterdir())
        return sorted((int(match[1]), file) for match, file in named if match)

    def _tidy(self, epoch: int, newest: Path, best: int | None) -> None:
        """Keep the newest checkpoints up to this epoch and the best one, which gets its link."""
        # of an epoch that was trained again there may be a torn one beside
        files = [(n, file) for n, file in self._files() if n != epoch] + [(epoch, newest)]
        earlier = sorted({number for number, _ in files if number <= epoch})
        kept = {best, *earlier[-LAST_KEPT:]}
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
        link = self.path / _BEST
        if link.is_symlink() and os.readlink(link) == file.name:
            return
        beside = link.with_name(f".{file.stem}.tmp")
        beside.unlink(missing_ok=True)
        os.symlink(file.name, beside)
        os.replace(beside, link)


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(file: Path) -> dict[str, Any] | None:
    """What a checkpoint holds, or None, with a warning, if it is not what was written."""
    match = _NAME.fullmatch(file.name)
    assert match is not None
    try:
        content = file.read_bytes()
        if _digest(content) != match[2]:
            raise ValueError("its content is not what was written")
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
    except Exception as error:  # whatever is wrong with it, an earlier one may be good
        warnings.warn(
            f"the checkpoint {file} is skipped, since it cannot be read: {error}. Training goes "
            "on from the one before it, if there is one.",
            stacklevel=2,
        )
        return None
    return state


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
