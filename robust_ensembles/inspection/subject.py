"""An estimator under examination: what several checks look at, each computed once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..attacks import (
    APGD,
    FGSM,
    PGD,
    Attack,
    BoundedAttack,
    External,
    Target,
    TargetedAPGD,
    is_broken,
    resolve_target,
)
from ..attacks.autoattack import Cascade
from ..attacks.engine.balls import Box
from ..attacks.engine.forward import frozen, member_logits
from ..exceptions import NotDifferentiableError
from ..metrics.robust import robust_mask
from ..modules.combiners import combiner_of
from .cells import Cell, Limits, Mask, describe, digest_of_model, same_threat


@dataclass(frozen=True)
class Snapshot:
    """An estimator before its evaluation.

    Parameters
    ----------
    digest : str
        Of its weights, buffers and parameters.
    modes : dict of bool
        Which submodules are in training mode.
    proba : ndarray of shape (n_samples, n_classes) or None
        Of the first samples; None if the estimator cannot be called.
    """

    digest: str
    modes: dict[str, bool]
    proba: NDArray[np.float64] | None

    @classmethod
    def of(cls, subject: Subject) -> Snapshot:
        """What can be seen of a subject now."""
        digest = digest_of_model(subject.estimator)
        try:
            modes = {name: m.training for name, m in subject.target.module.named_modules()}
            return cls(digest, modes, subject.proba())
        except Exception:
            # what is wrong with it is for the checks to say
            return cls(digest, {}, None)


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


BATCH_SIZE = 256
# of probabilities, between two passes that should be one: rounding on any device
ROUNDING = 1e-5
_N_TARGETS = 3


class Subject:
    """One estimator, the first samples, and what the report has measured.

    Parameters
    ----------
    estimator : fitted estimator or nn.Module
    X : array-like of shape (n_samples, ...)
        All of X.
    y : array-like of shape (n_samples,)
    limits : Limits
        The threat that the checks look at.
    n_sanity : int
        How many samples the costly checks look at, the first ones.
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
        """Take note of what the report has measured: attacks and cells by the attack's name."""
        self.attacks, self.cells = dict(attacks), dict(cells)
        for name, attack in attacks.items():
            robust = cells[name].robust
            if robust is not None:
                self._masks[_key(attack)] = robust[: len(self.y)]

    @property
    def n(self) -> int:
        """How many samples the costly checks look at."""
        return len(self.y)

    @property
    def slack(self) -> int:
        """Samples by which a comparison may fail by chance: random starts decide a few."""
        return max(1, round(0.02 * self.n))

    @property
    def shared(self) -> dict[str, Any]:
        """Parameters of the attacks of all checks."""
        return self.limits._asdict()

    @cached_property
    def target(self) -> Target:
        """The estimator as a module, whether or not gradients pass it."""
        try:
            return resolve_target(self.estimator, self.X, gradient=False)
        except NotDifferentiableError as error:
            raise NotApplicableError(f"it cannot be called as a module: {error}") from error

    @cached_property
    def obstacle(self) -> str | None:
        """Why no gradient attack can be run, or None."""
        try:
            resolve_target(self.estimator, self.X, gradient=True)
        except NotDifferentiableError as error:
            return str(error)
        except ValueError:
            # gradients arrive, but of something else than the estimator: see the check of that
            return None
        return None

    @property
    def box(self) -> Box | None:
        """Where adversarial examples stay in."""
        own = self.limits.clip_values
        return getattr(self.target.module, "clip_values", None) if own is None else own

    def logits(self, *, as_given: bool = False) -> Tensor:
        """Logits of each member, (n_members, n_samples, n_classes).

        Parameters
        ----------
        as_given : bool, default=False
            In the modes that the module's parts are in, instead of eval mode.
        """
        module = self.target.module
        modes = {part: part.training for part in module.modules()}
        with frozen(module), torch.no_grad():
            if as_given:
                for part, training in modes.items():
                    part.training = training
            x = self.target.tensor(self.X)
            parts = [member_logits(module, batch).cpu() for batch in x.split(BATCH_SIZE)]
        return torch.cat(parts, dim=1)

    def proba(self, *, as_given: bool = False) -> NDArray[np.float64]:
        """Probabilities by the deployed rule, (n_samples, n_classes)."""
        logits = self.logits(as_given=as_given).double()
        log_proba = combiner_of(self.target.module).log_proba(logits)
        proba: NDArray[np.float64] = log_proba.exp().numpy()
        return proba

    @cached_property
    def differing(self) -> Mask:
        """Samples whose probabilities differ between two passes, (n_samples,)."""
        return far_apart(self.proba(), self.proba(), ROUNDING)

    @cached_property
    def clean(self) -> Mask:
        """Samples that are right without an attack, (n_samples,)."""
        known = np.isin(self.y, self.target.classes)
        x, labels = self.target.tensor(self.X)[known], self.target.encode(self.y[known])
        mask = np.zeros(self.n, dtype=bool)
        mask[known] = ~is_broken(self.target.module, x, labels).cpu().numpy()
        return mask

    def robust(self, attack: Attack, among: Mask | None = None) -> Mask:
        """Samples that withstand an attack; from the report where it has run the same.

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

        Cross-entropy alone is no good measure where the ensemble is unsure: it spreads its effort
        over all wrong classes.
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
        """Samples that withstand all attacks of the report on this threat; all if there is none."""
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
        """Attacks of the report with a number, on the same threat."""
        measured = [a for name, a in self.attacks.items() if self.cells[name].error is None]
        return [attack for attack in measured if same_threat(attack, self.limits)]


def far_apart(one: NDArray[np.float64], other: NDArray[np.float64], tolerance: float) -> Mask:
    """Rows that differ by more than a tolerance; NaN differs from everything."""
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
    """Some rows of X, with the names of columns if it has any."""
    return X.iloc[rows] if hasattr(X, "iloc") else np.asarray(X)[rows]
