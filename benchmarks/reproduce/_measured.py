"""Measured numbers beside published ones, and what the seeds' spread leaves of differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ._cells import Cells, Rows, Unit
from ._plan import Model, Part, Row
from ._published import Column

TRANSFER = "transfer"
"""The metric of what is tried on another member: of images that some member has right."""


class Number(NamedTuple):
    """An accuracy in percent, of some seeds.

    Parameters
    ----------
    values : tuple of float
        One for each seed.
    n_samples : int
        Images that each is a fraction of.
    """

    values: tuple[float, ...]
    n_samples: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Two standard deviations: of the seeds, where there are several, and of the images."""
        part = self.mean / 100
        of_images = 1e4 * part * (1 - part) / self.n_samples
        of_seeds = statistics.variance(self.values) if len(self.values) > 1 else 0.0
        return 2 * math.sqrt(of_seeds + of_images)


class Cell(NamedTuple):
    """A method under an attack.

    Parameters
    ----------
    column : Column
    published : float or None
        Percent.
    faithful : Number or None
        By the paper's protocol, as the paper counts; None if not run.
    of_all : Number or None
        By the paper's protocol, of all images.
    sound : Number or None
        Of all images, under sound attacks too; of matrices, as `faithful` counts.
    """

    column: Column
    published: float | None
    faithful: Number | None
    of_all: Number | None
    sound: Number | None

    @property
    def difference(self) -> float | None:
        """Measured minus published, both as the paper counts."""
        if self.published is None or self.faithful is None:
            return None
        return self.faithful.mean - self.published

    @property
    def within(self) -> bool | None:
        """Whether the difference lies within the spread."""
        if self.difference is None or self.faithful is None:
            return None
        return abs(self.difference) <= self.faithful.spread


@dataclass(frozen=True)
class Line:
    """A row of a table with all that was measured.

    Parameters
    ----------
    row : Row
    cells : list of Cell
        One for each column.
    clean : Number or None
        Accuracy without an attack.
    white_box : Number or None
        CLDL's tables: accuracy under PGD-20 on two losses.
    losses : dict of Number
        CLDL's tables: conditional accuracy by the losses of the transferred examples.
    complete : tuple of int
        Seeds of which all was measured.
    measured : bool
        Whether anything was.
    """

    row: Row
    cells: list[Cell]
    clean: Number | None = None
    white_box: Number | None = None
    losses: dict[str, Number] | None = None
    complete: tuple[int, ...] = ()
    measured: bool = False

    @property
    def attacked(self) -> list[Cell]:
        """Those cells that have an attack."""
        return [cell for cell in self.cells if cell.column.attack != "clean"]

    def over(self, columns: Sequence[Column]) -> list[Cell]:
        """Those cells of some columns."""
        return [cell for cell in self.cells if cell.column in columns]


class Claim(NamedTuple):
    """How two methods differ, over all attacks of a table.

    Parameters
    ----------
    better, other : str
        Names of methods.
    published, faithful, sound : float
        Mean difference in points; None where nothing is printed.
    signs : int
        Columns where the measured difference has the sign of the published one.
    within : int
        Columns whose published difference is no larger than the spread of a difference here:
        smaller than this measurement can tell apart, whatever the paper's could.
    n : int
        Columns.
    """

    better: str
    other: str
    published: float | None
    faithful: float | None
    sound: float | None
    signs: int
    within: int
    n: int


def lines(part: Part, units: Sequence[Unit], cells: Cells) -> list[Line]:
    """All rows of a part with what was measured so far."""
    return [_line(part, row, units, cells) for row in part.rows]


def claims(lines: Sequence[Line], best: Line) -> list[Claim]:
    """One method against each other, by what all rows have."""
    columns = shared(lines)
    return [_claim(best, line, columns) for line in lines if line is not best and line.measured]


def shared(lines: Sequence[Line]) -> list[Column]:
    """Attacks that every row has that has any: means over different ones do not compare."""
    present = [
        {cell.column for cell in line.attacked if getattr(cell, way) is not None}
        for line in lines
        for way in ("published", "faithful", "of_all", "sound")
    ]
    attacked = [cell.column for cell in lines[0].attacked]
    return [column for column in attacked if all(column in some for some in present if some)]


def mean(numbers: Sequence[float | None]) -> float | None:
    """Of those that there are."""
    found = [number for number in numbers if number is not None]
    return statistics.fmean(found) if found else None


