"""Style of all displays; matplotlib is imported only when something is drawn.

The colours are those of Okabe and Ito, which can be told apart with any common colour vision;
series also differ in marker and line style.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# yellow is too pale for a line on white, and black marks elements other than series
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_INCHES_PER_LETTER = 0.08
_NORMS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$"}


def require_matplotlib() -> None:
    """Raise, before any work, if matplotlib is not installed."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError as error:
        raise ImportError("the displays need matplotlib: pip install matplotlib") from error


def axes_for(ax: Axes | None, figsize: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure of `figsize` inches."""
    require_matplotlib()
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=figsize, layout="constrained")[1]


def text_width(texts: Iterable[Any]) -> float:
    """Approximate width of the longest text in inches, at the default font size."""
    return _INCHES_PER_LETTER * max((len(str(text)) for text in texts), default=0)


def series_style(number: int) -> dict[str, Any]:
    """Colour, marker and line style of a series, counted from 0."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
    }


def norm_label(norm: str | None) -> str:
    """Norm and unit of lengths, for a label."""
    return "in units of X" if norm is None else f"{_NORMS[norm]} norm, in units of X"


def light_frame(ax: Axes) -> None:
    """Reduce the frame to the two axes, with thin grid lines."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)


def percent_axis(ax: Axes, label: str) -> None:
    """A vertical axis from 0 to 100%, with room for the markers at its ends."""
    ax.set_ylim(-3, 103)
    ax.set_ylabel(f"{label} (%)")


def settle_layout(ax: Axes) -> None:
    """Lay out a figure with a box of fixed shape once, since only the second time fits."""
    figure = ax.figure.canvas.figure  # the whole one, also for axes of a subfigure
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)


def named_estimators(estimators: Mapping[str, Any]) -> dict[str, Any]:
    """The estimators by name, checked.

    Raises
    ------
    TypeError
        If they are not a mapping.
    ValueError
        If it is empty.
    """
    if not isinstance(estimators, Mapping):
        raise TypeError(
            f"estimators must be a dict such as {{'vanilla': clf}}; got "
            f"{type(estimators).__name__}. For one estimator use from_estimator"
        )
    if not estimators:
        raise ValueError("estimators is empty; give one fitted estimator or more, by name")
    return {str(name): estimator for name, estimator in estimators.items()}
