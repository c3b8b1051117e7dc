"""Figures from measured numbers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robust_ensembles.inspection import TransferabilityDisplay
from robust_ensembles.inspection.displays.style import light_frame, series_style

from ._measured import Cell, Line, mean
from ._plan import Part

_PAIR = re.compile(r"^(.*?) ?(\d+)->(\d+)$")
_WEIGHTS = re.compile(r"\(([\d.]+),([\d.]+)\)$")


def heat_maps(part: Part, lines: Sequence[Line], path: Path) -> None:
    """A matrix for each method and attack, faithful numbers."""
    from matplotlib import pyplot

    measured = [line for line in lines if line.measured]
    attacks = list(dict.fromkeys(_pair(cell)[0] for line in measured for cell in line.cells))
    size = (2.4 * len(measured) + 0.8, 2.6 * len(attacks))
    figure, axes = pyplot.subplots(
        len(attacks), len(measured), figsize=size, squeeze=False, layout="constrained"
    )
    names = [str(i + 1) for i in range(part.setting.members)]
    measure = "accuracy" if part.paper == "ncen" else "success_rate"
    for (i, attack), (j, line) in itertools.product(enumerate(attacks), enumerate(measured)):
        display = TransferabilityDisplay(
            _matrix(line, attack, len(names)), sources=names, targets=names, measure=measure
        )
        display.plot(axes[i, j], colorbar=False)
        axes[i, j].set_title(f"{line.row.name} {attack}".strip(), fontsize=9)
    _save(figure, part, path)


def contours(part: Part, lines: Sequence[Line], path: Path) -> None:
    """The score over two weights, faithful and sound."""
    from matplotlib import pyplot

    points = [(_weights(line), line) for line in lines if line.measured]
    first, second = (sorted({weights[k] for weights, _ in points}) for k in (0, 1))
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for ax, way in zip(axes, ("faithful", "sound"), strict=True):
        score = np.full((len(second), len(first)), np.nan)
        for (a, b), line in points:
            score[second.index(b), first.index(a)] = _score(part, line, way)
        if min(score.shape) > 1:
            filled = ax.contourf(first, second, score, levels=10)
            figure.colorbar(filled, ax=ax, label="%", format="%.1f")
        for (a, b), _ in points:
            value = score[second.index(b), first.index(a)]
            ax.annotate(f"{value:.1f}", (a, b), fontsize=7, ha="center", va="bottom")
        ax.plot([a for (a, _), _ in points], [b for (_, b), _ in points], "k.", markersize=3)
        ax.margins(0.1)
        ax.set_xticks(first)
        ax.set_yticks(second)
        ax.set_title(way)
        ax.set_xlabel("lambda_cos" if part.paper == "ncen" else "lambda")
        ax.set_ylabel("lambda_norm" if part.paper == "ncen" else "mu")
    _save(figure, part, path)


def curves(part: Part, lines: Sequence[Line], path: Path) -> None:
    """Accuracy against eps, faithful and sound."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
    for ax, way in zip(axes, ("faithful", "sound"), strict=True):
        for number, line in enumerate(line for line in lines if line.measured):
            cells = [cell for cell in line.cells if getattr(cell, way) is not None]
            x = [cell.column.eps for cell in cells]
            y = [getattr(cell, way).mean for cell in cells]
            ax.plot(x, y, label=line.row.name, markersize=4, **series_style(number))
        ax.set_title(way)
        ax.set_xlabel("eps")
        light_frame(ax)
    axes[0].set_ylabel("accuracy (%)")
    axes[1].legend(fontsize=7, frameon=False)
    _save(figure, part, path)


def _save(figure: Any, part: Part, path: Path) -> None:
    from matplotlib import pyplot

    figure.suptitle(part.label, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _pair(cell: Cell) -> tuple[str, int, int]:
    """Attack, source and target of a column."""
    found = _PAIR.match(cell.column.attack)
    assert found is not None
    return found[1], int(found[2]) - 1, int(found[3]) - 1


def _matrix(line: Line, attack: str, n: int) -> NDArray[np.float64]:
    values = np.full((n, n), np.nan)
    for cell in line.cells:
        name, i, j = _pair(cell)
        if name == attack and cell.faithful is not None:
            values[i, j] = cell.faithful.mean / 100
    return values


def _weights(line: Line) -> tuple[float, float]:
    found = _WEIGHTS.search(line.row.name)
    assert found is not None
    return float(found[1]), float(found[2])


def _score(part: Part, line: Line, way: str) -> float:
    """NCEn's product of accuracies where it has one, else the mean over attacks."""
    numbers = [getattr(cell, way) for cell in line.attacked]
    value = mean([number and number.mean for number in numbers])
    if value is None:
        return math.nan
    product = part.paper == "ncen" and way == "faithful"
    return value * line.clean.mean / 100 if product and line.clean is not None else value