def _line(part: Part, row: Row, units: Sequence[Unit], cells: Cells) -> Line:
    found = [(model, _rows(model, units, cells)) for model in row.models]
    seeds = [[row for rows in kept for row in rows] for _, kept in found if kept]
    made = [_cell(column, row.published.get(column), seeds) for column in part.columns]
    if not seeds:
        return Line(row, made)
    n_images = len(part.images.y_test)
    white = tuple(100 * one["white box"] for rows in seeds for one in rows if "white box" in one)
    return Line(
        row,
        made,
        clean=_cell(Column("clean", 0.0), None, seeds).faithful,
        white_box=Number(white, n_images) if white else None,
        losses=_losses(seeds, n_images),
        complete=tuple(m.estimator.random_state for m, kept in found if len(kept) == len(units)),
        measured=True,
    )


def _rows(model: Model, units: Sequence[Unit], cells: Cells) -> list[Rows]:
    """All that was measured of a model, by units."""
    kept = [cells.read(model.key, unit.name) for unit in units]
    return [content["rows"] for content in kept if content is not None]


def _losses(seeds: Sequence[Rows], n_images: int) -> dict[str, Number]:
    """Conditional accuracies by the losses of the transferred examples."""
    found: dict[str, Rows] = {}
    for row in (row for rows in seeds for row in rows):
        if "losses" in row and not math.isnan(row["conditional"]):
            found.setdefault(row["losses"], []).append(row)
    return {
        label: Number(
            tuple(100 * row["conditional"] for row in rows),
            min(_n_right(row, n_images) for row in rows),
        )
        for label, rows in found.items()
    }


def _n_right(row: dict[str, Any], n_images: int) -> int:
    """Images that a conditional accuracy is a fraction of."""
    if "n_samples" in row:
        return int(row["n_samples"])
    # cells of before it was kept; an accuracy of 0 has no spread, whatever it is a fraction of
    part = row["conditional"]
    return round(n_images * row["unconditional"] / part) if part else n_images


def _cell(column: Column, published: float | None, seeds: Sequence[Rows]) -> Cell:
    def number(name: str, **where: Any) -> Number | None:
        rows = [_find(rows, column, where) for rows in seeds]
        present = [row for row in rows if row is not None and not math.isnan(row[name])]
        if not present:
            return None
        values = tuple(100 * row[name] for row in present)
        return Number(values, min(row["n_samples"] for row in present))

    everyone = {"metric": "unconditional"}
    clean = column.attack == "clean"
    faithful = number("faithful", **(everyone if clean else {"published": True}))
    sound = number("sound", **everyone) or number("sound", metric=TRANSFER)
    return Cell(column, published, faithful, number("faithful", **everyone), sound)


def _find(rows: Rows, column: Column, where: dict[str, Any]) -> dict[str, Any] | None:
    for row in rows:
        here = row.get("attack") == column.attack and math.isclose(row["eps"], column.eps)
        if here and all(row[name] == value for name, value in where.items()):
            return row
    return None


def _claim(best: Line, other: Line, columns: Sequence[Column]) -> Claim:
    found = [_gain(*pair) for pair in zip(best.over(columns), other.over(columns), strict=True)]
    gains = [gain for gain in found if gain is not None]
    printed = [gain for gain in gains if gain.published is not None]
    return Claim(
        best.row.name,
        other.row.name,
        mean([gain.published for gain in gains]),
        mean([gain.faithful for gain in gains]),
        mean([gain.sound for gain in gains]),
        sum((gain.published or 0) * gain.faithful > 0 for gain in printed),
        sum(abs(gain.published or 0) <= gain.spread for gain in printed),
        len(printed),
    )


class _Gain(NamedTuple):
    """How much better one method is than another under an attack, and what can be told apart."""

    published: float | None
    faithful: float
    sound: float
    spread: float


def _gain(mine: Cell, other: Cell) -> _Gain | None:
    numbers = mine.faithful, other.faithful, mine.sound, other.sound
    if any(number is None for number in numbers):
        return None
    faithful, faithful_other, sound, sound_other = (number for number in numbers if number)
    published = None
    if mine.published is not None and other.published is not None:
        published = mine.published - other.published
    return _Gain(
        published,
        faithful.mean - faithful_other.mean,
        sound.mean - sound_other.mean,
        math.hypot(faithful.spread, faithful_other.spread),
    )
