"""Robust accuracy: the samples that are still classified correctly under attack."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import check_sample_weight
from ..attacks import Attack, resolve_target
from ..attacks.engine.target import check_batch


def correct_mask(estimator: Any, X: ArrayLike, y: ArrayLike) -> NDArray[np.bool_]:
    """Samples that the attacked module classifies correctly without an attack.

    Parameters
    ----------
    estimator : fitted estimator
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)

    Returns
    -------
    mask : bool ndarray of shape (n_samples,)
    """
    return _mask(estimator, X, y, None)


def robust_mask(estimator: Any, X: ArrayLike, y: ArrayLike, *, attack: Attack) -> NDArray[np.bool_]:
    """Samples that are classified correctly before and after an attack.

    The adversarial examples are evaluated by a separate forward pass, not by the success that the
    attack reports. The module is called directly: no cached prediction is used.

    Parameters
    ----------
    estimator : fitted estimator
        One of this package, or a Pipeline or search that ends in one. Attacks that need no
        gradient, such as `Square`, take any classifier with a `predict_proba`.
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
        For a targeted attack, or invalid parameters of the attack.
    """
    check_untargeted(attack)
    return _mask(estimator, X, y, attack)


def check_untargeted(attack: Attack) -> None:
    """Raise for an attack that is targeted or has invalid parameters."""
    if not isinstance(attack, Attack):
        raise TypeError(
            f"attack must be an attack such as PGD(eps=0.1); got {attack!r}. For a name use "
            "get_robust_scorer"
        )
    attack._validate()
    if attack.targeted:
        raise ValueError(
            f"{attack!r} is targeted, but robust accuracy asks whether y can be left: set "
            "targeted=False"
        )


def _mask(estimator: Any, X: ArrayLike, y: ArrayLike, attack: Attack | None) -> NDArray[np.bool_]:
    """Samples that are classified correctly, also under the attack if there is one."""
    gradient = attack is not None and not attack.gradient_free
    target = resolve_target(estimator, X, gradient=gradient)
    if attack is not None:
        attack.check_classes(target.classes)
    target = target.on(X, y, allow_unknown=True)
    # a label that is not in the training fold cannot be predicted: such a sample is wrong
    mask = target.known
    known = target.take(mask)
    check_batch(known.module, known.x, known.y, None)
    mask[mask.copy()] = known.withstood([] if attack is None else [attack])
    return mask


def robust_accuracy_score(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    attack: Attack,
    conditional: bool = False,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Accuracy under attack, an upper bound of the true robust accuracy.

    Parameters
    ----------
    estimator : fitted estimator
        One of this package, or a Pipeline or search that ends in one. Attacks that need no
        gradient, such as `Square`, take any classifier with a `predict_proba`.
    X : array-like of shape (n_samples, ...)
        Raw X.
    y : array-like of shape (n_samples,)
        True labels.
    attack : Attack
        Untargeted.
    conditional : bool, default=False
        Whether to exclude samples that are misclassified without an attack, as some papers do;
        the result cannot then be compared between models of different clean accuracy.
    sample_weight : array-like of shape (n_samples,), default=None

    Returns
    -------
    accuracy : float
        Fraction of all samples (misclassified ones count as broken), or of those that are correct
        without attack, that are correct both before and after it.

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
    robust = robust_mask(estimator, X, y, attack=attack)
    clean = correct_mask(estimator, X, y) if conditional else None
    return weighted_fraction(robust, sample_weight, among=clean)


def weighted_fraction(
    mask: NDArray[np.bool_],
    sample_weight: ArrayLike | None,
    *,
    among: NDArray[np.bool_] | None = None,
) -> float:
    """Fraction of the samples (or of their weight) that a mask selects.

    Parameters
    ----------
    mask : bool ndarray of shape (n_samples,)
    sample_weight : array-like of shape (n_samples,) or None
    among : bool ndarray of shape (n_samples,), default=None
        The samples that count; None is all. The fraction of no samples is 0.

    Returns
    -------
    fraction : float

    Raises
    ------
    ValueError
        For weights that are negative, or all 0.
    """
    weight = np.ones(len(mask))
    if sample_weight is not None:
        weight = check_sample_weight(sample_weight, mask)
        if not weight.any():
            raise ValueError("sample_weight leaves no sample with a positive weight")
    if among is not None:
        weight = weight * among
        if not weight.any():
            return 0.0
    return float(np.average(mask.astype(np.float64), weights=weight))
