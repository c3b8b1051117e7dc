"""A report in the making: what is measured, in which order, and what is known already."""

from __future__ import annotations

import os
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.pipeline import Pipeline

from ..._environment import versions
from ..._plain import digest, digest_of_array, type_name
from ...attacks import Attack
from ...attacks.engine.balls import NORMS
from ..cells import CLEAN, measure
from ..results import RobustnessReport
from ..sanity import CHECKS, Subject, run_check
from ._bounds import Limits, limits_of
from ._fingerprint import describe, digest_of_model
from ._progress import Steps, cost
from ._store import Store

# of one sanity check, in passes of the module over its samples, for remaining times only
_COST_OF_CHECK = 150.0


class Evaluation:
    """A report that is being made.

    Parameters
    ----------
    models : dict of fitted estimators
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)
    attacks : dict of Attack
    threat : Limits
        Of the sanity checks, where no attack says its own.
    surrogate : fitted estimator, nn.Module, sequence of these, or None
    n_sanity : int
    path : path-like or None
    """

    def __init__(
        self,
        models: dict[str, Any],
        X: ArrayLike,
        y: ArrayLike,
        attacks: dict[str, Attack],
        *,
        threat: Limits,
        surrogate: Any = None,
        n_sanity: int,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.models, self.X, self.y, self.attacks = models, X, y, attacks
        self.rivals = _surrogates(surrogate) | models
        self.n_sanity = n_sanity
        shape = list(np.shape(X))
        data = {"n_samples": shape[0], "shape": shape}
        data |= {"X": digest_of_array(X), "y": digest_of_array(y)}
        self.store = Store(path, data)
        told = [limits for attack in attacks.values() for limits in limits_of(attack)]
        self.limits = next((t for t in told if t.norm in NORMS and isfinite(t.eps)), threat)
        self.report = RobustnessReport(
            data=data,
            settings={**describe(self.limits._asdict()), "n_sanity": n_sanity},
            versions=versions(),
            estimators={name: _identity(model) for name, model in models.items()},
            attacks={name: describe(attack) for name, attack in attacks.items()},
        )

    def cost(self, sanity_checks: bool) -> float:
        """Cost of everything, in passes of a module over all samples."""
        checks = self.cost_of_check * len(CHECKS) if sanity_checks else 0.0
        return len(self.models) * (checks + 1 + sum(map(cost, self.attacks.values())))

    @property
    def cost_of_check(self) -> float:
        """Cost of one sanity check."""
        return _COST_OF_CHECK * min(1.0, self.n_sanity / self.report.data["n_samples"])

    def examine(self, name: str, sanity_checks: bool, steps: Steps) -> None:
        """Measure one estimator and check it."""
        subject = self._subject(name) if sanity_checks else None
        for attack_name, attack in ((CLEAN, None), *self.attacks.items()):
            steps.begin(f"{name}: {attack_name}")
            self._measure(name, attack_name, attack)
            steps.done(cost(attack))
        if subject is None:
            return
        cells = {c.attack: c for c in self.report.cells if c.estimator == name}
        subject.tell(self.attacks, cells)
        self._check(name, subject, steps)

    def _subject(self, name: str) -> Subject:
        rivals = {n: model for n, model in self.rivals.items() if n != name}
        return Subject(
            self.models[name],
            self.X,
            self.y,
            limits=self.limits,
            n_sanity=self.n_sanity,
            rivals=rivals,
        )

    def _measure(self, name: str, attack_name: str, attack: Attack | None) -> None:
        report = self.report
        fingerprint = digest(
            report.data, report.estimators[name]["digest"], report.attacks.get(attack_name)
        )
        cell = self.store.cell(fingerprint)
        if cell is None:
            clean = report.masks[name].get(CLEAN)
            cell = measure(
                name,
                self.models[name],
                self.X,
                self.y,
                attack_name,
                attack,
                fingerprint=fingerprint,
                clean=clean,
            )
        report.cells.append(replace(cell, estimator=name, attack=attack_name))
        self._save()

    def _check(self, name: str, subject: Subject, steps: Steps) -> None:
        report = self.report
        own = report.estimators[name]
        rivals = [describe(model) for model in subject.rivals.values()]
        own["checked"] = digest(report.data, own["digest"], report.settings, report.attacks, rivals)
        earlier = {finding.check: finding for finding in self.store.findings(own["checked"])}
        findings = report.findings.setdefault(name, [])
        for check in CHECKS:
            steps.begin(f"{name}: check {check}")
            findings.append(earlier.get(check) or run_check(check, subject))
            self._save()
            steps.done(self.cost_of_check)

    def _save(self) -> None:
        self.report.versions = self.store.versions(versions())
        self.store.save(self.report.to_dict())


def _surrogates(surrogate: Any) -> dict[str, Any]:
    if surrogate is None:
        return {}
    # a Pipeline and an nn.Sequential have a length too, but they are no lists
    several = surrogate if isinstance(surrogate, (list, tuple)) else [surrogate]
    return {f"surrogate {i}" if i else "surrogate": model for i, model in enumerate(several)}


def _identity(model: Any) -> dict[str, Any]:
    """What identifies a fitted estimator in a report."""
    final = getattr(model, "best_estimator_", model)
    final = final[-1] if isinstance(final, Pipeline) else final
    seed = getattr(final, "random_state", None)
    return {
        "type": type_name(model),
        "random_state": describe(seed),
        "digest": digest_of_model(model),
        "checked": None,
    }
