"""CEAT's evaluation protocol (Li et al. 2025): white box, on all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._checks import one_of
from .._plain import described
from .._system import versions
from ..attacks import CW, MIM, MORA, PGD, Attack, AutoAttack, EnsembleAutoAttack, Target
from .shared import (
    Box,
    Mask,
    ProtocolResult,
    Row,
    check_grid,
    clean_row,
    described_all,
    last_iterate,
    named_targets,
    sound_attacks,
    white_box_rows,
)

_ATTACKS = ("PGD", "MIM", "CW", "AA")
_ENSEMBLE_ATTACKS = ("mora", "autoattack")

_QUIRKS = (
    "Published accuracies are of all images, so that misclassified ones count as broken.",
    "PGD and MIM ascend the cross-entropy of the mean probability, which rounds to zero in float32 "
    "for confident ensembles. 'sound' adds PGD-20 by steps of eps / 4, on the margin of the mean "
    "probability and on the mean of the members' cross-entropies.",
    "Examples of PGD, MIM and CW are those after the last step, also where an earlier one was "
    "wrong.",
    "The paper states neither the confidence of CW (0 here, on the margin to the best wrong class) "
    "nor the random start of PGD and CW (here there is one), nor the eps of AutoAttack (here that "
    "of the others); no code is known.",
    "AutoAttack's first attack ascends the margin of the mean probability, which decides as its "
    "cross-entropy does.",
)
_OF_ENSEMBLE_ATTACK = {
    None: "'sound' is without attacks made for ensembles, which are slow: it is an upper bound "
    "that ensemble_attack='mora' or 'autoattack' can lower.",
    "mora": "'sound' adds MORA, which weighs the members anew in each step.",
    "autoattack": "'sound' adds EnsembleAutoAttack, which attacks all ways to combine members.",
}


def ceat(
    estimators: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    eps: float = 0.031,
    step_size: float = 0.007,
    n_steps: int = 20,
    n_queries: int = 5000,
    attacks: Sequence[str] | None = None,
    ensemble_attack: str | None = None,
    clip_values: Box | None = (0.0, 1.0),
    batch_size: int = 256,
    random_state: int = 0,
) -> ProtocolResult:
    """CEAT's white box: PGD-20, MIM-20, CW-20 and AutoAttack on all images.

    The numbers of the paper are ``faithful`` with ``metric == "unconditional"``. Beside them,
    ``sound`` is the worst case of the row's attack, PGD-20 with steps of eps / 4 on two losses,
    and `ensemble_attack` if given.

    Parameters
    ----------
    estimators : fitted estimator or dict of these
        By name.
    X : array-like of shape (n_samples, ...)
        Test images in [0, 1] or uint8; in the paper presumably all 10,000.
    y : array-like of shape (n_samples,)
        Labels.
    eps : float, default=0.031
        Radius in the maximum norm, in the units of X.
    step_size : float, default=0.007
        Step size of PGD, MIM and CW, in the units of X.
    n_steps : int, default=20
        Number of steps of PGD, MIM and CW, including the sound ones.
    n_queries : int, default=5000
        Queries of Square, the last part of AutoAttack.
    attacks : sequence of {"PGD", "MIM", "CW", "AA"}, default=None
        The attacks of the paper to run; None is all. AutoAttack takes far longer than the others
        together.
    ensemble_attack : {"mora", "autoattack"}, default=None
        Attack to add to the sound numbers: `MORA`, or `EnsembleAutoAttack`, which includes MORA.
        Both are slow, so the default is none, as `quirks` then states.
    clip_values : tuple of two floats or None, default=(0, 1)
        Box of the examples; None uses that of the estimator.
    batch_size : int, default=256
        Images attacked at once. Does not change the result.
    random_state : int, default=0
        Seed of random starts.

    Returns
    -------
    result : ProtocolResult

    Raises
    ------
    ValueError
        For parameters out of range and unknown names.

    References
    ----------
    .. [1] D. Li et al., "Learning from Peers: Collaborative Ensemble Adversarial Training", 2025,
       arXiv:2509.00089, tables 1 to 4.
    """
    [eps] = check_grid(eps, "ceat")
    if ensemble_attack is not None:
        one_of(ensemble_attack, _ENSEMBLE_ATTACKS, "ceat: ensemble_attack")
    shared: dict[str, Any] = {
        "clip_values": clip_values,
        "batch_size": batch_size,
        "random_state": random_state,
    }
    params = {"eps": eps, **shared}
    walk = {"n_steps": n_steps, "step_size": step_size, **params}
    run = _selected(published_attacks(walk, AutoAttack(n_queries=n_queries, **params)), attacks)
    sound = sound_attacks(eps, n_steps=n_steps, **shared)
    if ensemble_attack == "mora":
        sound.append(MORA(**params))
    elif ensemble_attack == "autoattack":
        sound.append(EnsembleAutoAttack(n_queries=n_queries, **params))
    rows: list[Row] = []
    for target in named_targets(estimators, X, y):
        rows.append(clean_row(target, published=True))
        rows += white_box_rows(target, eps, run, sound, _play, published="unconditional")
    settings = {
        "eps": eps,
        "n_images": len(np.asarray(y)),
        "ensemble_attack": ensemble_attack,
        "estimators": described_all(estimators),
        "attacks": {
            "faithful": [described(attack) for [attack] in run.values()],
            "sound": [described(attack) for attack in sound],
        },
        "versions": versions(),
    }
    quirks = [*_QUIRKS, _OF_ENSEMBLE_ATTACK[ensemble_attack]]
    return ProtocolResult("CEAT", rows, settings, quirks)


def published_attacks(walk: dict[str, Any], autoattack: AutoAttack) -> dict[str, Sequence[Attack]]:
    """The attacks of the paper's tables, by their names there."""
    n_steps = walk["n_steps"]
    return {
        f"PGD{n_steps}": [PGD(loss="cross_entropy", **walk)],
        "MIM": [MIM(loss="cross_entropy", **walk)],
        "CW": [CW(**walk)],
        "AA": [autoattack],
    }


def _selected(
    made: dict[str, Sequence[Attack]], names: Sequence[str] | None
) -> dict[str, Sequence[Attack]]:
    """The requested attacks."""
    if names is None:
        return made
    for name in names:
        one_of(name, _ATTACKS, "ceat: attacks")
    if not names:
        raise ValueError(f"ceat: attacks is empty; name some of {_ATTACKS}, or None for all")
    return {name: one for name, one in made.items() if name.rstrip("0123456789") in names}


def _play(target: Target, attack: Attack) -> tuple[Mask, Mask]:
    if not isinstance(attack, AutoAttack):
        return last_iterate(target, attack)
    right = target.withstood([attack])
    return right, right
