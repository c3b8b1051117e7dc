"""The images, and what to do where there are none."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robust_ensembles.datasets import (
    load_cifar10,
    load_cifar100,
    load_fashion_mnist,
    load_image_npz,
    load_mnist,
)
from robust_ensembles.exceptions import DatasetNotFoundError

from ._published import DATASETS

_LOADERS = {
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
}
# beside a checkout, on machines of the project
_SHARED = Path(__file__).parents[3] / "shared" / "data"
_ARCHIVES = {"cifar10": _SHARED / "cifar10_jpeg75.npz"}
_LABELS = {("cifar10", "cifar10_jpeg75"): "CIFAR-10 (JPEG q75)"}


class Images(NamedTuple):
    """Images and labels of a data set.

    Parameters
    ----------
    label : str
        What numbers made with them are called.
    X, y, X_test, y_test : ndarray
        uint8 images, int64 labels.
    digest : str, default=""
        Of all of them, where the label does not tell which they are.
    """

    label: str
    X: NDArray[Any]
    y: NDArray[Any]
    X_test: NDArray[Any]
    y_test: NDArray[Any]
    digest: str = ""

    @property
    def identity(self) -> str:
        """What names of models are made of: no other images have the same."""
        return f"{self.label} {self.digest}".rstrip()

    def head(self, n_train: int, index: NDArray[np.int64]) -> Images:
        """The first training images, and some of the test images."""
        return Images(
            self.label,
            self.X[:n_train],
            self.y[:n_train],
            self.X_test[index],
            self.y_test[index],
            self.digest,
        )


@functools.cache
def load(dataset: str, archive: Path | None = None) -> Images:
    """All images of a data set, from the package's loader or from an npz archive.

    Parameters
    ----------
    dataset : str
    archive : Path, default=None
        Of `load_image_npz`, with the splits train and test. None looks for the published files
        first, then for ``../shared/data`` beside this checkout.

    Raises
    ------
    DatasetNotFoundError
        If the data set is nowhere; says which file to put where. Nothing is downloaded.
    """
    found = archive or _found(dataset)
    if found is not None:
        train, test = (load_image_npz(found, split) for split in ("train", "test"))
        known = _LABELS.get((dataset, found.stem))
        if known is not None:
            return Images(known, *train, *test)
        # others may have the same file name
        label = f"{DATASETS[dataset]} ({found.name})"
        return Images(label, *train, *test, digest=_digest(*train, *test))
    try:
        train, test = (_LOADERS[dataset](split, download=False) for split in ("train", "test"))
    except DatasetNotFoundError as error:
        raise DatasetNotFoundError(
            f"{error} Or give an archive with train and test images by --npz, as "
            "robust_ensembles.datasets.load_image_npz reads it."
        ) from None
    return Images(DATASETS[dataset], *train, *test)


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:12]


def _found(dataset: str) -> Path | None:
    """The archive, where the published files are absent and it is there."""
    archive = _ARCHIVES.get(dataset)
    if archive is None or not archive.is_file():
        return None
    try:
        _LOADERS[dataset]("test", download=False)
    except DatasetNotFoundError:
        return archive
    return None
