"""Loaders of CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets
from torchvision.datasets.utils import check_integrity

from .._checks import one_of
from .home import ImagesAndLabels, data_home_folder, not_found, try_download


def load_cifar10(
    split: str = "train",
    *,
    data_home: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> ImagesAndLabels:
    """Load CIFAR-10 [1]_: photographs, 32 x 32 colour pixels, 10 classes.

    The files are searched for in ``data_home/cifar-10-batches-py``, then in the archive
    ``data_home/cifar-10-python.tar.gz`` (which is unpacked there); then they are downloaded.
    They are pickles, so they are read only if torchvision's checksums match.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        50,000 training or 10,000 test images.
    data_home : path-like or None, default=None
        Folder of the data sets; None for the environment variable
        ``ROBUST_ENSEMBLES_DATA``, else ``~/robust_ensembles_data``.
    download : bool, default=True
        Whether to download missing files with torchvision to `data_home`.

    Returns
    -------
    X : ndarray of uint8, shape (n, 3, 32, 32)
        Images, 0 to 255, channels red, green, blue.
    y : ndarray of int64, shape (n,)
        Classes, 0 to 9.

    Raises
    ------
    DatasetNotFoundError
        If the files are not found and cannot be downloaded.
    ValueError
        If `split` is unknown or a file is not the published one.

    References
    ----------
    .. [1] A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical
       report, University of Toronto, 2009.
    """
    return _load("CIFAR10", split, data_home, download)


def load_cifar100(
    split: str = "train",
    *,
    data_home: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> ImagesAndLabels:
    """Load CIFAR-100 [1]_: photographs, 32 x 32 colour pixels, 100 (fine) classes.

    The files are searched for in ``data_home/cifar-100-python``, then in the archive
    ``data_home/cifar-100-python.tar.gz`` (which is unpacked there); then they are downloaded.
    They are pickles, so they are read only if torchvision's checksums match.

    Parameters
    ----------
    split : {"train", "test"}, default="train"
        50,000 training or 10,000 test images.
    data_home : path-like or None, default=None
        Folder of the data sets; None for the environment variable
        ``ROBUST_ENSEMBLES_DATA``, else ``~/robust_ensembles_data``.
    download : bool, default=True
        Whether to download missing files with torchvision to `data_home`.

    Returns
    -------
    X : ndarray of uint8, shape (n, 3, 32, 32)
        Images, 0 to 255, channels red, green, blue.
    y : ndarray of int64, shape (n,)
        Fine classes, 0 to 99.

    Raises
    ------
    DatasetNotFoundError
        If the files are not found and cannot be downloaded.
    ValueError
        If `split` is unknown or a file is not the published one.

    References
    ----------
    .. [1] A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical
       report, University of Toronto, 2009.
    """
    return _load("CIFAR100", split, data_home, download)


def _load(
    name: str, split: str, data_home: str | os.PathLike[str] | None, download: bool
) -> ImagesAndLabels:
    """Find, unpack or download the files, and read a split with torchvision."""
    one_of(split, ("train", "test"), "split")
    home = data_home_folder(data_home)
    dataset = getattr(torchvision.datasets, name)
    folder = home / dataset.base_folder
    failure: Exception | None = None
    if not _is_complete(dataset, folder):
        archive = home / dataset.filename
        # if a valid archive exists, torchvision's download only unpacks it
        if download or check_integrity(archive, dataset.tgz_md5):
            failure = try_download(lambda: dataset(home, download=True))
        if not _is_complete(dataset, folder):
            advice = (
                f"Put the archive {dataset.filename} (from {dataset.url}) into {home}, or "
                f"its unpacked folder {dataset.base_folder}."
            )
            raise not_found(name, [folder, archive], advice, failure)
    _check_files(dataset, folder)
    with warnings.catch_warnings():
        # The published pickles write dtypes in a way that NumPy 2.4 deprecates.
        warnings.filterwarnings("ignore", message=r"dtype\(\): align")
        loaded = dataset(home, train=split == "train", download=False)
    images = np.ascontiguousarray(np.asarray(loaded.data, np.uint8).transpose(0, 3, 1, 2))
    return images, np.asarray(loaded.targets, np.int64)


def _checksums(dataset: Any) -> list[tuple[str, str]]:
    """Names and MD5 sums of the files that torchvision reads."""
    files = [(name, md5) for name, md5 in [*dataset.train_list, *dataset.test_list]]
    return [*files, (dataset.meta["filename"], dataset.meta["md5"])]


def _is_complete(dataset: Any, folder: Path) -> bool:
    """Whether all files exist, valid or not."""
    return all((folder / name).is_file() for name, _ in _checksums(dataset))


def _check_files(dataset: Any, folder: Path) -> None:
    """Refuse files that are not the published ones, as a pickle can run any code."""
    for name, md5 in _checksums(dataset):
        if not check_integrity(folder / name, md5):
            raise ValueError(
                f"{folder / name} is truncated or corrupt (its MD5 sum is not {md5}); delete "
                f"the folder {folder} and get it again from {dataset.url}"
            )
