"""Sanity checks of robust accuracies: one function each, in the order in which they run.

A check takes `Evidence` (the estimator as a target, the first samples, the measurements of the
report, and the checks' own attacks, each computed once) and returns a `Finding`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..attacks import (
    APGD,
    FGSM,
    MORA,
    PGD,
    Attack,
    AutoAttack,
    BoundedAttack,
    External,
    Square,
    Target,
    TargetedAPGD,
    Transfer,
    UniformNoise,
    WorstCase,
    resolve_target,
)
from ..attacks.autoattack import Cascade, swapped_aggregations
from ..attacks.engine.ascent import Objective
from ..attacks.engine.balls import Box, box_excess
from ..attacks.engine.forward import frozen
from ..exceptions import NotDifferentiableError
from ..metrics.robust import robust_mask
from .cells import Cell, Limits, Mask, describe, digest_of_model, same_threat

__all__ = ["CHECKS", "Evidence", "Finding", "run_check"]

Severity = Literal["failure", "warning", "information"]

_BATCH_SIZE = 256
# tolerance of probabilities between two equal passes: rounding on any device
_ROUNDING = 1e-5
# tolerance of probabilities between the attacked module and the estimator: other code, same weights
_AGREEMENT = 1e-3
# target classes of the standard attacks
_N_TARGETS = 3
# radius of the huge ball for data without a box, as a multiple of the range of X
_UNBOUNDED = 10.0
_N_RADII = 5
_ABOUT_ZERO = 0.05
_N_QUERIES = 500
# fraction of the samples by which Square may be stronger than gradient attacks
_SQUARE_SLACK = 0.002
_FEW_STEPS, _MANY_STEPS = 10, 50
# largest gap of two logits at which the cross-entropy in float32 has a useful gradient
_LARGEST_GAP = 15.0
_BLIND_LOSSES = ("cross_entropy", "member_cross_entropy", "double_softmax", "released_cw")


class Evidence:
    """One estimator, the first samples, and the measurements of the report.

    Parameters
    ----------
    estimator : fitted estimator or nn.Module
    X : array-like of shape (n_samples, ...)
        All of X.
    y : array-like of shape (n_samples,)
    limits : Limits
        The threat of the checks.
    n_sanity : int
        Number of samples for the costly checks, from the first on.
    rivals : dict
        Other models to transfer examples from, by name.
    """

    def __init__(
        self,
        estimator: Any,
        X: ArrayLike,
        y: ArrayLike,
        *,
        limits: Limits,
        n_sanity: int,
        rivals: Mapping[str, Any],
    ) -> None:
        self.estimator, self.all_X, self.limits, self.rivals = estimator, X, limits, rivals
        self.X = _take(X, np.arange(min(n_sanity, len(np.asarray(y)))))
        self.y = np.asarray(y)[:n_sanity]
        self.attacks: dict[str, Attack] = {}
        self.cells: dict[str, Cell] = {}
        self._masks: dict[str, Mask] = {}
        self.snapshot = Snapshot.of(self)

    def tell(self, attacks: Mapping[str, Attack], cells: Mapping[str, Cell]) -> None:
        """Add the measurements of the report: attacks and cells by the attack's name."""
        self.attacks, self.cells = dict(attacks), dict(cells)
        for name, attack in attacks.items():
            robust = cells[name].robust
            if robust is not None:
                self._masks[_key(attack)] = robust[: len(self.y)]

    @property
    def n(self) -> int:
        """Number of samples for the costly checks."""
        return len(self.y)

    @property
    def slack(self) -> int:
        """Number of samples by which a comparison may fail by chance, due to random starts."""
        return max(1, round(0.02 * self.n))

    @property
    def shared(self) -> dict[str, Any]:
        """Parameters of the attacks of all checks."""
        return self.limits._asdict()

    @cached_property
    def target(self) -> Target:
        """The estimator as a module, differentiable or not."""
        try:
            target = resolve_target(self.estimator, self.X, gradient=False)
        except NotDifferentiableError as error:
            raise NotApplicableError(f"it cannot be called as a module: {error}") from error
        return target.on(self.X, self.y, allow_unknown=True)

    @cached_property
    def obstacle(self) -> str | None:
        """Why gradient attacks cannot be run, or None."""
        try:
            resolve_target(self.estimator, self.X, gradient=True)
        except NotDifferentiableError as error:
            return str(error)
        except ValueError:
            # there are gradients, but of another function than the estimator's: see `agreement`
            return None
        return None

    @property
    def box(self) -> Box | None:
        """The box that adversarial examples stay in."""
        own = self.limits.clip_values
        return getattr(self.target.module, "clip_values", None) if own is None else own

    @cached_property
    def differing(self) -> Mask:
        """Samples whose probabilities differ between two passes, (n_samples,)."""
        return far_apart(self.target.proba(), self.target.proba(), _ROUNDING)

    @cached_property
    def clean(self) -> Mask:
        """Samples that are classified correctly without an attack, (n_samples,)."""
        mask = self.target.known
        mask[mask.copy()] = self.target.take(mask).right()
        return mask

    def robust(self, attack: Attack, among: Mask | None = None) -> Mask:
        """Samples that withstand an attack; taken from the report if it has run the same attack.

        Parameters
        ----------
        attack : Attack
        among : bool ndarray of shape (n_samples,), default=None
            Samples to attack; the others count as broken.

        Returns
        -------
        robust : bool ndarray of shape (n_samples,)
        """
        self._require(attack)
        key = _key(attack)
        if key not in self._masks:
            rows = np.flatnonzero(self.clean if among is None else among & self.clean)
            robust = np.zeros(self.n, dtype=bool)
            if len(rows):
                X, y = _take(self.X, rows), self.y[rows]
                robust[rows] = robust_mask(self.estimator, X, y, attack=attack)
            if among is not None:
                return robust
            self._masks[key] = robust
        known = self._masks[key]
        return known.copy() if among is None else known & among

    def _require(self, attack: Attack) -> None:
        if self.differing.any():
            raise NotApplicableError("outputs are random, so that attacks cannot be compared")
        if self.obstacle is not None and not attack.gradient_free:
            raise NotApplicableError("no gradient reaches X, so that gradient attacks cannot run")

    @property
    def fgsm(self) -> Mask:
        """Samples that withstand one step."""
        return self.robust(FGSM(**self.shared))

    @property
    def pgd(self) -> Mask:
        """Samples that withstand 20 steps."""
        return self.robust(PGD(**self.shared))

    @property
    def apgd(self) -> Mask:
        """Samples that withstand APGD on the deployed rule."""
        return self.robust(APGD(**self.shared))

    @cached_property
    def standard(self) -> Mask:
        """Samples that withstand these three and targeted APGD.

        Cross-entropy alone is weak where the ensemble is unsure: it spreads its effort over all
        wrong classes.
        """
        left = self.fgsm & self.pgd & self.apgd
        targeted = TargetedAPGD(n_target_classes=_N_TARGETS, **self.shared)
        return self.robust(targeted, among=left)

    @property
    def gradient_union(self) -> Mask:
        """Samples that withstand those, and the gradient attacks of the report."""
        climbing = [self.robust(a) for a in self.reported if _climbs_gradients(a)]
        return np.logical_and.reduce([self.standard, *climbing])

    @property
    def reported_union(self) -> Mask:
        """Samples that withstand all attacks of the report on this threat; all without attacks."""
        everyone = np.ones(self.n, dtype=bool)
        return np.logical_and.reduce([everyone, *map(self.robust, self.reported)])

    @property
    def cascades(self) -> dict[str, Mask]:
        """Samples that withstand each cascade of the report, such as AutoAttack, by its name."""
        reported = self.reported
        return {
            name: self.robust(attack)
            for name, attack in self.attacks.items()
            if isinstance(attack, Cascade) and attack in reported
        }

    @property
    def reported(self) -> list[Attack]:
        """Attacks of the report on the same threat that did not fail."""
        measured = [a for name, a in self.attacks.items() if self.cells[name].error is None]
        return [attack for attack in measured if same_threat(attack, self.limits)]


