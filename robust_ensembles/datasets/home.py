"""Finding and downloading data sets, and the error if they are missing."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..exceptions import DatasetNotFoundError

ImagesAndLabels: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.int64]]

_TIMEOUT_S = 15.0


def data_home_folder(data_home: str | os.PathLike[str] | None) -> Path:
    """Folder of the data sets: the argument, else from the environment, else in the home folder."""
    if data_home is None:
        data_home = os.environ.get("ROBUST_ENSEMBLES_DATA") or "~/robust_ensembles_data"
    return Path(data_home).expanduser()


def try_download(fetch: Callable[[], object]) -> Exception | None:
    """Run a download; return the exception if it failed, else None."""
    try:
        with _socket_timeout(_TIMEOUT_S):
            fetch()
    except (RuntimeError, OSError, EOFError, http.client.HTTPException) as error:
        # no network, a proxy's refusal, a folder that cannot be written, a wrong checksum
        return error
    return None


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Limit each wait for the network: torchvision sets no timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def not_found(
    name: str, folders: list[Path], how: str, failure: Exception | None
) -> DatasetNotFoundError:
    """Make the error for a data set that was not found; `how` is the advice in its message."""
    places = ", ".join(str(folder) for folder in folders)
    if failure is None:
        tried = "download=False, so it was not downloaded"
    else:
        # torchvision lists its mirrors on several lines
        reason = " ".join(str(failure).split()) or type(failure).__name__
        tried = f"the download failed ({reason})"
    return DatasetNotFoundError(f"{name} was not found in {places}, and {tried}. {how}")
