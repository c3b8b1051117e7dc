"""Checks of whether stronger attacks are stronger."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ...attacks import PGD
from ..cells import Mask
from ..subject import Subject, percent
from ._finding import Finding, NotApplicableError, bad, good

_FEW_STEPS, _MANY_STEPS = 10, 50


def order(subject: Subject) -> Finding:
    """Whether FGSM leaves no fewer samples than PGD, PGD than APGD, and APGD than a cascade."""
    chain = {"FGSM": subject.fgsm, "PGD": subject.pgd, "APGD": subject.apgd}
    wrong = np.zeros(subject.n, dtype=bool)
    for weaker, stronger in pairwise(chain.values()):
        wrong |= _wrongly_left(weaker, stronger, subject.slack)
    for name, union in subject.cascades.items():
        chain[name] = union
        # no slack: a cascade begins with this very APGD
        wrong |= _wrongly_left(subject.apgd, union, 0)
    numbers = ", ".join(f"{name} {percent(mask)}" for name, mask in chain.items())
    if not wrong.any():
        return good(f"Robust accuracies fall as they should: {numbers}.")
    return bad(
        f"A stronger attack is weaker than a weak one ({numbers}): the listed samples withstand it "
        "but not the weaker. The loss or its gradient misleads long walks. Look at the gradients, "
        "take restarts and other losses (EnsembleAutoAttack), and count the worst of all.",
        wrong,
    )


def more_steps(subject: Subject) -> Finding:
    """Whether 50 steps are no weaker than 10."""
    few, many = (
        subject.robust(PGD(n_steps=n, **subject.shared)) for n in (_FEW_STEPS, _MANY_STEPS)
    )
    numbers = f"{_FEW_STEPS} steps {percent(few)}, {_MANY_STEPS} steps {percent(many)}"
    wrong = _wrongly_left(few, many, subject.slack)
    if not wrong.any():
        return good(f"PGD does not get weaker with more steps: {numbers}.")
    return bad(
        f"PGD gets weaker with more steps ({numbers}): the listed samples withstand more steps but "
        "not fewer. Gradients mislead, or the step does not fit eps. Compare with APGD and Square.",
        wrong,
    )


def strength(subject: Subject) -> Finding:
    """Whether the attacks of the report leave no more than ordinary gradient attacks do."""
    if not subject.reported:
        raise NotApplicableError("no attack of the report was measured on this threat")
    reported, standard = subject.reported_union, subject.standard
    missed = reported & ~standard
    found = (
        f"On {subject.n} samples the attacks of the report leave {percent(reported)}; FGSM, PGD, "
        f"APGD and targeted APGD break {missed.sum()} of those"
    )
    if missed.sum() <= subject.slack:
        return good(f"{found}.")
    return bad(
        f"{found}: the report's attacks are too weak for this model. Add AutoAttack, or "
        "EnsembleAutoAttack.",
        missed,
        "warning",
    )


def _wrongly_left(weaker: Mask, stronger: Mask, slack: int) -> Mask:
    """Samples that only the weaker attack breaks, if it breaks more by more than the slack."""
    left: Mask = stronger & ~weaker
    return left if stronger.sum() > weaker.sum() + slack else np.zeros_like(left)
