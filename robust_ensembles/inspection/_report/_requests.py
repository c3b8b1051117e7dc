"""What is asked of a report: estimators and attacks by name, and data that can be measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_consistent_length
from torch import nn

from ..._checks import as_array, check_count
from ...attacks import PGD, Attack, as_torch, resolve_target
from ...attacks._checks import box_excess
from ...attacks.engine.balls import Box
from ...attacks.engine.target import refuse_dataset
from ...exceptions import NotDifferentiableError
from ...metrics import attack_from_name, robust_scoring
from ...metrics.robust import check_untargeted
from ..cells import CLEAN, WORST
from ._bounds import Limits


def named_estimators(estimators: Any) -> dict[str, Any]:
    """Fitted models by name."""
    if not isinstance(estimators, Mapping):
        estimators = {type(getattr(estimators, "best_estimator_", estimators)).__name__: estimators}
    if not estimators:
        raise ValueError("estimators is empty: give a fitted estimator, or a dict of some")
    for name, model in estimators.items():
        if not isinstance(model, nn.Module) and not hasattr(model, "predict"):
            raise TypeError(
                f"{model!r} ({name}) is no estimator and no nn.Module; give a fitted one, or a "
                "dict such as {'vanilla': clf}"
            )
        try:
            as_torch(model)  # raises NotFittedError
        except NotDifferentiableError:
            continue  # which the report will say of each attack
    return {str(name): model for name, model in estimators.items()}


def named_attacks(attacks: Any, threat: Limits, surrogate: Any = None) -> dict[str, Attack]:
    """Attacks by name, all of them valid and untargeted; the threat is for names without one."""
    PGD(**threat._asdict())._validate()
    defaults = {**threat._asdict(), "surrogate": surrogate}
    if isinstance(attacks, Mapping):
        named = {
            str(name): attack_from_name(given, **defaults) if isinstance(given, str) else given
            for name, given in attacks.items()
        }
    else:
        several = (attacks,) if isinstance(attacks, (str, Attack)) else attacks
        if not isinstance(several, Sequence):
            raise TypeError(
                "attacks must be an attack, a name, or a list or dict of some, such as "
                f"['fgsm', 'pgd20']; got {attacks!r}"
            )
        scorers = robust_scoring(*several, **defaults) if several else {}
        named = {n: s.attacks[0] for n, s in scorers.items() if n not in (CLEAN, WORST)}
    if not named:
        raise ValueError("attacks is empty: give one at least, such as 'pgd20'")
    for name, attack in named.items():
        if name in (CLEAN, WORST):
            raise ValueError(f"an attack must not be named {name!r}, which the report itself uses")
        if not isinstance(attack, Attack):
            raise TypeError(f"attack {name!r} must be an attack or a name of one; got {attack!r}")
        check_untargeted(attack)
    return named


def check_data(X: ArrayLike, y: ArrayLike, n_sanity: int) -> None:
    """Raise for data that cannot be measured on."""
    refuse_dataset(X)
    values, labels = as_array(X, "X"), as_array(y, "y")
    if values.ndim < 2 or labels.ndim != 1:
        raise ValueError(
            "X must have shape (n_samples, n_features, ...) and y (n_samples,); got "
            f"{values.shape} and {labels.shape}"
        )
    check_consistent_length(values, labels)
    if not len(values):
        raise ValueError("X holds no sample")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("X contains NaN or infinity; remove or impute these samples first")
    check_count(n_sanity, "n_sanity")


def check_in_box(models: dict[str, Any], X: ArrayLike, box: Box) -> None:
    """Raise if X, as some estimator takes it, lies outside the box that was given."""
    for name, model in models.items():
        try:
            x = resolve_target(model, X, gradient=False).tensor(X)
        except NotDifferentiableError:
            continue
        low, high = float(x.min()), float(x.max())
        if box_excess(low, high, box):
            raise ValueError(
                f"X spans [{low:.4g}, {high:.4g}] as {name} takes it, outside of clip_values="
                f"{box}. Give the box of the raw data, or raw X to a model that scales it itself"
            )
