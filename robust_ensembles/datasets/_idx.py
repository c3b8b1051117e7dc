"""Read the idx files of the MNIST family, plain or gzipped."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_UNSIGNED_BYTES = 0x08


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes.

    torchvision's own reader takes no gzipped file and does not compare the header with the
    length, so a truncated file fails there without its name.

    Parameters
    ----------
    path : Path
        File; gzipped if it starts with gzip's magic number, whatever its name.
    ndim : int
        Axes it must have: 3 for images, 1 for labels.

    Returns
    -------
    ndarray of uint8
        Array of the shape in the header.

    Raises
    ------
    ValueError
        If the file is corrupt or truncated, or holds something else.
    """
    content = _read_bytes(path)
    start = 4 + 4 * ndim
    magic = bytes([0, 0, _UNSIGNED_BYTES, ndim])
    if len(content) < start or content[:4] != magic:
        raise ValueError(
            f"{path} is not an idx file of unsigned bytes with {ndim} axes (it starts with "
            f"{content[:4].hex() or 'nothing'}, not {magic.hex()}); delete it and get it again"
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=ndim, offset=4))
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise ValueError(
            f"{path} has {len(content)} bytes, but its header (shape {shape}) asks for "
            f"{expected}: it is truncated or corrupt; delete it and get it again"
        )
    # A copy, as an array over bytes is read-only.
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _read_bytes(path: Path) -> bytes:
    """Content of a file, decompressed where it is gzipped."""
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is truncated or corrupt ({error}); delete it and get it again"
        ) from error
