"""Vanilla ensembles that examples are made on, for black-box evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from numpy.typing import ArrayLike
from sklearn.base import clone

from ..estimators import EnsembleParameters, VanillaEnsembleClassifier


def train_surrogates(
    recipe: EnsembleParameters | Mapping[str, Any],
    X: ArrayLike,
    y: ArrayLike,
    *,
    n_members: Sequence[int] = (3, 5),
    random_state: int = 1000,
) -> list[VanillaEnsembleClassifier]:
    """Train the surrogates of CLDL's black box: vanilla ensembles of 3 and of 5 members.

    Parameters
    ----------
    recipe : estimator or dict
        Any ensemble of this package, fitted or not, whose network and training settings are
        taken over (what its method adds is left out), or such settings. As published:
        ``recipes.get("vanilla", "cifar10", source="cldl")``; there the targets GAL and CLDL have
        leaky ReLUs and noise in training, and the surrogates have neither.
    X : array-like of shape (n_samples, ...)
        Training images.
    y : array-like of shape (n_samples,)
    n_members : sequence of int, default=(3, 5)
        One surrogate for each.
    random_state : int, default=1000
        A surrogate of n members has the seed ``random_state + n``: with equal seeds the members
        of one would be among those of the other, and of a vanilla target.

    Returns
    -------
    surrogates : list of VanillaEnsembleClassifier
        Fitted.

    Raises
    ------
    TypeError
        If `recipe` is neither an ensemble nor a dict.

    Examples
    --------
    >>> from robust_ensembles import VanillaEnsembleClassifier, protocols
    >>> from robust_ensembles.datasets import load_digits_images
    >>> X, y = load_digits_images()
    >>> recipe = VanillaEnsembleClassifier(max_epochs=2)
    >>> [len(s.estimators_) for s in protocols.train_surrogates(recipe, X[:500], y[:500])]
    [3, 5]
    """
    vanilla = _vanilla(recipe)
    surrogates = []
    for n in n_members:
        surrogate = clone(vanilla).set_params(n_estimators=n, random_state=random_state + n)
        surrogates.append(surrogate.fit(X, y))
    return surrogates


def _vanilla(recipe: Any) -> VanillaEnsembleClassifier:
    if isinstance(recipe, Mapping):
        return VanillaEnsembleClassifier(**recipe)
    if not isinstance(recipe, EnsembleParameters):
        raise TypeError(
            "recipe must be an ensemble of robust_ensembles, such as recipes.get('vanilla', "
            f"'cifar10'), or a dict of its settings; got {recipe!r}"
        )
    settings = {field.name: getattr(recipe, field.name) for field in fields(EnsembleParameters)}
    return VanillaEnsembleClassifier(**{**settings, "warm_start": False, "checkpoint_dir": None})
