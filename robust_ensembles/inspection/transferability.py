"""Transferability matrix: how often examples made for one model fool the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length
from torch import Tensor, nn

from .._checks import one_of
from ..attacks import BoundedAttack, MinimumNormAttack, Target, resolve_target
from ..attacks.engine.ascent import count_members
from ..metrics.robust import check_untargeted
from ..twins import HasMemberLogits


class Member(nn.Module):
    """One member of an ensemble as a separate module.

    An attack's ``aggregation=i`` is not enough here: it aims the loss at a member, but attacks
    that use decisions would still use those of the ensemble.

    Parameters
    ----------
    ensemble : nn.Module
        Has ``member_logits``. Shared, not copied.
    index : int
    """

    def __init__(self, ensemble: nn.Module, index: int) -> None:
        super().__init__()
        self.ensemble, self.index = ensemble, index
        self.clip_values = getattr(ensemble, "clip_values", None)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the member, (n_samples, n_classes)."""
        return cast(HasMemberLogits, self.ensemble).member_logits(x)[self.index]


def members_and_ensemble(
    estimator: Any, X: ArrayLike, y: ArrayLike, *, gradient: bool
) -> list[Target]:
    """Each member alone, and the ensemble last.

    Parameters
    ----------
    estimator : fitted estimator or nn.Module
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)
    gradient : bool
        Whether gradients must reach X.

    Returns
    -------
    targets : list of Target

    Raises
    ------
    ValueError
        If there are fewer than two members.
    """
    target = resolve_target(estimator, X, y, gradient=gradient)
    n_members = count_members(target.module, target.x)
    if n_members < 2:
        raise ValueError(
            f"{type(estimator).__name__} has no members to transfer between: give an ensemble of "
            "two or more, or a dict of fitted models such as {'vanilla': a, 'dverge': b}"
        )
    alone = [
        replace(target, name=f"member {i}", module=Member(target.module, i))
        for i in range(n_members)
    ]
    return [*alone, replace(target, name="ensemble")]


def whole_models(
    estimators: Mapping[str, Any], X: ArrayLike, y: ArrayLike, *, gradient: bool
) -> list[Target]:
    """Several fitted models, each as a whole.

    Parameters
    ----------
    estimators : mapping of str to fitted estimator or nn.Module
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)
    gradient : bool
        Whether gradients must reach X.

    Returns
    -------
    targets : list of Target

    Raises
    ------
    ValueError
        If there are fewer than two, or if they take X in different units.
    """
    if len(estimators) < 2:
        raise ValueError(
            f"a dict needs two fitted models or more to transfer between; got {list(estimators)}. "
            "For the members of one ensemble give the ensemble itself"
        )
    targets = [
        replace(resolve_target(estimator, X, gradient=gradient), name=str(name))
        for name, estimator in estimators.items()
    ]
    if np.asarray(X).dtype == np.uint8 and len({t.scales_uint8 for t in targets}) > 1:
        raise ValueError(
            "uint8 X means images in [0, 1] to some of the models and numbers up to 255 to "
            "others, so that eps has two units: convert X to floats that all take"
        )
    return [target.on(X, y) for target in targets]


Mask = NDArray[np.bool_]
MEASURES = ("success_rate", "accuracy")
SAMPLES = ("correct_for_all", "correct_for_source", "correct_for_pair", "all")


@dataclass(frozen=True, eq=False)
class TransferabilityMatrix:
    """Result of `transferability_matrix`.

    Attributes
    ----------
    values : ndarray of shape (n_sources, n_targets)
        Success rates or accuracies from 0 to 1; NaN where no sample counts. The diagonal, where
        source and target are the same, is the white box.
    n_samples : int ndarray of shape (n_sources, n_targets)
        Number of samples behind each value.
    sources, targets : tuple of str
        Names of the rows and columns.
    settings : dict
        `measure`, `samples`, `require_source_success`, `random_states` and `attack` (its ``repr``).
    """

    values: NDArray[np.float64]
    n_samples: NDArray[np.int64]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    settings: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """The values, with a row for each source and a column for each target.

        Returns
        -------
        frame : DataFrame of shape (n_sources, n_targets)
        """
        return pd.DataFrame(
            self.values,
            index=pd.Index(self.sources, name="source"),
            columns=pd.Index(self.targets, name="target"),
        )


