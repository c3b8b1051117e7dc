"""Loader of images from a folder with a sub-folder for each class."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from .._checks import check_count, check_flag
from ..exceptions import DatasetNotFoundError

_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
# scales 0 to 65535 to 0 to 255
_PER_LEVEL = 257


def read_picture(file: Path, size: int | None, grey: bool) -> NDArray[np.uint8]:
    """One image, as a viewer shows it on a white page.

    Parameters
    ----------
    file : Path
    size : int or None
        Height and width to resize it to.
    grey : bool

    Returns
    -------
    pixels : ndarray of uint8, shape (channels, height, width)

    Raises
    ------
    ValueError
        If it cannot be read, or the range of its pixels is unknown.
    """
    try:
        with Image.open(file) as picture:
            turned = ImageOps.exif_transpose(picture)
            image = _scaled(turned) if _has_16_bits(picture) else _known(turned)
            image = _on_white(image).convert("L" if grey else "RGB")
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise ValueError(f"{file} cannot be read as an image: {error}") from error
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if grey else pixels.transpose(2, 0, 1)


def _has_16_bits(picture: Image.Image) -> bool:
    """Whether grey levels are from 0 to 65535; for these two formats, Pillow may report 32 bits."""
    of_format = picture.mode == "I" and picture.format in ("PNG", "PPM")
    return of_format or picture.mode.startswith("I;16")


def _scaled(image: Image.Image) -> Image.Image:
    """Scale 16 bits to 8; Pillow would clip them."""
    levels = np.asarray(image).astype(np.uint32)
    scaled = ((levels + _PER_LEVEL // 2) // _PER_LEVEL).astype(np.uint8)
    if "transparency" in image.info:  # one level, which the 8 bits may have in common with others
        scaled[levels == image.info["transparency"]] = 255
    return Image.fromarray(scaled)


def _known(image: Image.Image) -> Image.Image:
    """Refuse pixels of unknown range; Pillow would clip them."""
    kinds = {"I": "32-bit whole numbers", "F": "floating point numbers"}
    if image.mode in kinds:
        raise ValueError(
            f"its pixels are {kinds[image.mode]} (Pillow's mode {image.mode}), of which black and "
            "white are not known; save it with 8 bits, from 0 to 255"
        )
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Put a transparent image on white; transparent pixels have arbitrary colours."""
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return image
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image.convert("RGBA"))


_LOGGER = logging.getLogger("robust_ensembles")
_PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def load_image_folder(
    path: str | os.PathLike[str],
    *,
    size: int | None = None,
    grey: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.str_]]:
    """Load a folder of images with a sub-folder for each class into memory.

    The files are those that torchvision's ``ImageFolder`` reads, in its order: sub-folders and
    their files by name, including nested folders, except names that begin with a dot. The number
    of skipped files of other kinds is logged. The labels are the names of the sub-folders, so that
    they mean the same in another folder with other classes.

    Images are rotated according to their EXIF data, and transparent ones are put on white. Grey
    levels of 16 bits, 0 to 65535, are scaled to 0 to 255.

    If the images do not fit into memory, pass an ``ImageFolder`` with a transform to the
    estimator's `fit` instead.

    Parameters
    ----------
    path : path-like
        The folder.
    size : int or None, default=None
        Height and width in pixels to resize each image to (bilinear; the aspect ratio is not
        kept). None does not resize: all images must have the same size.
    grey : bool, default=False
        Whether to convert images to grey, with one channel, instead of three colours.

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
        If there are no sub-folders, or one without images, or if they are named train and test,
        like parts rather than classes; if an image cannot be read, has 32-bit pixels, whose range
        is unknown, or another size than the first.

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
        listed = _Visible(folder)
    except FileNotFoundError as error:  # no sub-folder, or one without images
        raise ValueError(
            f"{folder} cannot be read as a folder with a sub-folder of images for each class: "
            f"{' '.join(str(error).split())} Images end in {', '.join(IMG_EXTENSIONS)}"
        ) from error
    _refuse_parts(folder, listed.classes)
    listed.tell_of_others()
    files = [Path(name) for name, _ in listed.samples]
    labels = np.array(listed.classes)[[label for _, label in listed.samples]]
    return _read_all(files, size, grey), labels


class _Visible(ImageFolder):
    """An `ImageFolder` without hidden folders and files, such as notebook copies and previews."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._others: Counter[str] = Counter()
        super().__init__(folder, is_valid_file=self._takes)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The names of the sub-folders, and their indices."""
        names = [name for name in super().find_classes(directory)[0] if name[0] != "."]
        if not names:
            raise FileNotFoundError(f"All sub-folders of {directory} are hidden.")
        return names, {name: number for number, name in enumerate(names)}

    def tell_of_others(self) -> None:
        """Log how many files were not taken, by their endings."""
        if self._others:
            kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self._others.items()))
            _LOGGER.warning(
                "%s: files that are not taken: %s; images are those that end in %s",
                self._folder,
                kinds,
                ", ".join(IMG_EXTENSIONS),
            )

    def _takes(self, name: str) -> bool:
        file = Path(name)
        if any(part.startswith(".") for part in file.parts[len(self._folder.parts) :]):
            return False
        if file.suffix.lower() in IMG_EXTENSIONS:
            return True
        self._others[file.suffix.lower() or "without an ending"] += 1
        return False


def _refuse_parts(folder: Path, names: list[str]) -> None:
    """Raise if the sub-folders look like parts of a data set, which would be learnt as classes."""
    if {name.lower() for name in names} <= _PARTS:
        raise ValueError(
            f"the sub-folders of {folder}, {' and '.join(names)}, look like parts of a data set "
            f"rather than classes: give {folder / names[0]} and the others one by one (on the "
            f"command line: train {folder / 'train'} --test {folder / 'test'})"
        )


def _read_all(files: list[Path], size: int | None, grey: bool) -> NDArray[np.uint8]:
    """All images in one array."""
    first = read_picture(files[0], size, grey)
    images = np.empty((len(files), *first.shape), np.uint8)
    for place, file in enumerate(files):
        pixels = read_picture(file, size, grey)
        if pixels.shape != first.shape:
            raise ValueError(
                f"{file} has {_size(pixels)} pixels, {files[0]} has {_size(first)}: all images "
                "must have the same size; give one that they are resized to, such as size=32 "
                "(on the command line: --size 32)"
            )
        images[place] = pixels
    return images


def _size(pixels: NDArray[Any]) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[2]}"