@dataclass(frozen=True)
class Snapshot:
    """State of an estimator before its evaluation.

    Parameters
    ----------
    digest : str
        Digest of its weights, buffers and parameters.
    modes : dict of bool
        Which submodules are in training mode.
    proba : ndarray of shape (n_samples, n_classes) or None
        Probabilities of the first samples; None if the estimator cannot be called.
    """

    digest: str
    modes: dict[str, bool]
    proba: NDArray[np.float64] | None

    @classmethod
    def of(cls, evidence: Evidence) -> Snapshot:
        """The present state of an estimator."""
        digest = digest_of_model(evidence.estimator)
        try:
            modes = {name: m.training for name, m in evidence.target.module.named_modules()}
            return cls(digest, modes, evidence.target.proba())
        except Exception:
            # the checks report what is wrong
            return cls(digest, {}, None)


class NotApplicableError(Exception):
    """A check cannot be run; the message says why."""


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
        ``"failure"``: the robust accuracy cannot be trusted. ``"warning"``: investigate it.
    message : str
        The measurement, its meaning and advice.
    samples : tuple of int
        Indices in X of the samples that fail.
    """

    check: str = ""
    passed: bool | None
    severity: Severity
    message: str
    samples: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Finding:
        """The inverse of `dataclasses.asdict`, also from JSON."""
        known = {field.name: plain[field.name] for field in fields(cls)}
        return cls(**{**known, "samples": tuple(plain["samples"])})


def good(message: str) -> Finding:
    """Finding of a check that passed."""
    return Finding(passed=True, severity="information", message=message)


def bad(
    message: str,
    samples: NDArray[np.bool_] | Iterable[int] = (),
    severity: Severity = "failure",
) -> Finding:
    """Finding of a check that failed.

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


