"""Checks of whether gradients say anything: zeros, NaN, saturation."""

from __future__ import annotations

import torch
from torch import Tensor

from ...attacks import Attack, External
from ...attacks._mode import untouched
from ...attacks._objective import Objective
from ..subject import BATCH_SIZE, Subject
from ._finding import Finding, NotApplicableError, Severity, bad, good

# largest gap of two logits at which float32's cross-entropy has a gradient to speak of
_LARGEST_GAP = 15.0
_BLIND_LOSSES = ("cross_entropy", "member_cross_entropy", "double_softmax", "released_cw")


def gradients(subject: Subject) -> Finding:
    """Whether each sample has a gradient that is finite and not zero."""
    obstacle = subject.obstacle
    try:
        gradient = _margin_gradients(subject)
    except (NotApplicableError, RuntimeError) as error:
        return bad(
            f"No gradient reaches X: {obstacle or error} No gradient attack can be run, and "
            "decision-based ones (Square, Transfer) alone do not measure robustness: remove what "
            "cuts the gradient, or attack through a differentiable stand-in of that layer."
        )
    flat = gradient.flatten(1)
    broken = ~flat.isfinite().all(dim=1)
    zero = ~broken & (flat == 0).all(dim=1)
    if not (broken | zero).any():
        return good("Every sample has a gradient, finite and not zero.")
    return bad(
        f"The gradient is zero for {int(zero.sum())} and NaN or infinite for {int(broken.sum())} "
        f"of {subject.n} samples: rounding, a detached branch or saturated members that contradict "
        "each other hide the way out, so that gradient attacks stand still and robust accuracy is "
        "too high. Attack through a differentiable stand-in of that layer, and compare with "
        "Square, Transfer and EnsembleAutoAttack.",
        (broken | zero).numpy(),
    )


def saturation(subject: Subject) -> Finding:
    """Whether members are so sure that float32's cross-entropy is flat."""
    top = subject.logits().topk(2, dim=-1).values
    gap = (top[..., 0] - top[..., 1]).amax(dim=0)
    sure = gap > _LARGEST_GAP
    if not sure.any():
        return good(f"The largest gap of a member's two largest logits is {float(gap.max()):.1f}.")
    blind = [name for name, attack in subject.attacks.items() if _is_blind(attack)]
    severity: Severity = "failure" if blind else "warning"
    advice = (
        f"Here that concerns {', '.join(blind)}: do not count on it."
        if blind
        else "The attacks of this report climb the margin, which does not round to zero."
    )
    return bad(
        f"A member's two largest logits are more than {_LARGEST_GAP:g} apart for "
        f"{int(sure.sum())} of {subject.n} samples (at most {float(gap.max()):.1f}): in float32 "
        f"the cross-entropy there is flat, and attacks that climb it are blind. {advice}",
        sure.numpy(),
        severity,
    )


def _is_blind(attack: Attack) -> bool:
    return isinstance(attack, External) or getattr(attack, "loss", None) in _BLIND_LOSSES


def _margin_gradients(subject: Subject) -> Tensor:
    """Gradients of the margin of the decision as it is, on the CPU, of the shape of X."""
    target = subject.target
    x = target.tensor(subject.X)
    decided = torch.as_tensor(subject.proba().argmax(axis=1), device=x.device)
    with untouched(target.module):
        objective = Objective(target.module, "margin")
        parts = zip(x.split(BATCH_SIZE), decided.split(BATCH_SIZE), strict=True)
        return torch.cat([objective.gradient(*part)[0].cpu() for part in parts])
