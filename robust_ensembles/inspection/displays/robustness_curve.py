"""Display of the accuracy against the size of the perturbation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import _safe_indexing

from ...attacks import Attack
from ...metrics import get_robust_scorer, robust_mask
from .style import (
    axes_for,
    light_frame,
    named_estimators,
    norm_label,
    percent_axis,
    require_matplotlib,
    series_style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AttackAtEps = Callable[[float], Attack]


class RobustnessCurveDisplay:
    """Robust accuracy of one or several estimators against eps.

    Use `from_estimator` or `from_estimators`. A sample broken at one eps counts as broken at all
    larger ones, whose balls contain the same example: the curves never rise.

    Parameters
    ----------
    eps : array-like of shape (n_eps,)
        In the units of X; 0 is clean accuracy.
    accuracy : array-like of shape (n_estimators, n_eps)
        From 0 to 1.
    names : sequence of str
        Names of the estimators.
    norm : {"linf", "l2"}, default=None
        Norm of the perturbation, for the label of the axis; None omits it.

    Attributes
    ----------
    eps : ndarray of shape (n_eps,)
    accuracy : ndarray of shape (n_estimators, n_eps)
    names : list of str
    norm : str or None
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : list of matplotlib Line2D
        Set by `plot`, like `ax_` and `figure_`.

    Raises
    ------
    ValueError
        If the shapes do not match.

    Examples
    --------
    >>> from robust_ensembles.inspection import RobustnessCurveDisplay
    >>> display = RobustnessCurveDisplay(
    ...     [0, 0.1, 0.2], [[0.95, 0.5, 0.1]], names=["vanilla"], norm="linf"
    ... )
    >>> figure = display.plot().figure_
    """

    def __init__(
        self,
        eps: ArrayLike,
        accuracy: ArrayLike,
        *,
        names: Sequence[str],
        norm: str | None = None,
    ) -> None:
        self.eps = np.asarray(eps, dtype=np.float64)
        self.accuracy = np.asarray(accuracy, dtype=np.float64)
        self.names, self.norm = list(names), norm
        if self.accuracy.shape != (len(self.names), *self.eps.shape):
            raise ValueError(
                f"accuracy must have a row for each of {len(self.names)} names and a column for "
                f"each of {self.eps.size} eps; got shape {self.accuracy.shape}"
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        attack: Attack | AttackAtEps,
        eps: ArrayLike,
        name: str | None = None,
        ax: Axes | None = None,
    ) -> RobustnessCurveDisplay:
        """Attack an estimator at each eps and draw its curve.

        Parameters
        ----------
        estimator : fitted estimator
            One of this package, or a Pipeline or search that ends in one.
        X, y, attack, eps, ax
            See `from_estimators`.
        name : str, default=None
            Name in the legend; None is the estimator's class.

        Returns
        -------
        display : RobustnessCurveDisplay
        """
        name = type(estimator).__name__ if name is None else name
        return cls.from_estimators({name: estimator}, X, y, attack=attack, eps=eps, ax=ax)

    @classmethod
    def from_estimators(
        cls,
        estimators: Mapping[str, Any],
        X: ArrayLike,
        y: ArrayLike,
        *,
        attack: Attack | AttackAtEps,
        eps: ArrayLike,
        ax: Axes | None = None,
    ) -> RobustnessCurveDisplay:
        """Attack several estimators at each eps and draw their curves.

        Parameters
        ----------
        estimators : mapping of str to fitted estimator
        X : array-like of shape (n_samples, ...)
            Raw X.
        y : array-like of shape (n_samples,)
            True labels.
        attack : Attack, or function from eps to Attack
            Untargeted. An attack's parameter `eps` is varied; for attacks without one, give a
            function such as ``lambda eps: WorstCase([PGD(eps=eps), Square(eps=eps)])``.
        eps : array-like of shape (n_eps,)
            In the units of X; 0 is clean accuracy. Sorted, without repetitions.
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : RobustnessCurveDisplay

        Raises
        ------
        TypeError
            If the attack has no eps, or the estimators have no names.
        ValueError
            For eps that are negative or not finite.
        """
        require_matplotlib()
        models, sizes = named_estimators(estimators), _checked_eps(eps)
        attacks = [_attack_at(attack, float(size)) for size in sizes]
        accuracy = [
            _never_rising(model, X, y, sizes, attacks).mean(axis=1) for model in models.values()
        ]
        norm = getattr(attacks[0], "norm", None)
        return cls(sizes, accuracy, names=list(models), norm=norm).plot(ax)

    def plot(self, ax: Axes | None = None) -> RobustnessCurveDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        self : RobustnessCurveDisplay
        """
        ax = axes_for(ax, (5.2, 3.6))
        self.lines_ = [
            ax.plot(self.eps, 100 * row, label=name, clip_on=False, **series_style(i))[0]
            for i, (name, row) in enumerate(zip(self.names, self.accuracy, strict=True))
        ]
        light_frame(ax)
        ax.locator_params(axis="x", nbins=6)
        percent_axis(ax, "Robust accuracy")
        ax.set_xlabel(rf"Largest perturbation $\varepsilon$ ({norm_label(self.norm)})")
        ax.legend(frameon=False)
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _never_rising(
    estimator: Any, X: ArrayLike, y: ArrayLike, eps: NDArray[np.float64], attacks: Sequence[Attack]
) -> NDArray[np.bool_]:
    """Whether each sample is correct at each eps and all smaller ones, (n_eps, n_samples)."""
    robust = get_robust_scorer("clean").robust_mask(estimator, X, y)
    masks = []
    for size, attack in zip(eps, attacks, strict=True):
        left = np.flatnonzero(robust)
        # attacks treat samples independently, so broken ones need no further attack
        if size > 0 and len(left):
            rows, labels = _safe_indexing(X, left), _safe_indexing(y, left)
            robust[left] = robust_mask(estimator, rows, labels, attack=attack)
        masks.append(robust.copy())
    return np.stack(masks)


def _checked_eps(eps: ArrayLike) -> NDArray[np.float64]:
    sizes = np.unique(np.asarray(eps, dtype=np.float64))
    if not sizes.size or not np.isfinite(sizes).all() or sizes[0] < 0:
        raise ValueError(
            f"eps must be finite numbers >= 0, in the units of X, such as [0, 0.05, 0.1]; got "
            f"{eps!r}"
        )
    return sizes


def _attack_at(attack: Attack | AttackAtEps, eps: float) -> Attack:
    """A copy of the attack with another eps."""
    if not isinstance(attack, Attack):
        made = attack(eps) if callable(attack) else None
        if isinstance(made, Attack):
            return made
        raise TypeError(
            f"attack must be an attack such as PGD(), or a function that makes one from eps, such "
            f"as lambda eps: PGD(eps=eps); got {attack!r}"
        )
    if "eps" not in attack.get_params(deep=False):
        raise TypeError(
            f"{type(attack).__name__} has no eps to vary; give a function that makes it from eps, "
            "such as lambda eps: WorstCase([FGSM(eps=eps), PGD(eps=eps)])"
        )
    varied: Attack = copy(attack).set_params(eps=eps)
    return varied
