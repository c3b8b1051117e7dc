"""Checks of the module's state: modes, random outputs, and what is really attacked."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from ...attacks._mode import untouched
from ..subject import BATCH_SIZE, ROUNDING, Subject, far_apart
from ._finding import Finding, NotApplicableError, bad, good
from ._snapshot import Snapshot

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
    with untouched(target.module), torch.no_grad():
        parts = [target.module(x).cpu() for x in target.tensor(subject.X).split(BATCH_SIZE)]
    proba: NDArray[np.float64] = torch.cat(parts).double().softmax(dim=1).numpy()
    return proba
