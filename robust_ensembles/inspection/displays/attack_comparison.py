"""Display of the accuracy under several attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from ...attacks import Attack
from ...metrics import RobustScorer, robust_scoring
from .style import (
    axes_for,
    light_frame,
    named_estimators,
    percent_axis,
    require_matplotlib,
    series_style,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GROUP_WIDTH = 0.7
_WORST = "worst of these"
Attacks = Sequence[str | Attack] | Mapping[str, str | Attack]


class AttackComparisonDisplay:
    """Robust accuracy under each of several attacks, with 95% intervals.

    Use `from_estimators` or `from_estimator`. Each estimator is a group, with its clean accuracy
    as a line above. The intervals are Wilson's [1]_ for the proportion in the population that the
    samples were drawn from; they do not include the randomness of the training.

    Parameters
    ----------
    accuracy : array-like of shape (n_estimators, n_attacks)
        From 0 to 1.
    clean_accuracy : array-like of shape (n_estimators,)
    n_samples : int
        Number of samples behind each accuracy.
    names : sequence of str
        Names of the estimators.
    attacks : sequence of str
        Names of the attacks.

    Attributes
    ----------
    accuracy : ndarray of shape (n_estimators, n_attacks)
    clean_accuracy : ndarray of shape (n_estimators,)
    intervals : ndarray of shape (n_estimators, n_attacks, 2)
        Ends of the 95% intervals.
    n_samples : int
    names, attacks : list of str
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
        Set by `plot`, like `ax_`.

    Raises
    ------
    ValueError
        If the shapes do not match.

    References
    ----------
    .. [1] E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
       Journal of the American Statistical Association, 1927.

    Examples
    --------
    >>> from robust_ensembles.inspection import AttackComparisonDisplay
    >>> display = AttackComparisonDisplay(
    ...     [[0.6, 0.4]], [0.95], n_samples=100, names=["vanilla"], attacks=["fgsm", "pgd"]
    ... )
    >>> figure = display.plot().figure_
    """

    def __init__(
        self,
        accuracy: ArrayLike,
        clean_accuracy: ArrayLike,
        *,
        n_samples: int,
        names: Sequence[str],
        attacks: Sequence[str],
    ) -> None:
        self.accuracy = np.asarray(accuracy, dtype=np.float64)
        self.clean_accuracy = np.asarray(clean_accuracy, dtype=np.float64)
        self.n_samples, self.names, self.attacks = n_samples, list(names), list(attacks)
        expected = len(self.names), len(self.attacks)
        if self.accuracy.shape != expected or self.clean_accuracy.shape != expected[:1]:
            raise ValueError(
                f"accuracy must have shape {expected}, a row for each name and a column for each "
                f"attack, and clean_accuracy {expected[:1]}; got {self.accuracy.shape} and "
                f"{self.clean_accuracy.shape}"
            )
        ends = [_wilson(share, n_samples) for share in self.accuracy.ravel()]
        self.intervals = np.reshape(ends, (*expected, 2))

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        attacks: Attacks,
        eps: float | None = None,
        norm: str | None = None,
        name: str | None = None,
        ax: Axes | None = None,
    ) -> AttackComparisonDisplay:
        """Run the attacks on one estimator and draw the result.

        Parameters
        ----------
        estimator : fitted estimator
            One of this package, or a Pipeline or search that ends in one.
        X, y, attacks, eps, norm, ax
            See `from_estimators`.
        name : str, default=None
            Label of the group; None is the estimator's class.

        Returns
        -------
        display : AttackComparisonDisplay
        """
        name = type(estimator).__name__ if name is None else name
        return cls.from_estimators(
            {name: estimator}, X, y, attacks=attacks, eps=eps, norm=norm, ax=ax
        )

    @classmethod
    def from_estimators(
        cls,
        estimators: Mapping[str, Any],
        X: ArrayLike,
        y: ArrayLike,
        *,
        attacks: Attacks,
        eps: float | None = None,
        norm: str | None = None,
        ax: Axes | None = None,
    ) -> AttackComparisonDisplay:
        """Run the attacks on several estimators and draw the result.

        Parameters
        ----------
        estimators : mapping of str to fitted estimator
        X : array-like of shape (n_samples, ...)
            Raw X.
        y : array-like of shape (n_samples,)
            True labels.
        attacks : sequence of str or Attack, or mapping of names to these
            Untargeted; names such as ``"pgd20"`` as in `robust_scoring`. For two or more, their
            per-sample worst case is drawn too.
        eps : float, default=None
            Radius in the units of X, for attack names without one.
        norm : {"linf", "l2"}, default=None
            Norm, for attack names without one.
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : AttackComparisonDisplay

        Raises
        ------
        TypeError
            If the estimators have no names.
        ValueError
            For attacks that are targeted or unknown, or if there are none.
        """
        require_matplotlib()
        models = named_estimators(estimators)
        clean, scorers = _scorers(attacks, eps, norm)
        accuracy = [[scorer(m, X, y) for scorer in scorers.values()] for m in models.values()]
        return cls(
            accuracy,
            [clean(model, X, y) for model in models.values()],
            n_samples=len(np.asarray(y)),
            names=list(models),
            attacks=list(scorers),
        ).plot(ax)

    def plot(self, ax: Axes | None = None) -> AttackComparisonDisplay:
        """Draw a dot with its interval for each estimator and attack.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        self : AttackComparisonDisplay
        """
        n_groups, n_attacks = self.accuracy.shape
        group = max(1.2, 0.28 * n_attacks, 0.3 + text_width(self.names))
        ax = axes_for(ax, (1.6 + text_width(self.attacks) + group * n_groups, 3.6))
        centres = np.arange(n_groups)
        half = _GROUP_WIDTH / 2
        ax.hlines(
            100 * self.clean_accuracy,
            centres - half,
            centres + half,
            color="black",
            label="no attack",
        )
        for j, name in enumerate(self.attacks):
            share = 100 * self.accuracy[:, j]
            offset = _GROUP_WIDTH * ((j + 0.5) / n_attacks - 0.5)
            bars = np.abs(100 * self.intervals[:, j].T - share)
            style = series_style(j) | {"linestyle": "none"}
            style |= {"color": "black"} if name == _WORST else {}
            ax.errorbar(centres + offset, share, bars, label=name, capsize=3, **style)
        light_frame(ax)
        percent_axis(ax, "Accuracy with 95% interval")
        ax.set_xticks(centres, self.names)
        ax.tick_params(axis="x", length=0)
        ax.set_xlim(-0.5, n_groups - 0.5)
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _scorers(
    attacks: Attacks, eps: float | None, norm: str | None
) -> tuple[RobustScorer, dict[str, RobustScorer]]:
    """Scorers of the clean accuracy, the attacks and their worst case, by name."""
    given = list(attacks.values()) if isinstance(attacks, Mapping) else list(attacks)
    scoring = robust_scoring(*given, eps=eps, norm=norm)
    clean, worst = scoring.pop("clean"), scoring.pop("worst")
    names = list(attacks) if isinstance(attacks, Mapping) else list(scoring)
    scorers = dict(zip(names, scoring.values(), strict=True))
    return clean, scorers if len(scorers) == 1 else {**scorers, _WORST: worst}


def _wilson(share: float, n_samples: int) -> NDArray[np.float64]:
    """Ends of Wilson's 95% interval."""
    test = binomtest(round(share * n_samples), n_samples)
    return np.asarray(test.proportion_ci(0.95, method="wilson"))
