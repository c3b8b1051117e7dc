"""CLDL's evaluation protocol (Wang and Liu 2022): examples transferred from vanilla ensembles."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import one_of
from .._plain import described
from .._system import versions
from ..attacks import BIM, FGSM, MIM, PGD, Attack, Target
from ..attacks.transfer import refuse_target
from .shared import (
    Box,
    Mask,
    ProtocolResult,
    Row,
    clean_row,
    described_all,
    fixed_radii,
    last_iterate,
    named_target,
    named_targets,
    outcome_rows,
    sound_attacks,
    white_box_rows,
)

_SUBSETS = ("evaluation", "hyper-parameters", "all", "common_correct")
_N_IMAGES, _N_TUNING = 10_000, 1_000


def cldl_split() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split of the 10,000 test images of each data set in CLDL's code.

    Returns
    -------
    hyper_parameters : ndarray of shape (1000,)
        Indices of the images for choosing hyper-parameters.
    evaluation : ndarray of shape (9000,)
        Indices of the others.
    """
    # a private generator draws what the global one does after random.seed(0)
    order = np.array(random.Random(0).sample(range(_N_IMAGES), _N_IMAGES), dtype=np.int64)
    return order[:_N_TUNING], order[_N_TUNING:]


def check_subset(subset: str, y: ArrayLike) -> None:
    """Raise for an unknown subset, or if y does not have the size of a test set."""
    one_of(subset, _SUBSETS, "cldl: subset")
    n_images = len(np.asarray(y))
    if subset in ("evaluation", "hyper-parameters") and n_images != _N_IMAGES:
        raise ValueError(
            f"subset={subset!r} is a part of the {_N_IMAGES} test images of a data set; got "
            f"{n_images} images. Take subset='all' for these"
        )


def selected(subset: str, targets: list[Target]) -> NDArray[np.int64]:
    """Indices of the images of a subset, in the order of the released code."""
    if subset == "all":
        return np.arange(len(targets[0].y))
    if subset == "common_correct":
        index = np.logical_and.reduce([target.right() for target in targets]).nonzero()[0]
        if not len(index):
            raise ValueError("subset='common_correct': no image is right for all estimators")
        return index
    hyper_parameters, evaluation = cldl_split()
    return evaluation if subset == "evaluation" else hyper_parameters


GRIDS = {
    "cifar10": (0.01, 0.02, 0.03, 0.04),
    "mnist": (0.1, 0.15, 0.2, 0.25),
    "fashion-mnist": (0.08, 0.1, 0.15, 0.2),
}
_CW = {"released": "released_cw", "sound": "cw_margin"}
_SEEDS, _WHITE_BOX_SEEDS = range(3), range(5)
_N_STEPS, _SOUND_STEPS = 10, 20

_QUIRKS = (
    "Published are conditional accuracies: of the images that an estimator has right when clean. "
    "So every estimator is judged on images of its own.",
    "Examples are those after the last step, also where an earlier one would have been wrong on "
    "the surrogate.",
    "Three seeds are counted for each attack, but only PGD draws random numbers, so that the "
    "twelve sets are four different ones for the other attacks. Here these are made once.",
    "The paper speaks of averages over five runs; the code has one.",
    "Black box says little of the white box: a defence against transfer can be weaker there than "
    "no defence. See white_box=True.",
)
_OF_CW = {
    "released": "Released is a CW loss whose gradient is zero where the surrogate's probability of "
    "the label is below 0.905, and which never looks at the runner-up: those examples stop early. "
    "'sound' adds examples on the margin to the best wrong class.",
    "sound": "CW is the margin to the best wrong class in both columns; the released loss, whose "
    "gradient is zero where the probability of the label is below 0.905, is left out.",
}
_WHITE_BOX_QUIRKS = (
    "White box, which the code has but the paper's tables have not: cross-entropy only, the worst "
    "of five seeds, of all images. One that is wrong when clean counts as right if it is right "
    "after the attack; not so in 'sound'.",
)