def transferability_matrix(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    attack: BoundedAttack,
    measure: str = "success_rate",
    samples: str = "correct_for_all",
    require_source_success: bool = False,
    random_states: Sequence[int] | None = None,
    include_ensemble: bool = True,
) -> TransferabilityMatrix:
    """Evaluate the adversarial examples made for each model on every other one.

    The attack takes all its steps on one source. Its examples are evaluated on each target by a
    separate forward pass. The defaults are the matrix of DVERGE and CLDL [1]_, [2]_;
    ``require_source_success=True, samples="all"`` is the mean of CLDL's Definition 3;
    ``measure="accuracy", samples="correct_for_source"`` is NCEn's [3]_;
    ``samples="correct_for_pair"`` suits CEAT's [4]_, for which the paper does not specify it.

    Parameters
    ----------
    estimator : fitted estimator, nn.Module, or dict of these
        An ensemble, whose members are sources and targets: an estimator of this package, a
        Pipeline or search that ends in one, or a module with ``member_logits``. Or a dict of
        models that take the same X, such as different defences.
    X : array-like of shape (n_samples, ...)
        Raw X.
    y : array-like of shape (n_samples,)
        True labels.
    attack : BoundedAttack
        Untargeted, such as ``PGD(eps=0.03)``, with eps in the units of X. Attacks that minimise
        the perturbation are refused, because their final examples may be outside the ball.
    measure : {"success_rate", "accuracy"}, default="success_rate"
        Fraction of samples that the target misclassifies, or classifies correctly: they add up
        to 1.
    samples : str, default="correct_for_all"
        Which samples count. ``"correct_for_all"``: those that all models classify correctly
        without an attack; ``"correct_for_source"``; ``"correct_for_pair"``: source and target;
        ``"all"``.
    require_source_success : bool, default=False
        Whether a sample is a success only if the same example also fools the source, and both
        are correct without an attack (Definition 3). Not with ``measure="accuracy"``.
    random_states : sequence of int, default=None
        Seeds of the attack, one run for each; a success in any run counts. None is the attack's
        own `random_state`.
    include_ensemble : bool, default=True
        Whether to add the ensemble as a target in the last column. No effect for a dict.

    Returns
    -------
    matrix : TransferabilityMatrix

    Raises
    ------
    TypeError
        If the attack cannot be run to its end within eps.
    ValueError
        For a single member or model, unknown labels, invalid parameters, or if no sample is
        correct for all with ``samples="correct_for_all"``.
    NotDifferentiableError
        If gradients cannot pass a step of a source.

    References
    ----------
    .. [1] H. Yang et al., "DVERGE: Diversifying Vulnerabilities for Enhanced Robust Generation of
       Ensembles", NeurIPS 2020.
    .. [2] L. Wang and B. Liu, "Adversarial Ensemble Training by Jointly Learning Label
       Dependencies and Member Models", 2022, arXiv:2206.14477,
       Definition 3; code as "LSD" by ZJLAB-AMMI.
    .. [3] W. Luo, H. Zhang, L. Kong, Z. Chen and K. Tang, "Defending Adversarial Examples by
       Negative Correlation Ensemble", 2022, arXiv:2206.10334, Figure 3.
    .. [4] D. Li et al., "Learning from Peers: Collaborative Ensemble Adversarial Training", 2025,
       arXiv:2509.00089, Figure 3.

    Examples
    --------
    >>> from robust_ensembles import VanillaEnsembleClassifier
    >>> from robust_ensembles.attacks import PGD
    >>> from robust_ensembles.datasets import load_digits_images
    >>> from robust_ensembles.inspection import transferability_matrix
    >>> X, y = load_digits_images()
    >>> clf = VanillaEnsembleClassifier(random_state=0).fit(X[:1000], y[:1000])
    >>> matrix = transferability_matrix(clf, X[1000:1100], y[1000:1100], attack=PGD(eps=0.1))
    >>> matrix.to_frame().shape
    (3, 4)
    """
    _check_settings(attack, measure, samples, require_source_success)
    seeds = _seeds(random_states, attack.random_state)
    check_consistent_length(X, y)
    gradient = not attack.gradient_free
    if isinstance(estimator, Mapping):
        sources = targets = whole_models(estimator, X, y, gradient=gradient)
    else:
        _check_aggregation(attack)
        *sources, ensemble = members_and_ensemble(estimator, X, y, gradient=gradient)
        targets = [*sources, ensemble] if include_ensemble else sources
    correct = np.stack([model.right() for model in targets])
    counted = _counted(correct, len(sources), samples)
    success = np.zeros_like(counted)
    for i, source in enumerate(sources):
        rows = np.flatnonzero(counted[i].any(axis=0))
        if not len(rows):
            continue
        for seed in seeds:
            fooled = _fooled(source, targets, copy(attack).set_params(random_state=seed), rows)
            if require_source_success:
                fooled &= fooled[i] & correct[i, rows] & correct[:, rows]
            success[i][:, rows] |= fooled
    settings = {
        "measure": measure,
        "samples": samples,
        "require_source_success": require_source_success,
        "random_states": seeds,
        "attack": repr(attack),
    }
    names = tuple(model.name for model in targets)
    values, n_samples = _fractions(success, counted, measure)
    return TransferabilityMatrix(values, n_samples, names[: len(sources)], names, settings)


