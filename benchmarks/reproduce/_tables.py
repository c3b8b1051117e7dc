"""A table's result as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import _report
from . import _methods
from ._measured import Claim, Line, Number, claims, mean, shared
from ._plan import Part
from ._published import Column
from ._units import second_radius

_COUNTED = {
    "cldl": "of the images that the ensemble has right when clean, under examples transferred "
    "from vanilla ensembles of 3 and of 5 members",
    "ncen": "of the images that the ensemble has right when clean, in the white box; clean (ACE) "
    "is of all images",
    "ceat": "of all images, in the white box",
}
_SPREAD = (
    "Spread (±): two standard deviations, of the seeds and of the sample of images together; with "
    "one seed, of the images alone, which is too little."
)
_SOUND = {
    "cldl": "of all images, with transferred examples on the CW margin too",
    "ncen": "of all images, under PGD-40 by steps of eps / 4 on two losses too",
    "ceat": "of all images, under PGD-20 by steps of eps / 4 on two losses too",
}


def sections(
    part: Part, lines: Sequence[Line], what: str | None = None
) -> tuple[list[dict[str, Any]], str]:
    """Summary rows and the text below, for one part.

    Parameters
    ----------
    part : Part
    lines : sequence of Line
    what : str, default=None
        A figure shows.

    Returns
    -------
    rows : list of dict
        A row for each method.
    text : str
        Markdown.
    """
    columns = shared(lines)
    rows = _fitting([_summary(part, line, columns) for line in lines], lines)
    if what is not None:
        return rows, f"{what}\n\nAbove: {_means(lines, columns)}. {_SPREAD}\n\n{_cells(lines)}"
    texts = [_how_to_read(part, _means(lines, columns)), _orders(lines, columns)]
    best = _best(part, lines)
    if best is not None:
        texts.append(_claims(best, claims(lines, best)))
    texts += [_losses(lines), _ablations(lines), _cells(lines)]
    return rows, "\n\n".join(text for text in texts if text)


def cells(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Every number of every seed, for JSON."""
    return [
        {
            "method": line.row.name,
            "attack": cell.column.attack,
            "eps": cell.column.eps,
            "published": cell.published,
            "faithful": cell.faithful and cell.faithful.values,
            "faithful, of all images": cell.of_all and cell.of_all.values,
            "sound": cell.sound and cell.sound.values,
            "difference": cell.difference,
            "within the spread": cell.within,
        }
        for line in lines
        for cell in line.cells
    ]


def _summary(part: Part, line: Line, columns: Sequence[Column]) -> dict[str, Any]:
    """Means over some attacks."""
    attacked = line.over(columns)
    both = [cell for cell in attacked if cell.difference is not None]
    within = sum(bool(cell.within) for cell in both)
    row = {
        "method": line.row.name,
        "seeds": _seeds(line),
        "clean": _shown(line.clean),
        "published": _plain(mean([cell.published for cell in attacked])),
        "faithful": _plain(_mean_of([cell.faithful for cell in attacked])),
        "difference": _signed(mean([cell.difference for cell in both])),
        "within the spread": f"{within} of {len(both)}" if both else "",
        "of all images": _plain(_mean_of([cell.of_all for cell in attacked])),
        "sound": _plain(_mean_of([cell.sound for cell in attacked])),
    }
    if part.paper == "cldl":
        row[f"white box, eps {second_radius(part):g}"] = _shown(line.white_box)
    return row


def _seeds(line: Line) -> int | str:
    """Of how many all was measured."""
    planned, complete = len(line.row.models), len(line.complete)
    if not line.measured:
        return "not run"
    return planned if complete == planned else f"{complete} of {planned}"


def _means(lines: Sequence[Line], columns: Sequence[Column]) -> str:
    """What the means are over."""
    n, n_all = len(columns), len(lines[0].attacked)
    which = "all" if n == n_all else f"the {n} of {n_all}"
    rest = "" if n == n_all else " that every measured row has"
    return f"means over {which} attacks and radii{rest}"


