"""Robust accuracies of several estimators under several attacks, and whether to trust them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike

from .._signals import exit_by_sigterm, handled_sigterm
from ..attacks import Attack
from ..attacks.engine.balls import Box
from ._report._bounds import Limits
from ._report._evaluation import Evaluation
from ._report._progress import progress_bar
from ._report._requests import check_data, check_in_box, named_attacks, named_estimators
from .results import RobustnessReport


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

    Each attack is run on all samples that are right without it. An attack that cannot be run,
    such as a gradient attack where no gradient arrives, is reported as failed, never as a number.

    Parameters
    ----------
    estimators : fitted estimator, nn.Module, or dict of these
        Estimators of this package, Pipelines or searches that end in one, or modules that return
        logits; by name, where they are several.
    X : array-like of shape (n_samples, ...)
        Raw X.
    y : array-like of shape (n_samples,)
        True labels.
    attacks : str, Attack, sequence of these, or dict of these
        Names as in `metrics.attack_from_name`, or attacks, which must be untargeted.
    eps : float, default=8/255
        Radius of the ball, in the units of X, for the names that do not say. Attacks given as
        objects keep their own.
    norm : {"linf", "l2"}, default="linf"
        Likewise.
    clip_values : tuple of two floats, default=None
        Likewise. None is the box of each estimator.
    surrogate : fitted estimator, nn.Module, or sequence of these, default=None
        Trained apart, for the check of transfer and for attacks named ``"transfer"``. In the
        check several estimators are each other's surrogates, too.
    sanity_checks : bool, default=True
        Whether to run the checks that the notes list.
    n_sanity : int, default=100
        How many samples the sanity checks look at.
    path : path-like, default=None
        JSON file that is written after each measurement and each check. A later call with the
        same path measures only what is missing or has changed: estimators are compared by their
        weights and parameters, attacks by their parameters, functions among these by their
        name. It stays readable after an interruption.
    progress : bool, default=False
        Whether a bar on the error stream shows the remaining time.

    Returns
    -------
    report : RobustnessReport

    Raises
    ------
    TypeError
        For something that is no estimator or no attack.
    ValueError
        For bad parameters, X outside `clip_values`, lengths that differ, NaN in X, or a file
        with a report on other data.
    FileNotFoundError
        If the folder of `path` does not exist.
    sklearn.exceptions.NotFittedError
        If an estimator is not fitted.
    OSError
        If the report cannot be written, such as on a full disk; the former one is kept.
    SystemExit
        After SIGTERM, if nobody else handles that signal, as soon as Python gets to it.

    Notes
    -----
    The checks look at the threat (eps, norm, box) of the first attack, after [1]_ and [2]_:

    * ``eval_mode``: the module computes in eval mode what it computes as it was given.
    * ``determinism``: two passes agree.
    * ``agreement``: the attacked module computes what the estimator answers.
    * ``raw_units``: images lie in the declared box, or in [0, 1].
    * ``gradients``: neither zero nor NaN, and they reach X.
    * ``saturation``: no member has a gap above 15 between its two largest logits.
    * ``order``: FGSM leaves no fewer samples than PGD, PGD than APGD, APGD than AutoAttack.
    * ``more_steps``: PGD with 50 steps is not weaker than with 10.
    * ``strength``: ordinary gradient attacks break nothing that the report's attacks leave.
    * ``huge_eps``: a ball that holds everything leaves about nothing.
    * ``noise``, ``square``, ``transfer``: what needs no gradient breaks nothing that gradient
      attacks leave.
    * ``aggregation_swap``: neither do attacks on other aggregations or on single members.
    * ``mora``: MORA beside AutoAttack, or beside AutoAttack's walks where the report lacks it.
    * ``norm_and_box``: all examples lie in their ball and box, in float64.
    * ``unchanged``: weights, buffers, modes and outputs are as they were before.

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
    # modules that draw random numbers take them from the global generators
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with (
        torch.random.fork_rng(devices),
        handled_sigterm(exit_by_sigterm),
        progress_bar(evaluation.cost(sanity_checks), enabled=progress) as steps,
    ):
        for name in models:
            evaluation.examine(name, sanity_checks, steps)
    return evaluation.report
