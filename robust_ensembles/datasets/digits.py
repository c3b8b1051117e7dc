"""Loader of scikit-learn's digits as images."""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.utils import Bunch


@overload
def load_digits_images(
    *, return_X_y: Literal[True] = ...
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...


@overload
def load_digits_images(*, return_X_y: Literal[False]) -> Bunch: ...


def load_digits_images(
    *, return_X_y: bool = True
) -> tuple[NDArray[np.float32], NDArray[np.int64]] | Bunch:
    """Load the 1797 handwritten digits of scikit-learn [1]_ as images of 8 x 8 grey pixels.

    They are included in scikit-learn: nothing is downloaded.

    Parameters
    ----------
    return_X_y : bool, default=True
        Whether to return ``(X, y)`` rather than a Bunch.

    Returns
    -------
    X : ndarray of float32, shape (1797, 1, 8, 8)
        Images, 0 to 1 in steps of 1/16.
    y : ndarray of int64, shape (1797,)
        Digits, 0 to 9.
    bunch : Bunch
        Instead of `X` and `y`, if `return_X_y` is False: ``data`` (X), ``target`` (y),
        ``target_names`` and ``DESCR``.

    References
    ----------
    .. [1] E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
       Learning Repository, 1998.

    Examples
    --------
    >>> from robust_ensembles.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> X.shape, float(X.max())
    ((1797, 1, 8, 8), 1.0)
    """
    digits = load_digits()
    X = (digits.images[:, None] / 16).astype(np.float32)
    y = digits.target.astype(np.int64)
    if return_X_y:
        return X, y
    return Bunch(data=X, target=y, target_names=digits.target_names, DESCR=digits.DESCR)
