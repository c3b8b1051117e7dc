"""`robustness_report`: robust accuracies of estimators under attacks, with sanity checks."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_consistent_length
from torch import nn

from .. import _registry
from .._checks import as_array, check_count
from .._plain import digest, digest_of_array, type_name
from .._system import exit_by_sigterm, handled_sigterm, versions
from ..attacks import PGD, Attack, as_torch, resolve_target
from ..attacks.engine.balls import NORMS, Box, box_excess
from ..attacks.engine.target import refuse_dataset
from ..exceptions import NotDifferentiableError
from ..metrics import attack_from_name, robust_scoring
from ..metrics.robust import check_untargeted
from .cells import CLEAN, WORST, Limits, describe, digest_of_model, limits_of, measure
from .results import RobustnessReport, Store
from .sanity import CHECKS, Evidence, run_check

# cost of one sanity check in passes of the module over its samples, for the time left
_COST_OF_CHECK = 150.0


def robustness_report(
    estimators: Any,
    X: ArrayLike,
    y: ArrayLike,
    attacks: str | Attack | Sequence[str | Attack] | Mapping[str, str | Attack] = (
        "fgsm",
        "pgd20",
        "apgd",
        "autoattack",
    ),
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    clip_values: Box | None = None,
    surrogate: Any = None,
    sanity_checks: bool = True,
    n_sanity: int = 100,
    path: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> RobustnessReport:
    """Measure robust accuracies, and check whether they can be trusted.

    Each attack is run on all samples that are classified correctly without it. An attack that
    cannot be run, such as a gradient attack on a model without gradients, is reported as failed,
    never as a number.

    Parameters
    ----------
    estimators : fitted estimator, nn.Module, or dict of these
        Estimators of this package, Pipelines or searches that end in one, or modules that return
        logits; a dict by name for several.
    X : array-like of shape (n_samples, ...)
        Raw X.
    y : array-like of shape (n_samples,)
        True labels.
    attacks : str, Attack, sequence of these, or dict of these
        Names as in `metrics.attack_from_name`, or attacks, which must be untargeted.
    eps : float, default=8/255
        Radius of the ball, in the units of X, for attack names without one. Attacks given as
        objects keep their own.
    norm : {"linf", "l2"}, default="linf"
        Norm, for attack names without one.
    clip_values : tuple of two floats, default=None
        Box, for attacks given by name. None is the box of each estimator.
    surrogate : fitted estimator, nn.Module, or sequence of these, default=None
        Independently trained, for the check of transfer and for attacks named ``"transfer"``. In
        the check, several estimators are also each other's surrogates.
    sanity_checks : bool, default=True
        Whether to run the checks listed in the Notes.
    n_sanity : int, default=100
        Number of samples for the sanity checks.
    path : path-like, default=None
        JSON file that is written after each measurement and each check. A later call with the
        same path measures only what is missing or has changed: estimators are compared by their
        weights and parameters, attacks by their parameters, functions among these by their
        name. It stays readable after an interruption.
    progress : bool, default=False
        Whether to show a progress bar with the time left on stderr.

    Returns
    -------
    report : RobustnessReport

    Raises
    ------
    TypeError
        For something that is not an estimator or not an attack.
    ValueError
        For invalid parameters, X outside `clip_values`, different lengths of X and y, NaN in X, or
        a file with a report on other data.
    FileNotFoundError
        If the folder of `path` does not exist.
    sklearn.exceptions.NotFittedError
        If an estimator is not fitted.
    OSError
        If the report cannot be written, such as on a full disk; the former one is kept.
    SystemExit
        After SIGTERM, if no other handler is set, as soon as Python receives the signal.

    Notes
    -----
    The checks use the threat (eps, norm, box) of the first attack, after [1]_ and [2]_:

    * ``eval_mode``: the module computes the same in eval mode as in the given mode.
    * ``determinism``: two passes agree.
    * ``agreement``: the attacked module agrees with the estimator's predictions.
    * ``raw_units``: images are in the declared box, or in [0, 1].
    * ``gradients``: they are neither zero nor NaN, and they reach X.
    * ``saturation``: no member has a gap above 15 between its two largest logits.
    * ``order``: FGSM breaks no more samples than PGD, PGD than APGD, APGD than AutoAttack.
    * ``more_steps``: PGD with 50 steps is not weaker than with 10.
    * ``strength``: ordinary gradient attacks break no sample that withstands the report's attacks.
    * ``huge_eps``: in a ball that contains everything, nearly no sample withstands.
    * ``noise``, ``square``, ``transfer``: attacks without gradients break no sample that withstands
      gradient attacks.
    * ``aggregation_swap``: neither do attacks on other aggregations or on single members.
    * ``mora``: MORA against AutoAttack, or against AutoAttack's walks if the report lacks it.
    * ``norm_and_box``: all examples are in their ball and box, in float64.
    * ``unchanged``: weights, buffers, modes and outputs are as before.

    A few samples of `n_sanity` may differ by chance: one, or 2%; 0.2% for Square, one for
    transfer.

    References
    ----------
    .. [1] N. Carlini et al., "On Evaluating Adversarial Robustness", arXiv:1902.06705.
    .. [2] F. Tramer, N. Carlini, W. Brendel and A. Madry, "On Adaptive Attacks to Adversarial
       Example Defenses", NeurIPS 2020.

    Examples
    --------
    >>> from robust_ensembles import VanillaEnsembleClassifier
    >>> from robust_ensembles.datasets import load_digits_images
    >>> from robust_ensembles.inspection import robustness_report
    >>> X, y = load_digits_images()
    >>> clf = VanillaEnsembleClassifier(random_state=0).fit(X[:1000], y[:1000])
    >>> report = robustness_report(
    ...     clf, X[1000:1100], y[1000:1100], ("fgsm", "pgd20"), eps=0.1, sanity_checks=False
    ... )
    >>> report.to_frame()["attack"].tolist()
    ['clean', 'fgsm', 'pgd20', 'worst']
    """
    threat = Limits(eps, norm, clip_values)
    models = named_estimators(estimators)
    named = named_attacks(attacks, threat, surrogate)
    check_data(X, y, n_sanity)
    if clip_values is not None:
        check_in_box(models, X, clip_values)
    evaluation = Evaluation(
        models, X, y, named, threat=threat, surrogate=surrogate, n_sanity=n_sanity, path=path
    )
    # modules that draw random numbers use the global generators
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with (
        torch.random.fork_rng(devices),
        handled_sigterm(exit_by_sigterm),
        progress_bar(evaluation.cost(sanity_checks), enabled=progress) as steps,
    ):
        for name in models:
            evaluation.examine(name, sanity_checks, steps)
    return evaluation.report


class Evaluation:
    """A report in the making.

    Parameters
    ----------
    models : dict of fitted estimators
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)
    attacks : dict of Attack
    threat : Limits
        Threat of the sanity checks, if no attack has its own.
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

    def examine(self, name: str, sanity_checks: bool, steps: StepProgress) -> None:
        """Measure one estimator and check it."""
        evidence = self._evidence(name) if sanity_checks else None
        for attack_name, attack in ((CLEAN, None), *self.attacks.items()):
            steps.begin(f"{name}: {attack_name}")
            self._measure(name, attack_name, attack)
            steps.done(cost(attack))
        if evidence is None:
            return
        cells = {c.attack: c for c in self.report.cells if c.estimator == name}
        evidence.tell(self.attacks, cells)
        self._check(name, evidence, steps)

    def _evidence(self, name: str) -> Evidence:
        rivals = {n: model for n, model in self.rivals.items() if n != name}
        return Evidence(
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

    def _check(self, name: str, evidence: Evidence, steps: StepProgress) -> None:
        report = self.report
        own = report.estimators[name]
        rivals = [describe(model) for model in evidence.rivals.values()]
        own["checked"] = digest(report.data, own["digest"], report.settings, report.attacks, rivals)
        earlier = {finding.check: finding for finding in self.store.findings(own["checked"])}
        findings = report.findings.setdefault(name, [])
        for check in CHECKS:
            steps.begin(f"{name}: check {check}")
            findings.append(earlier.get(check) or run_check(check, evidence))
            self._save()
            steps.done(self.cost_of_check)

    def _save(self) -> None:
        self.report.versions = self.store.versions(versions())
        self.store.save(self.report.to_dict())


def cost(attack: Attack | None) -> float:
    """Approximate number of passes through the module of an attack, for the time left.

    Parameters
    ----------
    attack : Attack or None

    Returns
    -------
    cost : float
    """
    if attack is None:
        return 1.0
    parts: Any = getattr(attack, "attacks", None)
    if parts is not None:
        return sum(cost(part) for part in (parts() if callable(parts) else parts))
    passes = 1.0
    for name in _counted(type(attack)):
        value: Any = getattr(attack, name, 1)
        passes *= len(value) if isinstance(value, Sized) else value
    return passes


def _counted(kind: type[Attack]) -> Iterable[str]:
    """Parameters that count passes of an attack: the declared ones, or the usual names."""
    declared = _registry.attacks()
    for ancestor in kind.__mro__:
        if ancestor.__name__ in declared and declared[ancestor.__name__].cls is ancestor:
            return declared[ancestor.__name__].cost
    return {name for other in declared.values() for name in other.cost}


def _surrogates(surrogate: Any) -> dict[str, Any]:
    if surrogate is None:
        return {}
    # a Pipeline and an nn.Sequential have a length too, but they are not lists
    several = surrogate if isinstance(surrogate, (list, tuple)) else [surrogate]
    return {f"surrogate {i}" if i else "surrogate": model for i, model in enumerate(several)}


def _identity(model: Any) -> dict[str, Any]:
    """The identity of a fitted estimator in a report."""
    final = getattr(model, "best_estimator_", model)
    final = final[-1] if isinstance(final, Pipeline) else final
    seed = getattr(final, "random_state", None)
    return {
        "type": type_name(model),
        "random_state": describe(seed),
        "digest": digest_of_model(model),
        "checked": None,
    }


def named_estimators(estimators: Any) -> dict[str, Any]:
    """Fitted models by name."""
    if not isinstance(estimators, Mapping):
        estimators = {type(getattr(estimators, "best_estimator_", estimators)).__name__: estimators}
    if not estimators:
        raise ValueError("estimators is empty: give a fitted estimator, or a dict of some")
    for name, model in estimators.items():
        if not isinstance(model, nn.Module) and not hasattr(model, "predict"):
            raise TypeError(
                f"{model!r} ({name}) is no estimator and no nn.Module; give a fitted one, or a "
                "dict such as {'vanilla': clf}"
            )
        try:
            as_torch(model)  # raises NotFittedError
        except NotDifferentiableError:
            continue  # which the report will say of each attack
    return {str(name): model for name, model in estimators.items()}


def named_attacks(attacks: Any, threat: Limits, surrogate: Any = None) -> dict[str, Attack]:
    """Valid, untargeted attacks by name; `threat` is for names without a norm and eps."""
    PGD(**threat._asdict())._validate()
    defaults = {**threat._asdict(), "surrogate": surrogate}
    if isinstance(attacks, Mapping):
        named = {
            str(name): attack_from_name(given, **defaults) if isinstance(given, str) else given
            for name, given in attacks.items()
        }
    else:
        several = (attacks,) if isinstance(attacks, (str, Attack)) else attacks
        if not isinstance(several, Sequence):
            raise TypeError(
                "attacks must be an attack, a name, or a list or dict of some, such as "
                f"['fgsm', 'pgd20']; got {attacks!r}"
            )
        scorers = robust_scoring(*several, **defaults) if several else {}
        named = {n: s.attacks[0] for n, s in scorers.items() if n not in (CLEAN, WORST)}
    if not named:
        raise ValueError("attacks is empty: give one at least, such as 'pgd20'")
    for name, attack in named.items():
        if name in (CLEAN, WORST):
            raise ValueError(f"an attack must not be named {name!r}, which the report itself uses")
        if not isinstance(attack, Attack):
            raise TypeError(f"attack {name!r} must be an attack or a name of one; got {attack!r}")
        check_untargeted(attack)
    return named


def check_data(X: ArrayLike, y: ArrayLike, n_sanity: int) -> None:
    """Raise for invalid data."""
    refuse_dataset(X)
    values, labels = as_array(X, "X"), as_array(y, "y")
    if values.ndim < 2 or labels.ndim != 1:
        raise ValueError(
            "X must have shape (n_samples, n_features, ...) and y (n_samples,); got "
            f"{values.shape} and {labels.shape}"
        )
    check_consistent_length(values, labels)
    if not len(values):
        raise ValueError("X holds no sample")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("X contains NaN or infinity; remove or impute these samples first")
    check_count(n_sanity, "n_sanity")


def check_in_box(models: dict[str, Any], X: ArrayLike, box: Box) -> None:
    """Raise if X, as any estimator receives it, is outside the given box."""
    for name, model in models.items():
        try:
            x = resolve_target(model, X, gradient=False).tensor(X)
        except NotDifferentiableError:
            continue
        low, high = float(x.min()), float(x.max())
        if box_excess(low, high, box):
            raise ValueError(
                f"X spans [{low:.4g}, {high:.4g}] as {name} takes it, outside of clip_values="
                f"{box}. Give the box of the raw data, or raw X to a model that scales it itself"
            )


@contextmanager
def progress_bar(total: float, *, enabled: bool) -> Iterator[StepProgress]:
    """Show a bar on the error stream within the block.

    Parameters
    ----------
    total : float
        Total cost of all steps.
    enabled : bool

    Yields
    ------
    steps : StepProgress
    """
    if not enabled:
        yield StepProgress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), _Remaining())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress, total)


class StepProgress:
    """What is told of the steps of a long computation; this one shows nothing."""

    def begin(self, label: str) -> None:
        """Begin a step."""

    def done(self, cost: float) -> None:
        """Finish the step."""


class _Bar(StepProgress):
    def __init__(self, progress: Progress, total: float) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total, ends=None)
        self._total, self._finished, self._start = total, 0.0, time.monotonic()

    def begin(self, label: str) -> None:
        self._progress.update(self._task, description=label)

    def done(self, cost: float) -> None:
        self._finished += cost
        elapsed = time.monotonic() - self._start
        ends = self._start + elapsed * self._total / max(self._finished, 1e-9)
        self._progress.update(self._task, advance=cost, ends=ends)


class _Remaining(ProgressColumn):
    """Time left, from the cost of all steps so far: rich's own estimate forgets long steps."""

    def render(self, task: Task) -> Text:
        ends = task.fields["ends"]
        if ends is None:
            return Text("time left unknown")
        minutes, seconds = divmod(round(max(0.0, ends - time.monotonic())), 60)
        hours, minutes = divmod(minutes, 60)
        return Text(f"{hours}:{minutes:02}:{seconds:02} left")