def far_apart(one: NDArray[np.float64], other: NDArray[np.float64], tolerance: float) -> Mask:
    """Rows that differ by more than a tolerance; NaN counts as different."""
    close = np.asarray(np.abs(one - other) <= tolerance)
    far: Mask = np.logical_not(close.all(axis=1))
    return far


def percent(mask: Mask) -> str:
    """A fraction of samples, for messages."""
    return f"{100 * mask.mean():.1f}%"


def _climbs_gradients(attack: Attack) -> bool:
    return (
        isinstance(attack, BoundedAttack)
        and not attack.gradient_free
        and not isinstance(attack, External)
    )


def _key(attack: Attack) -> str:
    return json.dumps(describe(attack))


def _take(X: Any, rows: NDArray[np.intp]) -> Any:
    """Some rows of X, with its column names if it has any."""
    return X.iloc[rows] if hasattr(X, "iloc") else np.asarray(X)[rows]


def huge_eps(evidence: Evidence) -> Finding:
    """Whether no sample withstands a ball that contains everything."""
    x = evidence.target.x
    low, high = float(x.min()), float(x.max())
    size = _UNBOUNDED * (high - low) if evidence.box is None else evidence.box[1] - evidence.box[0]
    eps = size * math.sqrt(math.prod(x.shape[1:])) if evidence.limits.norm == "l2" else size
    # smaller balls are inside the huge one, and easier to search
    radii = [eps / 10**k for k in range(_N_RADII)]
    attack = WorstCase([PGD(**{**evidence.shared, "eps": radius}) for radius in radii])
    left = evidence.robust(attack, among=evidence.gradient_union)
    reach = f"PGD within eps={eps:.4g}, a ball that holds everything, leaves {percent(left)}"
    if left.mean() <= _ABOUT_ZERO:
        return good(f"{reach}.")
    return bad(
        f"{reach} robust instead of about 0%: the attack stands still or climbs the wrong way, "
        "so that its number at small eps is no measure of robustness. Look at the gradients of "
        "the listed samples.",
        left,
    )


def noise(evidence: Evidence) -> Finding:
    """Whether uniform noise breaks no sample that withstands gradient attacks."""
    n_draws = PGD().n_steps
    attack = UniformNoise(n_draws=n_draws, **evidence.shared)
    return _beyond_gradients(evidence, attack, f"{n_draws} draws of uniform noise", evidence.slack)