def _how_to_read(part: Part, means: str) -> str:
    return (
        f"**{part.label}.** Percent; {means}, which the last table has one by one. "
        f"Published and faithful: {_COUNTED[part.paper]}. Of all images: the same "
        f"attacks. Sound: {_SOUND[part.paper]}"
        + (
            "; the white box is PGD-20 on two losses, of all images. "
            if part.paper == "cldl"
            else ". "
        )
        + _SPREAD
    )


def _orders(lines: Sequence[Line], columns: Sequence[Column]) -> str:
    """Methods from the best to the worst, by each count."""
    ways = {
        "published": lambda line: mean([cell.published for cell in line.over(columns)]),
        "faithful": lambda line: _mean_of([cell.faithful for cell in line.over(columns)]),
        "sound": lambda line: _mean_of([cell.sound for cell in line.over(columns)]),
        "white box": lambda line: line.white_box and line.white_box.mean,
    }
    items = []
    for way, value in ways.items():
        found = {line.row.name: value(line) for line in lines if value(line) is not None}
        ordered = sorted(found, key=lambda name: -found[name])
        if ordered:
            shown = " > ".join(f"{name} ({found[name]:.1f})" for name in ordered)
            items.append(f"- {way}: {shown}")
    return "Best to worst by the mean over attacks:\n\n" + "\n".join(items) if items else ""


def _best(part: Part, lines: Sequence[Line]) -> Line | None:
    """The paper's own method with the highest published mean, if it was run."""
    mine = [
        line
        for line in lines
        if _methods.own(part.paper, line.row.name) and line.row.published and line.measured
    ]
    return max(mine, key=lambda line: mean([c.published for c in line.attacked]) or 0, default=None)


def _claims(best: Line, found: list[Claim]) -> str:
    if not found:
        return ""
    rows = [
        {
            "against": claim.other,
            "published": _signed(claim.published),
            "faithful": _signed(claim.faithful),
            "sound": _signed(claim.sound),
            "same sign as published": f"{claim.signs} of {claim.n}" if claim.n else "",
            "published within the spread": f"{claim.within} of {claim.n}" if claim.n else "",
        }
        for claim in found
    ]
    return (
        f"What {best.row.name} gains, in points, mean over attacks. The last column counts the "
        "published differences that are no larger than the spread of a difference here: smaller "
        "than this measurement can tell apart.\n\n" + _report.markdown_table(rows)
    )


def _losses(lines: Sequence[Line]) -> str:
    rows = [
        {"method": line.row.name, **{label: _shown(n) for label, n in line.losses.items()}}
        for line in lines
        if line.losses
    ]
    if not rows:
        return ""
    return (
        "Which loss of the transferred examples carries the numbers: conditional accuracy after "
        "all four attacks (one seed) at the second radius, by the losses that they were made "
        "with.\n\n" + _report.markdown_table(rows)
    )


def _ablations(lines: Sequence[Line]) -> str:
    notes = [f"- {line.row.name}: {line.row.note}." for line in lines if line.row.note]
    if not notes:
        return ""
    return "Rows that the paper does not have, or that are not run:\n\n" + "\n".join(notes)


def _cells(lines: Sequence[Line]) -> str:
    rows = [
        {
            "method": line.row.name,
            "attack": str(cell.column),
            "published": _plain(cell.published, 2),
            "faithful": _shown(cell.faithful),
            "difference": _signed(cell.difference),
            "within the spread": {None: "", True: "yes", False: "no"}[cell.within],
            "of all images": _shown(cell.of_all),
            "sound": _shown(cell.sound),
        }
        for line in lines
        for cell in line.cells
    ]
    return "Every number:\n\n" + _report.markdown_table(_fitting(rows, lines))


def _fitting(rows: list[dict[str, Any]], lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Matrices have no numbers of all images."""
    cells = [cell for line in lines for cell in line.cells]
    if any(cell.of_all for cell in cells) or not any(cell.faithful for cell in cells):
        return rows
    return [{name: row[name] for name in row if name != "of all images"} for row in rows]


def _mean_of(numbers: Sequence[Number | None]) -> float | None:
    return mean([None if number is None else number.mean for number in numbers])


def _shown(number: Number | None) -> str:
    """With its spread."""
    return "" if number is None else f"{number.mean:.1f} ± {number.spread:.1f}"


def _plain(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"
