"""A file with one image, as bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
# from 0 to 65535 to 0 to 255
_PER_LEVEL = 257


def read_picture(file: Path, size: int | None, grey: bool) -> NDArray[np.uint8]:
    """One image, as a viewer shows it on a white page.

    Parameters
    ----------
    file : Path
    size : int or None
        Height and width that it is resized to.
    grey : bool

    Returns
    -------
    pixels : ndarray of uint8, shape (channels, height, width)

    Raises
    ------
    ValueError
        If it cannot be read, or its pixels have no known range.
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
    """Whether grey levels are from 0 to 65535; of these two formats, Pillow may say 32 bits."""
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
    """Refuse pixels whose range nobody knows; Pillow would clip them."""
    kinds = {"I": "32-bit whole numbers", "F": "floating point numbers"}
    if image.mode in kinds:
        raise ValueError(
            f"its pixels are {kinds[image.mode]} (Pillow's mode {image.mode}), of which black and "
            "white are not known; save it with 8 bits, from 0 to 255"
        )
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Put a transparent image on white; what lies under transparency is anything."""
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return image
    page = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(page, image.convert("RGBA"))
