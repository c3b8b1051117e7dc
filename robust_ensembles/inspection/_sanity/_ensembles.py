"""Checks for ensembles: other aggregations, members alone, and MORA."""

from __future__ import annotations

from ...attacks import MORA, Attack, AutoAttack
from ...attacks.autoattack import swapped_aggregations
from .._report._bounds import same_threat
from ..cells import Mask
from ..subject import Subject, percent
from ._finding import Finding, NotApplicableError, bad, good


def aggregation_swap(subject: Subject) -> Finding:
    """Whether attacks on other rules, or on a member alone, break what the deployed one leaves."""
    n_members = _count_members(subject)
    left = union = subject.reported_union & subject.gradient_union
    counts = {}
    # the first is the deployed rule, whose APGD the union counts in
    for attack in swapped_aggregations(n_members, **subject.shared)[1:]:
        still = subject.robust(attack, among=left)
        counts[_rule(attack)] = left.sum() - still.sum()
        left = still
    alone = union & ~left
    numbers = ", ".join(f"{rule} {count}" for rule, count in counts.items())
    found = (
        f"Of {union.sum()} samples that all attacks on the deployed rule leave, "
        f"APGD on other rules breaks {alone.sum()} ({numbers})"
    )
    if alone.sum() <= subject.slack:
        return good(f"{found}.")
    return bad(
        f"{found}, all replayed on the deployed rule: the members' gradients cancel or hide in the "
        "aggregate, and the robust accuracy is too high. Report EnsembleAutoAttack or MORA.",
        alone,
    )


def mora(subject: Subject) -> Finding:
    """Whether MORA finds more than AutoAttack."""
    _count_members(subject)
    name, robust = _autoattack(subject)
    left = subject.robust(MORA(**subject.shared))
    alone = robust & ~left
    found = (
        f"On {subject.n} samples MORA leaves {percent(left)} and {name} {percent(robust)}; MORA "
        f"alone breaks {alone.sum()}"
    )
    if left.sum() >= robust.sum():
        return good(f"{found}. MORA is not lower.")
    if alone.sum() <= subject.slack:
        return good(f"{found}. MORA is lower by chance at most.")
    missed = subject.reported_union & robust & ~left
    if missed.sum() <= subject.slack:
        return bad(f"{found}. MORA is lower: report it beside AutoAttack.", alone, "information")
    return bad(
        f"{found}. MORA is lower, and {missed.sum()} of these samples withstand all attacks of the "
        "report: AutoAttack overstates this ensemble. Report EnsembleAutoAttack, or MORA beside "
        "AutoAttack.",
        missed,
    )


def _autoattack(subject: Subject) -> tuple[str, Mask]:
    """AutoAttack where the report has it, else its walks of APGD."""
    for name, attack in subject.attacks.items():
        measured = subject.cells[name].error is None
        if isinstance(attack, AutoAttack) and measured and same_threat(attack, subject.limits):
            return "AutoAttack", subject.robust(attack)
    return "AutoAttack's walks (it is not in the report)", subject.standard


def _count_members(subject: Subject) -> int:
    n_members = len(subject.logits())
    if n_members == 1:
        raise NotApplicableError("there is one member, or the module does not show its members")
    return n_members


def _rule(attack: Attack) -> str:
    """Name of what an attack climbs."""
    aggregation, loss = attack.get_params()["aggregation"], attack.get_params()["loss"]
    if isinstance(aggregation, int):
        return f"member {aggregation} alone"
    return "mean member margin" if loss == "member_margin" else "mean logits"
