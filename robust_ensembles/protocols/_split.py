"""Which of the test images CLDL's code evaluates on."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import one_of
from .shared import Subject

_SUBSETS = ("evaluation", "hyper-parameters", "all", "common_correct")
_N_IMAGES, _N_TUNING = 10_000, 1_000


def cldl_split() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How CLDL's code splits the 10,000 test images of each data set.

    Returns
    -------
    hyper_parameters : ndarray of shape (1000,)
        Indices of the images that hyper-parameters are chosen on.
    evaluation : ndarray of shape (9000,)
        Indices of the others.
    """
    # a generator of our own draws what the global one does after random.seed(0)
    order = np.array(random.Random(0).sample(range(_N_IMAGES), _N_IMAGES), dtype=np.int64)
    return order[:_N_TUNING], order[_N_TUNING:]


def check_subset(subset: str, y: ArrayLike) -> None:
    """Raise for an unknown subset, or if X cannot be what it is a part of."""
    one_of(subset, _SUBSETS, "cldl: subset")
    n_images = len(np.asarray(y))
    if subset in ("evaluation", "hyper-parameters") and n_images != _N_IMAGES:
        raise ValueError(
            f"subset={subset!r} is a part of the {_N_IMAGES} test images of a data set; got "
            f"{n_images} images. Take subset='all' for these"
        )


def selected(subset: str, targets: list[Subject]) -> NDArray[np.int64]:
    """Indices of the images of a subset, in the order of the code."""
    if subset == "all":
        return np.arange(len(targets[0].y))
    if subset == "common_correct":
        index = np.logical_and.reduce([target.clean for target in targets]).nonzero()[0]
        if not len(index):
            raise ValueError("subset='common_correct': no image is right for all estimators")
        return index
    hyper_parameters, evaluation = cldl_split()
    return evaluation if subset == "evaluation" else hyper_parameters
