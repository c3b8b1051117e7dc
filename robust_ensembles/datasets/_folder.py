"""Images from a folder with a sub-folder for each class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import ImageFolder

from .._validation import check_count, check_flag
from ..exceptions import DatasetNotFoundError

_PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def load_image_folder(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    grey: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Load a folder of images with a sub-folder for each class into memory.

    The files are those that torchvision's ``ImageFolder`` takes, in its order: sub-folders and
    their files by name, whatever lies deeper in a sub-folder included. The labels are the
    names of the sub-folders, so that they mean the same in another folder with other classes.

    For what does not fit into memory, give an ``ImageFolder`` with a transform to the
    estimator's `fit` instead.

    Parameters
    ----------
    path : path-like
        The folder.
    size : int or None, default=None
        Height and width in pixels that each image is resized to (bilinear, both sides, so that
        other shapes are squeezed). None takes them as they are: all must have the same size.
    grey : bool, default=False
        Whether images become grey, with one channel, rather than colours with three.

    Returns
    -------
    X : ndarray of uint8, shape (n, channels, height, width)
        Images, 0 to 255.
    y : ndarray of str, shape (n,)
        Names of the classes.

    Raises
    ------
    DatasetNotFoundError
        If there is no such folder.
    ValueError
        If it has no sub-folders, or one without images, or if they are called train and test, like
        parts rather than classes; if an image cannot be read, or has
        another size than the first.

    Examples
    --------
    >>> from robust_ensembles.datasets import load_image_folder
    >>> X, y = load_image_folder("photos/train", size=32)  # doctest: +SKIP
    """
    folder = Path(path)
    if size is not None:
        check_count(size, "size")
    check_flag(grey, "grey")
    if not folder.is_dir():
        raise DatasetNotFoundError(f"{folder} is no folder; give one with a sub-folder per class")
    try:
        listed = ImageFolder(folder)
    except FileNotFoundError as error:  # no sub-folder, or one without images
        raise ValueError(
            f"{folder} cannot be read as a folder with a sub-folder of images for each class: "
            f"{' '.join(str(error).split())}"
        ) from error
    _refuse_parts(folder, listed.classes)
    files = [Path(name) for name, _ in listed.samples]
    labels = np.array(listed.classes)[[label for _, label in listed.samples]]
    return _read_all(files, size, grey), labels


def _refuse_parts(folder: Path, names: list[str]) -> None:
    """Raise where the sub-folders are parts of a data set, which would be learnt as classes."""
    if {name.lower() for name in names} <= _PARTS:
        raise ValueError(
            f"the sub-folders of {folder}, {' and '.join(names)}, look like parts of a data set "
            f"rather than classes: give {folder / names[0]} and the others one by one (on the "
            f"command line: train {folder / 'train'} --test {folder / 'test'})"
        )


def _read_all(files: list[Path], size: int | None, grey: bool) -> NDArray[np.uint8]:
    """All images in one array."""
    first = _read(files[0], size, grey)
    images = np.empty((len(files), *first.shape), np.uint8)
    for place, file in enumerate(files):
        pixels = _read(file, size, grey)
        if pixels.shape != first.shape:
            raise ValueError(
                f"{file} has {_size(pixels)} pixels, {files[0]} has {_size(first)}: all images "
                "must have the same size; give one that they are resized to, such as size=32 "
                "(on the command line: --size 32)"
            )
        images[place] = pixels
    return images


def _read(file: Path, size: int | None, grey: bool) -> NDArray[np.uint8]:
    """One image, channels first."""
    try:
        with Image.open(file) as picture:
            image = picture.convert("L" if grey else "RGB")
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _size(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[2]}"
