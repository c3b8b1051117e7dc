"""Checks of what goes in and what came out: units of X, ball and box."""

from __future__ import annotations

import numpy as np

from ...attacks._checks import box_excess
from ..subject import Subject
from ._finding import Finding, NotApplicableError, bad, good


def raw_units(subject: Subject) -> Finding:
    """Whether images are in the box that they are declared to be in, [0, 1] by default."""
    X = np.asarray(subject.all_X)
    if X.ndim != 4:
        raise NotApplicableError("the units of X cannot be told, because it holds no images")
    if X.dtype == np.uint8 and subject.target.scales_uint8:
        return good("Images are uint8, attacked in [0, 1].")
    box = subject.box or (0.0, 1.0)
    rows = X.reshape(len(X), -1)
    lows, highs = rows.min(axis=1), rows.max(axis=1)
    low, high = float(lows.min()), float(highs.max())
    if not box_excess(low, high, box):
        return good(f"Images span [{low:.4g}, {high:.4g}], inside {box}.")
    outside = [bool(box_excess(*ends, box)) for ends in zip(lows, highs, strict=True)]
    return bad(
        f"{sum(outside)} of {len(X)} images lie outside {box}: X spans [{low:.4g}, {high:.4g}]. It "
        f"looks as if it had been scaled before, so eps={subject.limits.eps:.4g} is not in the "
        "units of the raw data, and no box keeps adversarial examples valid images. Move the "
        "scaling into the module (modules.Normalize) and give raw X, or declare the range of the "
        "raw data as clip_values=(low, high).",
        np.array(outside),
    )


def norm_and_box(subject: Subject) -> Finding:
    """Whether the final examples of all attacks of the report lie in their ball and box."""
    measured = {name: cell for name, cell in subject.cells.items() if cell.error is None}
    if not measured:
        raise NotApplicableError("no attack of the report has made examples")
    outside = {name: cell for name, cell in measured.items() if cell.outside}
    if not outside:
        return good("In float64 the final examples of all attacks lie in their ball and box.")
    worst = "; ".join(
        f"{name}: {len(cell.outside)} samples, by up to {cell.excess:.3g}"
        for name, cell in outside.items()
    )
    return bad(
        f"Examples lie outside the ball or the box ({worst}), so their robust accuracy is too low "
        "for this eps. Project the examples of that attack, or wrap it in attacks.External.",
        sorted({sample for cell in outside.values() for sample in cell.outside}),
    )
