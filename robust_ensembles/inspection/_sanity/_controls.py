"""Checks against attacks whose outcome is known: a huge ball, noise, and random search."""

from __future__ import annotations

import math

from ...attacks import PGD, Attack, Square, UniformNoise, WorstCase
from ..subject import Subject, percent
from ._finding import Finding, bad, good

# radius of the huge ball for data without a box, as a multiple of their range
_UNBOUNDED = 10.0
_N_RADII = 5
_ABOUT_ZERO = 0.05
_N_QUERIES = 500
# of the samples, by which Square may be stronger than gradients
_SQUARE_SLACK = 0.002


def huge_eps(subject: Subject) -> Finding:
    """Whether nothing withstands a ball that holds every other class."""
    x = subject.target.tensor(subject.X)
    low, high = float(x.min()), float(x.max())
    size = _UNBOUNDED * (high - low) if subject.box is None else subject.box[1] - subject.box[0]
    eps = size * math.sqrt(math.prod(x.shape[1:])) if subject.limits.norm == "l2" else size
    # smaller balls lie in the huge one, and walks in them get lost less
    radii = [eps / 10**k for k in range(_N_RADII)]
    attack = WorstCase([PGD(**{**subject.shared, "eps": radius}) for radius in radii])
    left = subject.robust(attack, among=subject.gradient_union)
    reach = f"PGD within eps={eps:.4g}, a ball that holds everything, leaves {percent(left)}"
    if left.mean() <= _ABOUT_ZERO:
        return good(f"{reach}.")
    return bad(
        f"{reach} robust instead of about 0%: the attack stands still or climbs the wrong way, "
        "so that its number at small eps is no measure of robustness. Look at the gradients of "
        "the listed samples.",
        left,
    )


def noise(subject: Subject) -> Finding:
    """Whether uniform noise breaks nothing that gradients leave."""
    n_draws = PGD().n_steps
    attack = UniformNoise(n_draws=n_draws, **subject.shared)
    return _beyond_gradients(subject, attack, f"{n_draws} draws of uniform noise", subject.slack)


def square(subject: Subject) -> Finding:
    """Whether random search breaks no more than 0.2 points, or one sample, beyond gradients."""
    attack = Square(n_queries=_N_QUERIES, **subject.shared)
    slack = max(1, int(_SQUARE_SLACK * subject.n))
    return _beyond_gradients(subject, attack, f"Square with {_N_QUERIES} queries", slack)


def _beyond_gradients(subject: Subject, attack: Attack, name: str, slack: int) -> Finding:
    union = subject.gradient_union
    alone = union & ~subject.robust(attack, among=union)
    found = (
        f"{name} breaks {alone.sum()} of the {union.sum()} samples that the gradient attacks leave"
    )
    if alone.sum() <= slack:
        return good(f"{found} (of {subject.n}).")
    return bad(
        f"{found}: without a gradient one finds what gradients miss, so they are obstructed "
        "(masked) and gradient attacks overstate robustness. Count the worst over both, look for "
        "steps with poor gradients, and attack through a differentiable stand-in of them.",
        alone,
    )
