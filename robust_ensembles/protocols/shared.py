"""What the protocols share: who is attacked, who stays right, and how that is counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..attacks import PGD, Attack, WorstCase, is_broken, resolve_target
from ._result import Mask, Row

Box = tuple[float, float]

_SOUND_LOSSES = ("margin", "member_cross_entropy")


@dataclass(frozen=True, eq=False)
class Subject:
    """A fitted estimator with the images that it is tested on.

    Parameters
    ----------
    name : str
    module : nn.Module
        From raw X to log-probabilities.
    x : Tensor of shape (n_samples, ...)
    y : Tensor of shape (n_samples,)
        Class indices.
    """

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor

    @cached_property
    def clean(self) -> Mask:
        """Which images are right as they are."""
        return self.right(self.x)

    def right(self, x: Tensor) -> Mask:
        """Which of other versions of the images, from any device, are right."""
        x = x.to(device=self.x.device, dtype=self.x.dtype)
        return (~is_broken(self.module, x, self.y)).cpu().numpy()

    def last_iterates(self, attack: Attack) -> Tensor:
        """Examples after all steps, whatever is broken on the way: what released attacks return."""
        return attack(self.module, self.x, self.y, stop_when_broken=False)

    def withstood(self, attacks: Sequence[Attack]) -> Mask:
        """Which images are right when clean and after each of the attacks."""
        return self.clean & self.right(WorstCase(attacks)(self.module, self.x, self.y))

    def take(self, index: NDArray[np.int64]) -> Subject:
        """The same estimator with a part of the images."""
        rows = torch.from_numpy(index).to(self.x.device)
        return replace(self, x=self.x[rows], y=self.y[rows])


def subjects(estimators: Any, X: ArrayLike, y: ArrayLike) -> list[Subject]:
    """One fitted estimator, or several by name, with the images.

    Parameters
    ----------
    estimators : fitted estimator or dict of these
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)

    Returns
    -------
    subjects : list of Subject

    Raises
    ------
    ValueError
        For no estimators, no images, lengths that differ, or uint8 images where eps would not be
        in units of [0, 1].
    """
    named = by_name(estimators)
    if not named:
        raise ValueError(
            "estimators is empty; give a fitted estimator, or a dict name -> estimator"
        )
    return [subject(name, estimator, X, y) for name, estimator in named.items()]


def by_name(estimators: Any) -> dict[str, Any]:
    """Estimators by name; a single one is called by its class."""
    if isinstance(estimators, Mapping):
        return {str(name): estimator for name, estimator in estimators.items()}
    return {type(estimators).__name__: estimators}


def subject(name: str, estimator: Any, X: ArrayLike, y: ArrayLike) -> Subject:
    """One fitted estimator with the images; see `subjects`."""
    n_images, n_labels = len(np.asarray(X)), len(np.asarray(y))
    if n_images != n_labels or not n_images:
        raise ValueError(f"X must hold an image for each label; got {n_images} and {n_labels}")
    target = resolve_target(estimator, X)
    if np.asarray(X).dtype == np.uint8 and not target.scales_uint8:
        raise ValueError(
            f"{name}: X is uint8, which this estimator takes for numbers from 0 to 255, but eps "
            "is meant for images in [0, 1]. Train and test it on X / 255"
        )
    return Subject(name, target.module, target.tensor(X), target.encode(y))


def sound_attacks(eps: float, *, n_steps: int, **shared: Any) -> list[Attack]:
    """Projected ascent by steps of eps / 4, on losses that neither saturate nor cancel.

    Parameters
    ----------
    eps : float
    n_steps : int
    **shared
        Further parameters of `PGD`.

    Returns
    -------
    attacks : list of Attack
        On the margin of the mean probability, and on the members' mean cross-entropy.
    """
    return [
        PGD(eps=eps, n_steps=n_steps, step_size=eps / 4, loss=loss, **shared)
        for loss in _SOUND_LOSSES
    ]


Play = Callable[[Subject, Any], tuple[Mask, Mask]]
"""Runs one attack of a paper: who is right as the paper counts, and who is as deployed."""


def last_iterate(attacked: Subject, attack: Attack) -> tuple[Mask, Mask]:
    """The plain `Play`: whoever is right after the last step, also if not so when clean."""
    right = attacked.right(attacked.last_iterates(attack))
    return right, right


def white_box_rows(
    attacked: Subject,
    eps: float,
    attacks: Mapping[str, Sequence[Attack]],
    sound: Sequence[Attack],
    play: Play,
    *,
    published: str | None,
    clean: Mask | None = None,
) -> list[Row]:
    """Rows of each attack at one eps, and of the worst if there are several.

    Parameters
    ----------
    attacked : Subject
    eps : float
    attacks : dict of sequences of Attack
        The paper's, by name; the worst of a sequence counts.
    sound : sequence of Attack
        Their worst counts, beside that of the paper's attack, as the sound number.
    play : callable
    published : str or None
        The metric that the paper prints.
    clean : bool ndarray of shape (n_samples,), default=None
        Who is right before the attack as the paper counts, where that is not as deployed.

    Returns
    -------
    rows : list of Row
    """
    withstood = attacked.withstood(sound)
    outcomes = {}
    for name, several in attacks.items():
        played = [play(attacked, attack) for attack in several]
        faithful = np.logical_and.reduce([as_counted for as_counted, _ in played])
        outcomes[name] = faithful, np.logical_and.reduce([withstood, *(own for _, own in played)])
    return outcome_rows(attacked, "white", eps, outcomes, published=published, clean=clean)


def outcome_rows(
    attacked: Subject,
    threat: str,
    eps: float,
    outcomes: Mapping[str, tuple[Mask, Mask]],
    *,
    published: str | None,
    clean: Mask | None = None,
) -> list[Row]:
    """Rows of each attack at one eps, and of the worst if there are several.

    Parameters
    ----------
    attacked : Subject
    threat : str
    eps : float
    outcomes : dict of pairs of bool ndarray of shape (n_samples,)
        Who stays right, faithfully and soundly, by the name of the attack.
    published : str or None
        The metric that the paper prints.
    clean : bool ndarray of shape (n_samples,), default=None
        See `white_box_rows`.

    Returns
    -------
    rows : list of Row
        Two for each attack: conditional and unconditional.
    """
    worst = [np.logical_and.reduce(masks) for masks in zip(*outcomes.values(), strict=True)]
    named = {**outcomes, "worst": (worst[0], worst[1])} if len(outcomes) > 1 else outcomes
    counted = attacked.clean if clean is None else clean
    everyone = np.ones_like(counted)
    rows = []
    for attack, (faithful, sound) in named.items():
        for metric, of, sound_of in (
            ("conditional", counted, attacked.clean),
            ("unconditional", everyone, everyone),
        ):
            accuracies = fraction(faithful, of), fraction(sound, sound_of)
            printed = metric == published and attack != "worst"
            rows.append(
                Row(attacked.name, threat, attack, eps, metric, *accuracies, int(of.sum()), printed)
            )
    return rows


def clean_row(attacked: Subject, *, published: bool, clean: Mask | None = None) -> Row:
    """Accuracy without an attack; `clean` as in `white_box_rows`."""
    counted = attacked.clean if clean is None else clean
    accuracies = float(counted.mean()), float(attacked.clean.mean())
    metric = "unconditional"
    return Row(attacked.name, "none", "clean", 0.0, metric, *accuracies, len(counted), published)


def fraction(mask: Mask, of: Mask) -> float:
    """Part of some samples that a mask selects; NaN of none."""
    return float(mask[of].mean()) if of.any() else float("nan")
