"""Checks of whether a robust accuracy can be trusted: one function each, run in this order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..attacks import (
    MORA,
    PGD,
    Attack,
    AutoAttack,
    External,
    Square,
    Transfer,
    UniformNoise,
    WorstCase,
)
from ..attacks.autoattack import swapped_aggregations
from ..attacks.engine.ascent import Objective
from ..attacks.engine.balls import box_excess
from ..attacks.engine.forward import frozen
from .cells import Mask, same_threat
from .subject import (
    BATCH_SIZE,
    ROUNDING,
    Finding,
    NotApplicableError,
    Severity,
    Snapshot,
    Subject,
    bad,
    far_apart,
    good,
    percent,
)

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
    with frozen(target.module):
        objective = Objective(target.module, "margin")
        parts = zip(x.split(BATCH_SIZE), decided.split(BATCH_SIZE), strict=True)
        return torch.cat([objective.gradient(*part)[0].cpu() for part in parts])


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


# of probabilities, between the attacked module and the estimator: other code, same weights
_AGREEMENT = 1e-3


def eval_mode(subject: Subject) -> Finding:
    """Whether the module computes in eval mode what it computes as it was given."""
    parts = subject.target.module.named_modules()
    training = [name or "the module itself" for name, part in parts if part.training]
    if not training:
        return good("Every part of the module is in eval mode.")
    _require_determinism(subject)
    differ = far_apart(subject.proba(as_given=True), subject.proba(), ROUNDING)
    listed = f"{', '.join(training[:3])}{', ...' if len(training) > 3 else ''}"
    if not differ.any():
        return good(f"In training mode, which changes no output: {listed}.")
    return bad(
        f"In training mode: {listed}. {differ.sum()} of {subject.n} samples get other "
        "probabilities than in eval mode. Attacks and accuracies here are those of eval mode, not "
        "of the module as it was given. Call module.eval() before evaluating or deploying it.",
        differ,
    )


def determinism(subject: Subject) -> Finding:
    """Whether two passes agree."""
    differ = subject.differing
    if not differ.any():
        return good("Two passes agree.")
    return bad(
        f"Two passes differ for {differ.sum()} of {subject.n} samples: the module draws random "
        "numbers or carries state from call to call. Gradients and restarts then mislead attacks, "
        "and samples count as broken by chance. Switch the noise off in eval mode, or measure "
        'with AutoAttack(version="rand"), which averages gradients.',
        differ,
    )


def agreement(subject: Subject) -> Finding:
    """Whether the attacked module computes what the estimator answers."""
    _require_determinism(subject)
    attacked = subject.proba()
    differ = far_apart(attacked, _forward_proba(subject), _AGREEMENT)
    estimator = subject.estimator
    if hasattr(estimator, "predict_proba"):
        differ |= far_apart(attacked, np.asarray(estimator.predict_proba(subject.X)), _AGREEMENT)
    if hasattr(estimator, "predict"):
        decided = subject.target.classes[attacked.argmax(axis=1)]
        two = np.sort(attacked, axis=1)[:, -2:]
        tied = two[:, 1] - two[:, 0] <= _AGREEMENT
        differ |= (decided != np.asarray(estimator.predict(subject.X))) & ~tied
    if not differ.any():
        return good("The attacked module computes what the estimator answers.")
    return bad(
        f"For {differ.sum()} of {subject.n} samples the attacked module (the mean of the members' "
        f"probabilities) and the answer of {type(estimator).__name__} differ by more than "
        f"{_AGREEMENT:g}: something else was attacked than is deployed. Decide by the mean "
        "probability, or give a module without member_logits whose forward is the deployed rule.",
        differ,
    )


def unchanged(subject: Subject) -> Finding:
    """Whether the evaluation has left weights, buffers, modes and outputs as they were."""
    before, after = subject.snapshot, Snapshot.of(subject)
    if before.digest != after.digest or before.modes != after.modes:
        return bad(
            "Weights, buffers or modes of the module are not what they were before the "
            "evaluation: it has updated itself, so that the samples were measured on different "
            "models. Let forward change nothing in eval mode."
        )
    _require_determinism(subject)
    if before.proba is None or after.proba is None:
        raise NotApplicableError("the module could not be called")
    differ = far_apart(before.proba, after.proba, ROUNDING)
    if not differ.any():
        return good("Weights, buffers, modes and outputs are as they were before.")
    return bad(
        f"{differ.sum()} of {subject.n} samples get other probabilities than before the "
        "evaluation: the module keeps state outside of its buffers. Let forward change nothing.",
        differ,
    )


def _require_determinism(subject: Subject) -> None:
    if subject.differing.any():
        raise NotApplicableError("outputs are random, so that they cannot be compared")


def _forward_proba(subject: Subject) -> NDArray[np.float64]:
    """Probabilities of the module's own forward, which need not be the mean of its members."""
    target = subject.target
    with frozen(target.module), torch.no_grad():
        parts = [target.module(x).cpu() for x in target.tensor(subject.X).split(BATCH_SIZE)]
    proba: NDArray[np.float64] = torch.cat(parts).double().softmax(dim=1).numpy()
    return proba


def transfer(subject: Subject) -> Finding:
    """Whether examples made on other models break nothing that gradient attacks leave."""
    if not subject.rivals:
        raise NotApplicableError("give a surrogate, or several estimators, to transfer from")
    union = subject.gradient_union
    alone = {name: _broken(subject, rival, union) for name, rival in subject.rivals.items()}
    tried = {name: mask for name, mask in alone.items() if isinstance(mask, np.ndarray)}
    skipped = "".join(f" {n} was not used: {why}" for n, why in alone.items() if n not in tried)
    if not tried:
        raise NotApplicableError(f"no other model could be used.{skipped}")
    broken: Mask = np.logical_or.reduce(list(tried.values()))
    counts = ", ".join(f"{name} {mask.sum()}" for name, mask in tried.items())
    found = (
        f"Of the {union.sum()} samples that gradient attacks on the target leave, examples made "
        f"on other models break: {counts}."
    )
    if broken.sum() <= 1:
        return good(found + skipped)
    return bad(
        f"{found} A black box cannot know more than the white box, so the target's own gradients "
        "are obstructed and its white-box accuracy is too high. Count the worst over white box and "
        f"transfer, and attack with EnsembleAutoAttack.{skipped}",
        broken,
    )


def _broken(subject: Subject, rival: Any, union: Mask) -> Mask | str:
    """Samples that a rival's examples break, or why it cannot be asked."""
    classes = getattr(rival, "classes_", subject.target.classes)
    if not np.array_equal(classes, subject.target.classes):
        return "it has other classes."
    # in the target's box, whatever the rival's own is
    shared = {**subject.shared, "clip_values": subject.box}
    try:
        robust = subject.robust(Transfer(rival, PGD(**shared)), among=union)
    except NotApplicableError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}."
    return union & ~robust


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
