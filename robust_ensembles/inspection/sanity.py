"""Checks of whether a robust accuracy can be trusted: one function each, run in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ._sanity._controls import huge_eps, noise, square
from ._sanity._ensembles import aggregation_swap, mora
from ._sanity._finding import Finding, NotApplicableError
from ._sanity._gradients import gradients, saturation
from ._sanity._inputs import norm_and_box, raw_units
from ._sanity._order import more_steps, order, strength
from ._sanity._state import agreement, determinism, eval_mode, unchanged
from ._sanity._transfer import transfer
from .subject import Subject

__all__ = ["CHECKS", "Finding", "Subject", "run_check"]

CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "eval_mode": eval_mode,
    "determinism": determinism,
    "agreement": agreement,
    "raw_units": raw_units,
    "gradients": gradients,
    "saturation": saturation,
    "order": order,
    "more_steps": more_steps,
    "strength": strength,
    "huge_eps": huge_eps,
    "noise": noise,
    "square": square,
    "transfer": transfer,
    "aggregation_swap": aggregation_swap,
    "mora": mora,
    "norm_and_box": norm_and_box,
    "unchanged": unchanged,
}


def run_check(name: str, subject: Subject) -> Finding:
    """Run one check; an error in it is a finding, too.

    Parameters
    ----------
    name : str
        A key of `CHECKS`.
    subject : Subject

    Returns
    -------
    finding : Finding
    """
    try:
        finding = CHECKS[name](subject)
    except NotApplicableError as reason:
        finding = Finding(passed=None, severity="information", message=str(reason))
    except Exception as error:
        message = f"could not be run: {type(error).__name__}: {error}"
        finding = Finding(passed=None, severity="warning", message=message)
    return replace(finding, check=name)