def square(evidence: Evidence) -> Finding:
    """Whether random search breaks at most 0.2 points, or one sample, beyond gradient attacks."""
    attack = Square(n_queries=_N_QUERIES, **evidence.shared)
    slack = max(1, int(_SQUARE_SLACK * evidence.n))
    return _beyond_gradients(evidence, attack, f"Square with {_N_QUERIES} queries", slack)


def _beyond_gradients(evidence: Evidence, attack: Attack, name: str, slack: int) -> Finding:
    union = evidence.gradient_union
    alone = union & ~evidence.robust(attack, among=union)
    found = (
        f"{name} breaks {alone.sum()} of the {union.sum()} samples that the gradient attacks leave"
    )
    if alone.sum() <= slack:
        return good(f"{found} (of {evidence.n}).")
    return bad(
        f"{found}: without a gradient one finds what gradients miss, so they are obstructed "
        "(masked) and gradient attacks overstate robustness. Count the worst over both, look for "
        "steps with poor gradients, and attack through a differentiable stand-in of them.",
        alone,
    )


def aggregation_swap(evidence: Evidence) -> Finding:
    """Whether attacks on other rules or single members break more than on the deployed rule."""
    n_members = _count_members(evidence)
    left = union = evidence.reported_union & evidence.gradient_union
    counts = {}
    # the first is the deployed rule, whose APGD is part of the union
    for attack in swapped_aggregations(n_members, **evidence.shared)[1:]:
        still = evidence.robust(attack, among=left)
        counts[_rule(attack)] = left.sum() - still.sum()
        left = still
    alone = union & ~left
    numbers = ", ".join(f"{rule} {count}" for rule, count in counts.items())
    found = (
        f"Of {union.sum()} samples that all attacks on the deployed rule leave, "
        f"APGD on other rules breaks {alone.sum()} ({numbers})"
    )
    if alone.sum() <= evidence.slack:
        return good(f"{found}.")
    return bad(
        f"{found}, all replayed on the deployed rule: the members' gradients cancel or hide in the "
        "aggregate, and the robust accuracy is too high. Report EnsembleAutoAttack or MORA.",
        alone,
    )


def mora(evidence: Evidence) -> Finding:
    """Whether MORA breaks more samples than AutoAttack."""
    _count_members(evidence)
    name, robust = _autoattack(evidence)
    left = evidence.robust(MORA(**evidence.shared))
    alone = robust & ~left
    found = (
        f"On {evidence.n} samples MORA leaves {percent(left)} and {name} {percent(robust)}; MORA "
        f"alone breaks {alone.sum()}"
    )
    if left.sum() >= robust.sum():
        return good(f"{found}. MORA is not lower.")
    if alone.sum() <= evidence.slack:
        return good(f"{found}. MORA is lower by chance at most.")
    missed = evidence.reported_union & robust & ~left
    if missed.sum() <= evidence.slack:
        return bad(f"{found}. MORA is lower: report it beside AutoAttack.", alone, "information")
    return bad(
        f"{found}. MORA is lower, and {missed.sum()} of these samples withstand all attacks of the "
        "report: AutoAttack overstates this ensemble. Report EnsembleAutoAttack, or MORA beside "
        "AutoAttack.",
        missed,
    )


def _autoattack(evidence: Evidence) -> tuple[str, Mask]:
    """AutoAttack if the report has it, else its walks of APGD."""
    for name, attack in evidence.attacks.items():
        measured = evidence.cells[name].error is None
        if isinstance(attack, AutoAttack) and measured and same_threat(attack, evidence.limits):
            return "AutoAttack", evidence.robust(attack)
    return "AutoAttack's walks (it is not in the report)", evidence.standard


def _count_members(evidence: Evidence) -> int:
    n_members = len(evidence.target.member_logits())
    if n_members == 1:
        raise NotApplicableError("there is one member, or the module does not show its members")
    return n_members


def _rule(attack: Attack) -> str:
    """Name of an attack's objective."""
    aggregation, loss = attack.get_params()["aggregation"], attack.get_params()["loss"]
    if isinstance(aggregation, int):
        return f"member {aggregation} alone"
    return "mean member margin" if loss == "member_margin" else "mean logits"