def cldl(
    estimators: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    surrogates: Any,
    dataset: str | None = None,
    eps: float | Sequence[float] | None = None,
    cw: str = "released",
    subset: str = "evaluation",
    white_box: bool = False,
    clip_values: Box | None = (0.0, 1.0),
    batch_size: int = 256,
) -> ProtocolResult:
    """CLDL's black box: examples made on vanilla ensembles and evaluated on each estimator.

    BIM, FGSM, MIM and PGD in the maximum norm, 10 steps of eps / 5, on each surrogate's log mean
    probability, with cross-entropy and with a CW loss, PGD from three random starts. An image
    withstands an attack if an estimator classifies it correctly when clean and in all these sets.
    They are made once, for all estimators.

    The numbers of the paper are ``faithful`` with ``metric == "conditional"``. The sound numbers
    are ``sound`` with ``metric == "unconditional"``: on all images, with additional examples on the
    correct CW margin.

    Parameters
    ----------
    estimators : fitted estimator or dict of these
        The targets, by name.
    X : array-like of shape (n_samples, ...)
        All 10,000 test images in their usual order, in [0, 1] or uint8, unless
        ``subset="all"`` or ``"common_correct"``.
    y : array-like of shape (n_samples,)
        Labels.
    surrogates : fitted estimator or sequence of these
        Models to make the examples on; in the paper vanilla ensembles of 3 and of 5 members, see
        `train_surrogates`.
    dataset : {"cifar10", "mnist", "fashion-mnist"}, default=None
        Sets the radii. None requires `eps`.
    eps : float or sequence of float, default=None
        Radii in the units of X, instead of those of the data set.
    cw : {"released", "sound"}, default="released"
        The CW loss of the faithful numbers: that of the code, or the correct margin.
    subset : {"evaluation", "hyper-parameters", "all", "common_correct"}, default="evaluation"
        The 9,000 images of the paper's tables I to XI, or the 1,000 of XII to XIV, see
        `cldl_split`; all of X; or the images of X that all estimators classify correctly, which the
        code's documentation mentions, but the code does not use.
    white_box : bool, default=False
        Whether to also attack each estimator itself, as the code does: the same four attacks with
        cross-entropy, the worst of 5 seeds. ``sound`` is then the worst case of these and PGD-20
        with steps of eps / 4, on the margin and on the mean of the members' cross-entropies.
    clip_values : tuple of two floats or None, default=(0, 1)
        Box of the examples; None uses that of the attacked estimator.
    batch_size : int, default=256
        Images attacked at once. Does not change the result.

    Returns
    -------
    result : ProtocolResult

    Raises
    ------
    ValueError
        For unknown names, a number of images that does not match `subset`, a surrogate that is
        one of the targets, or if neither `dataset` nor `eps` is given.

    References
    ----------
    .. [1] L. Wang and B. Liu, "Adversarial Ensemble Training by Jointly Learning Label
       Dependencies and Member Models", 2022, arXiv:2206.14477, section IV and tables
       I to XIV, and the code released with it.
    """
    radii = fixed_radii("cldl", dataset, eps, GRIDS)
    one_of(cw, _CW, "cldl: cw")
    check_subset(subset, y)
    given = list(surrogates) if isinstance(surrogates, Sequence) else [surrogates]
    targets = named_targets(estimators, X, y)
    sources = [named_target(f"surrogates[{i}]", one, X, y) for i, one in enumerate(given)]
    _refuse_targets(sources, targets)
    index = selected(subset, targets)
    targets, sources = ([s.take(index) for s in several] for several in (targets, sources))
    shared: dict[str, Any] = {"clip_values": clip_values, "batch_size": batch_size}
    losses = ("cross_entropy", _CW[cw])
    rows = [clean_row(target, published=False) for target in targets]
    for radius in radii:
        rows += _black_box(targets, sources, radius, losses, shared)
        if white_box:
            rows += [row for target in targets for row in _white_box(target, radius, shared)]
    settings = {
        "dataset": dataset,
        "eps": list(radii),
        "subset": subset,
        "n_images": len(index),
        "cw": cw,
        "white_box": white_box,
        "estimators": described_all(estimators),
        "surrogates": [described(one) for one in given],
        "attacks": _described_attacks(radii, losses, shared, white_box),
        "versions": versions(),
    }
    quirks = [*_QUIRKS, _OF_CW[cw], *(_WHITE_BOX_QUIRKS if white_box else ())]
    return ProtocolResult("CLDL", rows, settings, quirks)


