"""Pictures of the benchmarks of speed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from robust_ensembles.inspection.displays.style import light_frame, series_style

Rows = list[dict[str, Any]]
_QUANTITIES = {"seconds": "seconds", "MiB": "peak memory (MiB)"}


def scaling(rows: Rows, path: Path, exponent: Callable[[Rows, str], float | None]) -> None:
    """Time above memory, a column for each axis, both scales logarithmic.

    Parameters
    ----------
    rows : list of dict
        Points with the keys axis, method, value, seconds and MiB.
    path : Path
        PNG to write.
    exponent : callable
        From the points of a line and a quantity to the slope that the legend shows.
    """
    from matplotlib import pyplot

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    figure, grid = pyplot.subplots(
        len(_QUANTITIES),
        len(axes),
        figsize=(3.2 * len(axes), 6),
        squeeze=False,
        layout="constrained",
    )
    for column, axis in enumerate(axes):
        for ax, (quantity, label) in zip(grid[:, column], _QUANTITIES.items(), strict=True):
            for number, method in enumerate(methods):
                line = [r for r in rows if (r["axis"], r["method"]) == (axis, method)]
                _line(ax, line, quantity, exponent, number)
            points = [r for r in rows if r["axis"] == axis]
            _dress(ax, axis, label if column == 0 else "", points, quantity)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _line(
    ax: Any, line: Rows, quantity: str, exponent: Callable[[Rows, str], float | None], number: int
) -> None:
    """Points, and the straight line through them."""
    slope = exponent(line, quantity)
    if slope is None:
        return
    x = np.array([row["value"] for row in line], dtype=float)
    y = np.array([row[quantity] for row in line])
    style = series_style(number)
    ax.plot(x, y, color=style["color"], marker=style["marker"], linestyle="", markersize=4)
    through = np.exp(np.log(y).mean() + slope * (np.log(x) - np.log(x).mean()))
    ax.plot(x, through, label=f"{line[0]['method']}, slope {slope:.2f}", linewidth=1, **style)
    ax.lines[-1].set_marker("")


def _dress(ax: Any, axis: str, label: str, points: Rows, quantity: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_xscale("log")
    ax.set_yscale("log")
    values = sorted({row["value"] for row in points})
    ax.set_xticks(values, [str(value) for value in values])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)
    heights = [row[quantity] for row in points if row[quantity]]
    if heights:
        # a quantity that hardly changes looks flat
        middle = (min(heights) * max(heights)) ** 0.5
        ax.set_ylim(min(0.8 * min(heights), middle / 3), max(2.5 * max(heights), 5 * middle))
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.legend(fontsize=7, frameon=False, loc="upper left")
    ax.set_xlabel(axis)
    ax.set_ylabel(label)
    light_frame(ax)
