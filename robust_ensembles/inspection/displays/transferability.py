"""Display of a transferability matrix as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..._checks import one_of
from ...attacks import BoundedAttack
from ..transferability import MEASURES, TransferabilityMatrix, transferability_matrix
from .style import axes_for, require_matplotlib, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

_LABELS = {"success_rate": "Attack success rate (%)", "accuracy": "Accuracy under attack (%)"}

# WCAG 2: weights of linear red, green and blue in the luminance, and the luminance at which black
# and white text have the same contrast
_LUMINANCE = (0.2126, 0.7152, 0.0722)
_EQUAL_CONTRAST = 0.179

# width of the colour bar's label in inches
_LEAST_HEIGHT = 1.8


class TransferabilityDisplay:
    """Heat map of the success on each target of examples made for each source.

    Use `from_estimator` or, for an existing matrix, `from_matrix`.

    Parameters
    ----------
    values : array-like of shape (n_sources, n_targets)
        From 0 to 1; NaN for cells without samples.
    sources, targets : sequence of str
        Names of the rows and columns.
    measure : {"success_rate", "accuracy"}, default="success_rate"
        Meaning of the values.

    Attributes
    ----------
    values : ndarray of shape (n_sources, n_targets)
    sources, targets : list of str
    measure : str
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    text_ : ndarray of matplotlib Text of the shape of `values`
        Set by `plot`, like `ax_` and `figure_`.

    Raises
    ------
    ValueError
        If names and values do not match.

    Examples
    --------
    >>> from robust_ensembles.inspection import TransferabilityDisplay
    >>> display = TransferabilityDisplay(
    ...     [[0.97, 0.83], [0.79, 0.95]], sources=["a", "b"], targets=["a", "b"]
    ... )
    >>> figure = display.plot().figure_
    """

    def __init__(
        self,
        values: ArrayLike,
        *,
        sources: Sequence[str],
        targets: Sequence[str],
        measure: str = "success_rate",
    ) -> None:
        one_of(measure, MEASURES, "measure")
        self.values = np.asarray(values, dtype=np.float64)
        self.sources, self.targets, self.measure = list(sources), list(targets), measure
        if self.values.shape != (len(self.sources), len(self.targets)):
            raise ValueError(
                f"values must have a row for each of {len(self.sources)} sources and a column for "
                f"each of {len(self.targets)} targets; got shape {self.values.shape}"
            )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        attack: BoundedAttack,
        ax: Axes | None = None,
        **settings: Any,
    ) -> TransferabilityDisplay:
        """Compute the matrix and draw it.

        Parameters
        ----------
        estimator : fitted estimator, nn.Module, or dict of these
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        attack : BoundedAttack
        ax : matplotlib Axes, default=None
            None makes a new figure.
        **settings
            `measure`, `samples` and the others of `transferability_matrix`.

        Returns
        -------
        display : TransferabilityDisplay
        """
        require_matplotlib()
        matrix = transferability_matrix(estimator, X, y, attack=attack, **settings)
        return cls.from_matrix(matrix, ax=ax)

    @classmethod
    def from_matrix(
        cls, matrix: TransferabilityMatrix, *, ax: Axes | None = None
    ) -> TransferabilityDisplay:
        """Draw the result of `transferability_matrix`.

        Parameters
        ----------
        matrix : TransferabilityMatrix
        ax : matplotlib Axes, default=None
            None makes a new figure.

        Returns
        -------
        display : TransferabilityDisplay
        """
        display = cls(
            matrix.values,
            sources=matrix.sources,
            targets=matrix.targets,
            measure=matrix.settings["measure"],
        )
        return display.plot(ax)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        cmap: str = "viridis",
        values_format: str = ".1f",
        colorbar: bool = True,
    ) -> TransferabilityDisplay:
        """Draw the matrix; colours always span 0 to 100%, so that heat maps can be compared.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a new figure.
        cmap : str, default="viridis"
            A sequential colour map.
        values_format : str, default=".1f"
            Format of the percentages in the cells.
        colorbar : bool, default=True

        Returns
        -------
        self : TransferabilityDisplay
        """
        n_sources, n_targets = self.values.shape
        wide, high = text_width(self.sources), text_width(self.targets) / 2
        cell = max(0.6, _LEAST_HEIGHT / n_sources)
        ax = axes_for(ax, (1.9 + wide + cell * n_targets, 0.8 + high + cell * n_sources))
        image = ax.imshow(100 * self.values, vmin=0, vmax=100, cmap=cmap)
        self._write_values(ax, image, values_format)
        ax.set_xticks(
            range(n_targets), self.targets, rotation=30, ha="right", rotation_mode="anchor"
        )
        ax.set_yticks(range(n_sources), self.sources)
        ax.set_anchor("W")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_xlabel("Target (tested on)")
        ax.set_ylabel("Source (made for)")
        if n_targets > n_sources:
            # separate the column that is not a source
            ax.axvline(n_sources - 0.5, color="white", linewidth=4)
        if colorbar:
            # beside the cells and of their height, on any axes
            beside = ax.inset_axes((1.04, 0, 0.05, 1))
            ax.figure.colorbar(image, cax=beside, label=_LABELS[self.measure])
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _write_values(self, ax: Axes, image: ScalarMappable, values_format: str) -> None:
        """Numbers in the cells, black on light ones and white on dark ones."""
        self.text_ = np.empty(self.values.shape, dtype=object)
        srgb = image.to_rgba(100 * self.values)[..., :3]
        luminance = ((srgb + 0.055) / 1.055) ** 2.4 @ _LUMINANCE
        for (i, j), value in np.ndenumerate(self.values):
            empty = np.isnan(value)
            light = empty or luminance[i, j] > _EQUAL_CONTRAST
            text = "no\nsamples" if empty else format(100 * value, values_format)
            self.text_[i, j] = ax.text(
                j, i, text, ha="center", va="center", color="black" if light else "white"
            )