def gradients(evidence: Evidence) -> Finding:
    """Whether each sample has a finite gradient other than zero."""
    obstacle = evidence.obstacle
    try:
        gradient = _margin_gradients(evidence)
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
        f"of {evidence.n} samples: rounding, a detached branch or saturated members that "
        "contradict each other hide the way out, so that gradient attacks stand still and robust "
        "accuracy is too high. Attack through a differentiable stand-in of that layer, and "
        "compare with Square, Transfer and EnsembleAutoAttack.",
        (broken | zero).numpy(),
    )


def saturation(evidence: Evidence) -> Finding:
    """Whether members are so confident that the cross-entropy is flat in float32."""
    top = evidence.target.member_logits().topk(2, dim=-1).values
    gap = (top[..., 0] - top[..., 1]).amax(dim=0)
    sure = gap > _LARGEST_GAP
    if not sure.any():
        return good(f"The largest gap of a member's two largest logits is {float(gap.max()):.1f}.")
    blind = [name for name, attack in evidence.attacks.items() if _is_blind(attack)]
    severity: Severity = "failure" if blind else "warning"
    advice = (
        f"Here that concerns {', '.join(blind)}: do not count on it."
        if blind
        else "The attacks of this report climb the margin, which does not round to zero."
    )
    return bad(
        f"A member's two largest logits are more than {_LARGEST_GAP:g} apart for "
        f"{int(sure.sum())} of {evidence.n} samples (at most {float(gap.max()):.1f}): in float32 "
        f"the cross-entropy there is flat, and attacks that climb it are blind. {advice}",
        sure.numpy(),
        severity,
    )


def _is_blind(attack: Attack) -> bool:
    return isinstance(attack, External) or getattr(attack, "loss", None) in _BLIND_LOSSES


def _margin_gradients(evidence: Evidence) -> Tensor:
    """Gradients of the margin of the present decision, on the CPU, of the shape of X."""
    target = evidence.target
    x = target.x
    decided = torch.as_tensor(evidence.target.proba().argmax(axis=1), device=x.device)
    with frozen(target.module):
        objective = Objective(target.module, "margin")
        parts = zip(x.split(_BATCH_SIZE), decided.split(_BATCH_SIZE), strict=True)
        return torch.cat([objective.gradient(*part)[0].cpu() for part in parts])


def raw_units(evidence: Evidence) -> Finding:
    """Whether images are in their declared box, [0, 1] by default."""
    X = np.asarray(evidence.all_X)
    if X.ndim != 4:
        raise NotApplicableError("the units of X cannot be told, because it holds no images")
    if X.dtype == np.uint8 and evidence.target.scales_uint8:
        return good("Images are uint8, attacked in [0, 1].")
    box = evidence.box or (0.0, 1.0)
    rows = X.reshape(len(X), -1)
    lows, highs = rows.min(axis=1), rows.max(axis=1)
    low, high = float(lows.min()), float(highs.max())
    if not box_excess(low, high, box):
        return good(f"Images span [{low:.4g}, {high:.4g}], inside {box}.")
    outside = [bool(box_excess(*ends, box)) for ends in zip(lows, highs, strict=True)]
    return bad(
        f"{sum(outside)} of {len(X)} images lie outside {box}: X spans [{low:.4g}, {high:.4g}]. It "
        f"looks as if it had been scaled before, so eps={evidence.limits.eps:.4g} is not in the "
        "units of the raw data, and no box keeps adversarial examples valid images. Move the "
        "scaling into the module (modules.Normalize) and give raw X, or declare the range of the "
        "raw data as clip_values=(low, high).",
        np.array(outside),
    )


def norm_and_box(evidence: Evidence) -> Finding:
    """Whether the final examples of all attacks of the report are in their ball and box."""
    measured = {name: cell for name, cell in evidence.cells.items() if cell.error is None}
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


