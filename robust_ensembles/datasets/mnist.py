"""Loaders of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torchvision.datasets
from numpy.typing import NDArray

from .._checks import one_of
from .home import ImagesAndLabels, data_home_folder, not_found, try_download

_UNSIGNED_BYTES = 0x08


def read_idx(path: Path, ndim: int) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes.

    torchvision's own reader does not read gzipped files and does not compare the header with the
    length, so its error for a truncated file lacks the file's name.

    Parameters
    ----------
    path : Path
        The file; gzipped if it starts with gzip's magic number, whatever its name.
    ndim : int
        Required number of axes: 3 for images, 1 for labels.

    Returns
    -------
    ndarray of uint8
        Array of the shape in the header.

    Raises
    ------
    ValueError
        If the file is corrupt or truncated, or has other content.
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
    # a copy, because an array over bytes is read-only
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _read_bytes(path: Path) -> bytes:
    """Content of a file, decompressed if it is gzipped."""
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{path} is truncated or corrupt ({error}); delete it and get it again"
        ) from error


_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

# MNIST and Fashion-MNIST use the same file names; their first labels tell them apart
_FIRST_LABELS: dict[tuple[str, str], tuple[int, ...]] = {
    ("MNIST", "train"): (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    ("MNIST", "test"): (7, 2, 1, 0, 4, 1, 4, 9, 5, 9),
    ("FashionMNIST", "train"): (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
    ("FashionMNIST", "test"): (9, 2, 1, 1, 6, 1, 4, 6, 5, 7),
}


def load_mnist(
    split: str = "train",
    *,
    data_home: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> ImagesAndLabels:
    """Load MNIST [1]_: handwritten digits, 28 x 28 grey pixels, 10 classes.

    The idx files (plain or ``.gz``) are searched for in ``data_home/MNIST/raw``, where
    torchvision puts them, and in `data_home` itself; then they are downloaded.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        60,000 training or 10,000 test images.
    data_home : path-like or None, default=None
        Folder of the data sets; None for the environment variable
        ``ROBUST_ENSEMBLES_DATA``, else ``~/robust_ensembles_data``.
    download : bool, default=True
        Whether to download missing files with torchvision to `data_home`.

    Returns
    -------
    X : ndarray of uint8, shape (n, 1, 28, 28)
        Images, 0 to 255.
    y : ndarray of int64, shape (n,)
        Digits, 0 to 9.

    Raises
    ------
    DatasetNotFoundError
        If the files are not found and cannot be downloaded.
    ValueError
        If `split` is unknown, or a file is truncated, corrupt or from Fashion-MNIST.

    References
    ----------
    .. [1] Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to
       document recognition", Proceedings of the IEEE 86(11), 1998.
    """
    return _load("MNIST", split, data_home, download, extra_folders=[], extra_advice="")


def load_fashion_mnist(
    split: str = "train",
    *,
    data_home: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> ImagesAndLabels:
    """Load Fashion-MNIST [1]_: pictures of clothes, 28 x 28 grey pixels, 10 classes.

    The idx files (plain or ``.gz``) are searched for in ``data_home/FashionMNIST/raw``, where
    torchvision puts them, in `data_home` itself, and in ``/usr/share/datasets/fashion-mnist``,
    where Debian's package ``dataset-fashion-mnist`` puts them; then they are downloaded.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        60,000 training or 10,000 test images.
    data_home : path-like or None, default=None
        Folder of the data sets; None for the environment variable
        ``ROBUST_ENSEMBLES_DATA``, else ``~/robust_ensembles_data``.
    download : bool, default=True
        Whether to download missing files with torchvision to `data_home`.

    Returns
    -------
    X : ndarray of uint8, shape (n, 1, 28, 28)
        Images, 0 to 255.
    y : ndarray of int64, shape (n,)
        Classes, 0 to 9: T-shirt/top, trouser, pullover, dress, coat, sandal, shirt, sneaker,
        bag, ankle boot.

    Raises
    ------
    DatasetNotFoundError
        If the files are not found and cannot be downloaded.
    ValueError
        If `split` is unknown, or a file is truncated, corrupt or from MNIST.

    References
    ----------
    .. [1] H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
       Benchmarking Machine Learning Algorithms", arXiv:1708.07747, 2017.
    """
    return _load(
        "FashionMNIST",
        split,
        data_home,
        download,
        extra_folders=[_DEBIAN_FASHION_MNIST],
        extra_advice=" On Debian, installing the package dataset-fashion-mnist is enough.",
    )


def _load(
    name: str,
    split: str,
    data_home: str | os.PathLike[str] | None,
    download: bool,
    *,
    extra_folders: list[Path],
    extra_advice: str,
) -> ImagesAndLabels:
    """Find or download the two files of a split, and read them."""
    one_of(split, ("train", "test"), "split")
    home = data_home_folder(data_home)
    folders = [home / name / "raw", home, *extra_folders]
    prefix = "train" if split == "train" else "t10k"
    stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    files = _find(folders, stems)
    failure: Exception | None = None
    if files is None and download:
        dataset = getattr(torchvision.datasets, name)
        failure = try_download(lambda: dataset(home, train=split == "train", download=True))
        files = _find(folders, stems)
    if files is None:
        advice = f"Put {stems[0]} and {stems[1]}, plain or .gz, into {folders[0]}."
        raise not_found(name, folders, advice + extra_advice, failure)
    return _read(name, split, *files)


def _find(folders: list[Path], stems: tuple[str, str]) -> tuple[Path, Path] | None:
    """Files of images and labels in the first folder that has both."""
    for folder in folders:
        images, labels = (_existing(folder, stem) for stem in stems)
        if images is not None and labels is not None:
            return images, labels
    return None


def _existing(folder: Path, stem: str) -> Path | None:
    """The file of that name, else the gzipped one, else None."""
    candidates = (folder / stem, folder / f"{stem}.gz")
    return next((path for path in candidates if path.is_file()), None)


def _read(name: str, split: str, images_path: Path, labels_path: Path) -> ImagesAndLabels:
    """Read both files and check that they belong together, and to this data set."""
    labels = read_idx(labels_path, 1)
    images = read_idx(images_path, 3)
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} has {len(images)} images, {labels_path} has {len(labels)} labels; "
            f"one of them is of another split or data set"
        )
    if len(labels) and labels.max() > 9:
        raise ValueError(f"{labels_path} has label {labels.max()}; {name} has 0 to 9")
    first = tuple(labels[:10].tolist())
    for (other, other_split), start in _FIRST_LABELS.items():
        if first == start and (other, other_split) != (name, split):
            raise ValueError(
                f"{labels_path} holds the {other_split} split of {other}, not the {split} "
                f"split of {name}; move it to a folder {other}/raw"
            )
    return images[:, None], labels.astype(np.int64)
