"""What a check has found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Severity = Literal["failure", "warning", "information"]


class NotApplicableError(Exception):
    """There is nothing for a check to look at; says why."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of one sanity check.

    Parameters
    ----------
    check : str
        Name of the check.
    passed : bool or None
        None if the check could not be run.
    severity : {"failure", "warning", "information"}
        ``"failure"``: the robust accuracy cannot be trusted. ``"warning"``: look into it.
    message : str
        What was measured, what it means and what to do.
    samples : tuple of int
        Indices in X of the samples that do not pass.
    """

    check: str = ""
    passed: bool | None
    severity: Severity
    message: str
    samples: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Finding:
        """A finding from what `dataclasses.asdict` and JSON have made of it."""
        known = {field.name: plain[field.name] for field in fields(cls)}
        return cls(**{**known, "samples": tuple(plain["samples"])})


def good(message: str) -> Finding:
    """A check that has passed."""
    return Finding(passed=True, severity="information", message=message)


def bad(
    message: str,
    samples: NDArray[np.bool_] | Iterable[int] = (),
    severity: Severity = "failure",
) -> Finding:
    """A check that has not passed.

    Parameters
    ----------
    message : str
    samples : bool ndarray or iterable of int
        A mask over the first samples, or indices.
    severity : str, default="failure"
    """
    if isinstance(samples, np.ndarray) and samples.dtype == bool:
        samples = np.flatnonzero(samples)
    indices = tuple(int(i) for i in samples)
    return Finding(passed=False, severity=severity, message=message, samples=indices)