def order(evidence: Evidence) -> Finding:
    """Whether FGSM breaks no more samples than PGD, PGD than APGD, and APGD than a cascade."""
    chain = {"FGSM": evidence.fgsm, "PGD": evidence.pgd, "APGD": evidence.apgd}
    wrong = np.zeros(evidence.n, dtype=bool)
    for weaker, stronger in pairwise(chain.values()):
        wrong |= _wrongly_left(weaker, stronger, evidence.slack)
    for name, union in evidence.cascades.items():
        chain[name] = union
        # no slack: a cascade begins with this very APGD
        wrong |= _wrongly_left(evidence.apgd, union, 0)
    numbers = ", ".join(f"{name} {percent(mask)}" for name, mask in chain.items())
    if not wrong.any():
        return good(f"Robust accuracies fall as they should: {numbers}.")
    return bad(
        f"A stronger attack is weaker than a weak one ({numbers}): the listed samples withstand it "
        "but not the weaker. The loss or its gradient misleads long walks. Look at the gradients, "
        "take restarts and other losses (EnsembleAutoAttack), and count the worst of all.",
        wrong,
    )


def more_steps(evidence: Evidence) -> Finding:
    """Whether PGD with 50 steps is at least as strong as with 10."""
    few, many = (
        evidence.robust(PGD(n_steps=n, **evidence.shared)) for n in (_FEW_STEPS, _MANY_STEPS)
    )
    numbers = f"{_FEW_STEPS} steps {percent(few)}, {_MANY_STEPS} steps {percent(many)}"
    wrong = _wrongly_left(few, many, evidence.slack)
    if not wrong.any():
        return good(f"PGD does not get weaker with more steps: {numbers}.")
    return bad(
        f"PGD gets weaker with more steps ({numbers}): the listed samples withstand more steps but "
        "not fewer. Gradients mislead, or the step does not fit eps. Compare with APGD and Square.",
        wrong,
    )


def strength(evidence: Evidence) -> Finding:
    """Whether the attacks of the report are at least as strong as ordinary gradient attacks."""
    if not evidence.reported:
        raise NotApplicableError("no attack of the report was measured on this threat")
    reported, standard = evidence.reported_union, evidence.standard
    missed = reported & ~standard
    found = (
        f"On {evidence.n} samples the attacks of the report leave {percent(reported)}; FGSM, PGD, "
        f"APGD and targeted APGD break {missed.sum()} of those"
    )
    if missed.sum() <= evidence.slack:
        return good(f"{found}.")
    return bad(
        f"{found}: the report's attacks are too weak for this model. Add AutoAttack, or "
        "EnsembleAutoAttack.",
        missed,
        "warning",
    )


def _wrongly_left(weaker: Mask, stronger: Mask, slack: int) -> Mask:
    """Samples that only the weaker attack breaks, if it breaks more samples beyond the slack."""
    left: Mask = stronger & ~weaker
    return left if stronger.sum() > weaker.sum() + slack else np.zeros_like(left)


def eval_mode(evidence: Evidence) -> Finding:
    """Whether the module computes the same in eval mode as in the given mode."""
    parts = evidence.target.module.named_modules()
    training = [name or "the module itself" for name, part in parts if part.training]
    if not training:
        return good("Every part of the module is in eval mode.")
    _require_determinism(evidence)
    differ = far_apart(evidence.target.proba(as_given=True), evidence.target.proba(), _ROUNDING)
    listed = f"{', '.join(training[:3])}{', ...' if len(training) > 3 else ''}"
    if not differ.any():
        return good(f"In training mode, which changes no output: {listed}.")
    return bad(
        f"In training mode: {listed}. {differ.sum()} of {evidence.n} samples get other "
        "probabilities than in eval mode. Attacks and accuracies here are those of eval mode, not "
        "of the module as it was given. Call module.eval() before evaluating or deploying it.",
        differ,
    )


def determinism(evidence: Evidence) -> Finding:
    """Whether two passes agree."""
    differ = evidence.differing
    if not differ.any():
        return good("Two passes agree.")
    return bad(
        f"Two passes differ for {differ.sum()} of {evidence.n} samples: the module draws random "
        "numbers or carries state from call to call. Gradients and restarts then mislead attacks, "
        "and samples count as broken by chance. Switch the noise off in eval mode, or measure "
        'with AutoAttack(version="rand"), which averages gradients.',
        differ,
    )


