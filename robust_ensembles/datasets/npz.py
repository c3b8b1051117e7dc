"""Loader of images from a NumPy archive, as arrays or concatenated JPEG files."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .._checks import as_array
from ..exceptions import DatasetNotFoundError
from .home import ImagesAndLabels

_NUMBERED = "names, labels = np.unique(labels, return_inverse=True)"


def load_image_npz(
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    n_samples: int | None = None,
    indices: Sequence[int] | NDArray[np.integer[Any]] | None = None,
) -> ImagesAndLabels:
    """Load labelled images from a NumPy archive (``.npz``).

    For each split, the archive has ``{split}_labels``, whole numbers of shape (n,) or (n, 1), and
    either

    - ``{split}_images``: uint8 of shape (n, height, width), (n, channels, height, width) or
      (n, height, width, channels), with 1 or 3 channels; or
    - ``{split}_jpeg`` and ``{split}_offsets``: concatenated JPEG files as uint8, and n + 1
      whole numbers; image `i` is in ``jpeg[offsets[i]:offsets[i + 1]]``. All are decoded to
      three channels and must have the same size.

    Archives are never unpickled, so reading one runs no code.

    Parameters
    ----------
    path : path-like
        The archive.
    split : str, default="train"
        First part of the keys: "train", "test" or another one of the archive.
    n_samples : int or None, default=None
        Number of images to load, starting with the first; None for all.
    indices : sequence of int or None, default=None
        Indices of the images to load, in this order; not together with `n_samples`.

    Returns
    -------
    X : ndarray of uint8, shape (n, channels, height, width)
        Images, 0 to 255.
    y : ndarray of int64, shape (n,)
        Labels.

    Raises
    ------
    DatasetNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated or not an archive; a key is missing; the split is empty; arrays
        do not match; an image cannot be decoded; or `n_samples` or `indices` are out of range.

    Examples
    --------
    >>> from robust_ensembles.datasets import load_image_npz
    >>> X, y = load_image_npz("cifar10.npz", "test", n_samples=1000)  # doctest: +SKIP
    """
    path = Path(path)
    arrays = _read_arrays(path, split)
    labels = _check_labels(arrays["labels"], path, split)
    rows = _select(len(labels), n_samples, indices)
    if "images" in arrays:
        images = _check_images(arrays["images"], len(labels), path, split)
        return np.ascontiguousarray(images[rows]), labels[rows]
    offsets = _check_offsets(arrays, len(labels), path, split)
    return _decode(arrays["jpeg"], offsets, rows, path, split), labels[rows]


def _read_arrays(path: Path, split: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of a split; the keys are their names without the split."""
    with _opened(path) as archive:
        names = _wanted_names(list(archive), split)
        return {name: _read_array(archive, f"{split}_{name}") for name in names}


def _read_array(archive: Any, key: str) -> NDArray[Any]:
    """One array; raise for Python objects, with advice on how to convert them."""
    try:
        return np.asarray(archive[key])
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise ValueError(
            f"{key} holds Python objects, which are never unpickled. Names become numbers by "
            f"{_NUMBERED}, a list of images of one size becomes an array by np.stack(images)"
        ) from error