def transfer_attacks(
    eps: float, losses: Iterable[str], seeds: Iterable[int], **shared: Any
) -> dict[str, list[Attack]]:
    """The four attacks of the paper by name, each with every loss and, for PGD, every seed."""
    walk = {"eps": eps, "n_steps": _N_STEPS, "step_size": eps / 5, **shared}
    losses = list(losses)
    return {
        "BIM": [BIM(loss=loss, **walk) for loss in losses],
        "FGSM": [FGSM(eps=eps, loss=loss, **shared) for loss in losses],
        "MIM": [MIM(loss=loss, **walk) for loss in losses],
        "PGD": [PGD(loss=loss, random_state=s, **walk) for loss in losses for s in seeds],
    }


def _black_box(
    targets: list[Target],
    sources: list[Target],
    eps: float,
    faithful_losses: tuple[str, ...],
    shared: dict[str, Any],
) -> list[Row]:
    """Make each set of examples once, evaluate it on every target, and discard it."""
    outcomes: list[dict[str, tuple[Mask, Mask]]] = [{} for _ in targets]
    attacks = transfer_attacks(eps, _with_sound(faithful_losses), _SEEDS, **shared)
    for name, several in attacks.items():
        masks = [(target.right(), target.right()) for target in targets]
        for source in sources:
            for attack in several:
                examples = source.last_iterates(attack)
                for target, (faithful, sound) in zip(targets, masks, strict=True):
                    right = ~target.broken(examples)
                    sound &= right
                    if attack.loss in faithful_losses:
                        faithful &= right
        for outcome, mask in zip(outcomes, masks, strict=True):
            outcome[name] = mask
    return [
        row
        for target, outcome in zip(targets, outcomes, strict=True)
        for row in outcome_rows(target, "black", eps, outcome, published="conditional")
    ]


def _white_box(target: Target, eps: float, shared: dict[str, Any]) -> list[Row]:
    return white_box_rows(
        target,
        eps,
        transfer_attacks(eps, ("cross_entropy",), _WHITE_BOX_SEEDS, **shared),
        sound_attacks(eps, n_steps=_SOUND_STEPS, **shared),
        last_iterate,
        published=None,
    )


def _with_sound(losses: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*losses, _CW["sound"])))


def _refuse_targets(sources: list[Target], targets: list[Target]) -> None:
    if not sources:
        raise ValueError("surrogates is empty; see train_surrogates")
    for source in sources:
        for target in targets:
            try:
                refuse_target(source.module, target.module)
            except ValueError as error:
                raise ValueError(f"{source.name} and {target.name!r}: {error}") from None


def _described_attacks(
    radii: tuple[float, ...], losses: tuple[str, ...], shared: dict[str, Any], white_box: bool
) -> dict[str, list[str]]:
    """All attacks of the protocol as text."""

    def listed(losses: tuple[str, ...], seeds: Iterable[int]) -> list[str]:
        named = (transfer_attacks(eps, losses, seeds, **shared) for eps in radii)
        return [described(a) for kinds in named for several in kinds.values() for a in several]

    faithful = listed(losses, _SEEDS)
    run = listed(_with_sound(losses), _SEEDS)
    attacks = {"faithful": faithful, "sound": [one for one in run if one not in faithful]}
    if white_box:
        sound = [a for eps in radii for a in sound_attacks(eps, n_steps=_SOUND_STEPS, **shared)]
        attacks["faithful, white box"] = listed(("cross_entropy",), _WHITE_BOX_SEEDS)
        attacks["sound, white box"] = [described(attack) for attack in sound]
    return attacks