def _fooled(
    source: Target, targets: Sequence[Target], attack: BoundedAttack, rows: NDArray[np.intp]
) -> Mask:
    """Whether each of a source's examples fools each target, (n_targets, n_rows)."""
    examples = source.take(rows).last_iterates(attack)
    return np.stack([target.take(rows).broken(examples) for target in targets])


def _counted(correct: Mask, n_sources: int, samples: str) -> Mask:
    """The samples that count in each cell, (n_sources, n_targets, n_samples).

    Parameters
    ----------
    correct : bool ndarray of shape (n_targets, n_samples)
        Correct samples without an attack. The sources come first among the targets.
    n_sources : int
    samples : str
        A member of `SAMPLES`.
    """
    by_source, by_target = correct[:n_sources, None], correct[None]
    everywhere = np.ones((n_sources, *correct.shape), dtype=bool)
    if samples == "correct_for_all":
        if not correct.all(axis=0).any():
            raise ValueError(
                f"none of the {correct.shape[1]} samples is classified correctly by all models; "
                "give more, or take samples='correct_for_pair'"
            )
        return everywhere & correct.all(axis=0)
    if samples == "correct_for_source":
        return everywhere & by_source
    return by_source & by_target if samples == "correct_for_pair" else everywhere


def _fractions(
    success: Mask, counted: Mask, measure: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values of the cells, NaN where no sample counts, and their numbers of samples."""
    n_samples = counted.sum(axis=2)
    hits = (counted & (success if measure == "success_rate" else ~success)).sum(axis=2)
    values = np.full(n_samples.shape, np.nan)
    np.divide(hits, n_samples, out=values, where=n_samples > 0)
    return values, n_samples


def _check_settings(
    attack: BoundedAttack, measure: str, samples: str, require_source_success: bool
) -> None:
    if not isinstance(attack, BoundedAttack) or isinstance(attack, MinimumNormAttack):
        raise TypeError(
            f"attack must be one that takes all its steps within eps, such as PGD(eps=0.03); got "
            f"{attack!r}"
        )
    check_untargeted(attack)
    one_of(measure, MEASURES, "measure")
    one_of(samples, SAMPLES, "samples")
    if require_source_success and measure == "accuracy":
        raise ValueError(
            "require_source_success=True counts joint successes, which are no part of "
            "measure='accuracy': take measure='success_rate'"
        )


def _seeds(random_states: Sequence[int] | None, own: int | None) -> tuple[int | None, ...]:
    """Seeds of the runs; the attack's own if none are given."""
    if random_states is None:
        return (own,)
    seeds = tuple(random_states) if isinstance(random_states, Sequence) else ()
    if not seeds or not all(isinstance(seed, Integral) for seed in seeds):
        raise ValueError(
            f"random_states must be a sequence of ints, such as (0, 1, 2), or None; got "
            f"{random_states!r}"
        )
    return seeds


def _check_aggregation(attack: BoundedAttack) -> None:
    if isinstance(attack.aggregation, Integral):
        raise ValueError(
            f"attack has aggregation={attack.aggregation}, but every member is attacked alone in "
            "turn: leave aggregation at 'mean_proba'"
        )