def splits_of(path: str | os.PathLike[str]) -> list[str]:
    """Splits for which an archive has labels, in its order; raises as `load_image_npz` does."""
    with _opened(Path(path)) as archive:
        return [key.removesuffix("_labels") for key in archive if key.endswith("_labels")]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an archive; errors name the file."""
    if not path.is_file():
        raise DatasetNotFoundError(f"{path} does not exist; give the path of a .npz file")
    try:
        # opened here, because np.load leaves the file of a broken archive open
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array, not an archive of named arrays")
            yield archive
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an image archive: {error}") from error


def _wanted_names(keys: list[str], split: str) -> tuple[str, ...]:
    """Names of the arrays to read, in the one of the two layouts that the archive has."""
    for names in (("images", "labels"), ("jpeg", "offsets", "labels")):
        if all(f"{split}_{name}" in keys for name in names):
            return names
    raise ValueError(
        f"it needs the keys '{split}_images' and '{split}_labels' (or '{split}_jpeg', "
        f"'{split}_offsets' and '{split}_labels'), but has {sorted(keys)}. Images X and labels y "
        f"are saved by np.savez(path, {split}_images=X, {split}_labels=y)"
    )


def _check_labels(labels: NDArray[Any], path: Path, split: str) -> NDArray[np.int64]:
    """Return the labels as an int64 vector if they are whole numbers."""
    if labels.shape[1:] not in ((), (1,)) or not labels.ndim or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: {split}_labels must be whole numbers of shape (n,), got "
            f"{labels.dtype} of shape {labels.shape}{_cure_of_labels(labels)}"
        )
    if not len(labels):
        raise ValueError(f"{path}: {split}_labels is empty, so the split {split!r} has no images")
    return labels.reshape(-1).astype(np.int64)


def _cure_of_labels(labels: NDArray[Any]) -> str:
    """Advice on how to convert labels to whole numbers."""
    if labels.ndim == 2 and labels.dtype.kind in "iufb":
        return ". One column for each class becomes numbers by labels.argmax(axis=1)"
    if labels.ndim == 1 and labels.dtype.kind in "fb":
        return ". They become whole numbers by labels.astype(np.int64)"
    return f". Names become numbers by {_NUMBERED}"


def _select(
    n: int,
    n_samples: int | None,
    indices: Sequence[int] | NDArray[np.integer[Any]] | None,
) -> NDArray[np.int64]:
    """Return the row numbers to load."""
    if indices is None:
        whole = isinstance(n_samples, Integral) and not isinstance(n_samples, bool)
        if n_samples is not None and not (whole and 0 < n_samples <= n):
            raise ValueError(f"n_samples must be from 1 to {n}, got {n_samples!r}")
        return np.arange(n if n_samples is None else n_samples)
    if n_samples is not None:
        raise ValueError("give n_samples or indices, not both")
    rows = as_array(indices, "indices")
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or not rows.size:
        raise ValueError(
            f"indices must be one or more whole numbers in a flat sequence, got {indices!r}"
        )
    if rows.min() < 0 or rows.max() >= n:
        raise ValueError(f"indices must be from 0 to {n - 1}, got {rows.min()} to {rows.max()}")
    return rows.astype(np.int64)


def _check_images(images: NDArray[Any], n: int, path: Path, split: str) -> NDArray[np.uint8]:
    """Return the images with the channels on axis 1."""
    key = f"{path}: {split}_images"
    if images.dtype != np.uint8:
        cure = ""
        if images.dtype.kind == "f":
            cure = (
                ". Pixels from 0 to 1 are to be saved as (255 * images).round().astype(np.uint8), "
                "those from 0 to 255 as images.round().astype(np.uint8)"
            )
        raise ValueError(f"{key} must be uint8, got {images.dtype} of shape {images.shape}{cure}")
    if images.shape[:1] != (n,):
        raise ValueError(
            f"{key} must have one image for each of the {n} labels, got shape {images.shape}"
        )
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return images
    if images.ndim == 4 and images.shape[3] in (1, 3):
        return images.transpose(0, 3, 1, 2)
    raise ValueError(
        f"{key} must have shape (n, height, width), or four axes with 1 or 3 channels second "
        f"or last, got {images.shape}"
    )


def _check_offsets(
    arrays: dict[str, NDArray[Any]], n: int, path: Path, split: str
) -> NDArray[np.int64]:
    """Return the offsets if they divide the bytes into one piece for each label."""
    jpeg, offsets = arrays["jpeg"], arrays["offsets"]
    if jpeg.ndim != 1 or jpeg.dtype != np.uint8:
        raise ValueError(
            f"{path}: {split}_jpeg must be flat uint8, got {jpeg.dtype} of shape {jpeg.shape}"
        )
    if offsets.shape != (n + 1,) or offsets.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: {split}_offsets must be {n + 1} whole numbers for {n} labels, got "
            f"{offsets.dtype} of shape {offsets.shape}"
        )
    offsets = offsets.astype(np.int64)
    if offsets[0] < 0 or offsets[-1] > len(jpeg) or (np.diff(offsets) <= 0).any():
        raise ValueError(
            f"{path}: {split}_offsets must rise from 0 or more to at most {len(jpeg)}, the "
            f"length of {split}_jpeg; the file is corrupt or the two do not belong together"
        )
    return offsets


def _decode(
    jpeg: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    rows: NDArray[np.int64],
    path: Path,
    split: str,
) -> NDArray[np.uint8]:
    """Decode the chosen images, at least one, into one array."""

    def decoded(row: int) -> NDArray[np.uint8]:
        return _decode_one(jpeg[offsets[row] : offsets[row + 1]], row, path, split)

    shape = decoded(int(rows[0])).shape
    images = np.empty((len(rows), *shape), np.uint8)
    for place, row in enumerate(rows.tolist()):
        pixels = decoded(row)
        if pixels.shape != shape:
            raise ValueError(
                f"{path}: image {row} of split {split!r} has shape {pixels.shape}, others "
                f"{shape}; all images must have the same size"
            )
        images[place] = pixels
    return images


def _decode_one(content: NDArray[np.uint8], row: int, path: Path, split: str) -> NDArray[np.uint8]:
    """One image in colour, channels first."""
    try:
        # Pillow, because the decoders of torchvision.io are deprecated since torchvision 0.29
        with Image.open(io.BytesIO(content.tobytes()), formats=["JPEG"]) as picture:
            return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{path}: image {row} of split {split!r} cannot be decoded ({error}); the file "
            f"is corrupt or {split}_offsets do not belong to {split}_jpeg"
        ) from error
