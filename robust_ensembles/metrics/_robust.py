"""Robust accuracy: who is still right under attack."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor

from ..attacks import Attack, is_broken, resolve_target


def correct_mask(estimator: Any, X: ArrayLike, y: ArrayLike) -> NDArray[np.bool_]:
    """Samples that the attacked module classifies correctly as they are.

    Parameters
    ----------
    estimator : fitted estimator
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)

    Returns
    -------
    mask : bool ndarray of shape (n_samples,)
    """
    target = resolve_target(estimator, X, gradient=False)
    known = np.isin(np.asarray(y), target.classes)
    broken = is_broken(target.module, target.tensor(X)[known], target.encode(np.asarray(y)[known]))
    return _spread(~broken, known)


def robust_mask(estimator: Any, X: ArrayLike, y: ArrayLike, *, attack: Attack) -> NDArray[np.bool_]:
    """Samples that are classified correctly before and after an attack.

    The adversarial examples are judged by a forward pass of their own, not by what the attack
    believes that it has done. The module is called directly: no cached prediction is used.

    Parameters
    ----------
    estimator : fitted estimator
        One of this package, or a Pipeline or search that ends in one.
    X : array-like of shape (n_samples, ...)
        Raw X.
    y : array-like of shape (n_samples,)
        True labels.
    attack : Attack
        Untargeted.

    Returns
    -------
    mask : bool ndarray of shape (n_samples,)

    Raises
    ------
    NotDifferentiableError
        If gradients cannot pass a step of the estimator.
    ValueError
        For a targeted attack, or bad parameters of it.
    """
    if attack.targeted:
        raise ValueError(
            f"{attack!r} is targeted, but robust accuracy asks whether y can be left: set "
            "targeted=False"
        )
    attack._validate()
    target = resolve_target(estimator, X, gradient=not attack.gradient_free)
    # a label that the training fold did not hold cannot be predicted: such a sample is wrong
    known = np.isin(np.asarray(y), target.classes)
    x, labels = target.tensor(X)[known], target.encode(np.asarray(y)[known])
    robust = ~is_broken(target.module, x, labels)
    x_adv = attack(target.module, x[robust], labels[robust])
    robust[robust.clone()] = ~is_broken(target.module, x_adv, labels[robust])
    return _spread(robust, known)


def _spread(mask: Tensor, where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask of some samples as a mask of all, False for the others."""
    spread = np.zeros(len(where), dtype=bool)
    spread[where] = mask.cpu().numpy()
    return spread


def robust_accuracy_score(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    attack: Attack,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Accuracy under attack, an upper bound of the true robust accuracy.

    Parameters
    ----------
    estimator : fitted estimator
        One of this package, or a Pipeline or search that ends in one.
    X : array-like of shape (n_samples, ...)
        Raw X.
    y : array-like of shape (n_samples,)
        True labels.
    attack : Attack
        Untargeted.
    sample_weight : array-like of shape (n_samples,), default=None

    Returns
    -------
    accuracy : float
        Fraction of all samples (misclassified ones count as broken) that are correct both before
        and after the attack.

    Examples
    --------
    >>> from robust_ensembles import VanillaEnsembleClassifier
    >>> from robust_ensembles.attacks import PGD
    >>> from robust_ensembles.datasets import load_digits_images
    >>> from robust_ensembles.metrics import robust_accuracy_score
    >>> X, y = load_digits_images()
    >>> clf = VanillaEnsembleClassifier(random_state=0).fit(X[:1000], y[:1000])
    >>> weak, strong = (
    ...     robust_accuracy_score(clf, X[1000:1100], y[1000:1100], attack=PGD(eps=eps))
    ...     for eps in (0.05, 0.3)
    ... )
    >>> weak > strong
    True
    """
    return weighted_fraction(robust_mask(estimator, X, y, attack=attack), sample_weight)


def weighted_fraction(mask: NDArray[np.bool_], sample_weight: ArrayLike | None) -> float:
    """Fraction of the samples, or of their weight, that a mask selects."""
    if sample_weight is None:
        return float(mask.mean())
    weight = _check_sample_weight(sample_weight, mask)
    return float(np.average(mask.astype(np.float64), weights=weight))