def agreement(evidence: Evidence) -> Finding:
    """Whether the attacked module agrees with the estimator's predictions."""
    _require_determinism(evidence)
    attacked = evidence.target.proba()
    differ = far_apart(attacked, _forward_proba(evidence), _AGREEMENT)
    estimator = evidence.estimator
    if hasattr(estimator, "predict_proba"):
        differ |= far_apart(attacked, np.asarray(estimator.predict_proba(evidence.X)), _AGREEMENT)
    if hasattr(estimator, "predict"):
        decided = evidence.target.classes[attacked.argmax(axis=1)]
        two = np.sort(attacked, axis=1)[:, -2:]
        tied = two[:, 1] - two[:, 0] <= _AGREEMENT
        differ |= (decided != np.asarray(estimator.predict(evidence.X))) & ~tied
    if not differ.any():
        return good("The attacked module computes what the estimator answers.")
    return bad(
        f"For {differ.sum()} of {evidence.n} samples the attacked module (the mean of the members' "
        f"probabilities) and the answer of {type(estimator).__name__} differ by more than "
        f"{_AGREEMENT:g}: something else was attacked than is deployed. Decide by the mean "
        "probability, or give a module without member_logits whose forward is the deployed rule.",
        differ,
    )


def unchanged(evidence: Evidence) -> Finding:
    """Whether the evaluation has left weights, buffers, modes and outputs unchanged."""
    before, after = evidence.snapshot, Snapshot.of(evidence)
    if before.digest != after.digest or before.modes != after.modes:
        return bad(
            "Weights, buffers or modes of the module are not what they were before the "
            "evaluation: it has updated itself, so that the samples were measured on different "
            "models. Let forward change nothing in eval mode."
        )
    _require_determinism(evidence)
    if before.proba is None or after.proba is None:
        raise NotApplicableError("the module could not be called")
    differ = far_apart(before.proba, after.proba, _ROUNDING)
    if not differ.any():
        return good("Weights, buffers, modes and outputs are as they were before.")
    return bad(
        f"{differ.sum()} of {evidence.n} samples get other probabilities than before the "
        "evaluation: the module keeps state outside of its buffers. Let forward change nothing.",
        differ,
    )


def _require_determinism(evidence: Evidence) -> None:
    if evidence.differing.any():
        raise NotApplicableError("outputs are random, so that they cannot be compared")


def _forward_proba(evidence: Evidence) -> NDArray[np.float64]:
    """Probabilities by the module's own forward, which may differ from the mean of its members."""
    target = evidence.target
    with frozen(target.module), torch.no_grad():
        parts = [target.module(x).cpu() for x in target.x.split(_BATCH_SIZE)]
    proba: NDArray[np.float64] = torch.cat(parts).double().softmax(dim=1).numpy()
    return proba


def transfer(evidence: Evidence) -> Finding:
    """Whether examples made on other models break no sample that withstands gradient attacks."""
    if not evidence.rivals:
        raise NotApplicableError("give a surrogate, or several estimators, to transfer from")
    union = evidence.gradient_union
    alone = {name: _broken(evidence, rival, union) for name, rival in evidence.rivals.items()}
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


def _broken(evidence: Evidence, rival: Any, union: Mask) -> Mask | str:
    """Samples that examples made on a rival break, or why it cannot be used."""
    classes = getattr(rival, "classes_", evidence.target.classes)
    if not np.array_equal(classes, evidence.target.classes):
        return "it has other classes."
    # in the target's box, whatever the box of the rival
    shared = {**evidence.shared, "clip_values": evidence.box}
    try:
        robust = evidence.robust(Transfer(rival, PGD(**shared)), among=union)
    except NotApplicableError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}."
    return union & ~robust


CHECKS: dict[str, Callable[[Evidence], Finding]] = {
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


def run_check(name: str, evidence: Evidence) -> Finding:
    """Run one check; an error in it is a finding, too.

    Parameters
    ----------
    name : str
        A key of `CHECKS`.
    evidence : Evidence

    Returns
    -------
    finding : Finding
    """
    try:
        finding = CHECKS[name](evidence)
    except NotApplicableError as reason:
        finding = Finding(passed=None, severity="information", message=str(reason))
    except Exception as error:
        message = f"could not be run: {type(error).__name__}: {error}"
        finding = Finding(passed=None, severity="warning", message=message)
    return replace(finding, check=name)
