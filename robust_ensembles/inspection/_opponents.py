"""Models that take part in a transfer experiment: as sources, as targets, or as both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ..attacks import BoundedAttack, is_broken, resolve_target
from ..attacks._objective import count_members
from ..twins import HasMemberLogits


class Member(nn.Module):
    """One member of an ensemble as a module of its own.

    An attack's ``aggregation=i`` is not enough here: it aims the loss at a member, but attacks
    that look at decisions would still look at those of the ensemble.

    Parameters
    ----------
    ensemble : nn.Module
        Has ``member_logits``. Shared, not copied.
    index : int
    """

    def __init__(self, ensemble: nn.Module, index: int) -> None:
        super().__init__()
        self.ensemble, self.index = ensemble, index
        self.clip_values = getattr(ensemble, "clip_values", None)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the member, (n_samples, n_classes)."""
        return cast(HasMemberLogits, self.ensemble).member_logits(x)[self.index]


@dataclass(frozen=True)
class Opponent:
    """A model with the samples as it takes them.

    Parameters
    ----------
    name : str
    module : nn.Module
    x : Tensor of shape (n_samples, ...)
        Raw X, on the module's device.
    y : Tensor of shape (n_samples,)
        Class indices of this model.
    """

    name: str
    module: nn.Module
    x: Tensor
    y: Tensor

    def correct(self) -> NDArray[np.bool_]:
        """Which samples the model classifies correctly as they are, (n_samples,)."""
        return ~self.fooled_by(self.x, np.arange(len(self.x)))

    def examples(self, attack: BoundedAttack, rows: NDArray[np.intp]) -> Tensor:
        """Adversarial examples for some of the samples, made without looking at a decision."""
        index = torch.as_tensor(rows, device=self.x.device)
        return attack(self.module, self.x[index], self.y[index], stop_when_broken=False)

    def fooled_by(self, examples: Tensor, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Which examples, made of these samples for any model, are misclassified, (n_rows,)."""
        index = torch.as_tensor(rows, device=self.x.device)
        broken = is_broken(self.module, examples.to(self.x), self.y[index])
        fooled: NDArray[np.bool_] = broken.cpu().numpy()
        return fooled


def members_and_ensemble(
    estimator: Any, X: ArrayLike, y: ArrayLike, *, gradient: bool
) -> list[Opponent]:
    """Each member alone, and the whole ensemble last.

    Parameters
    ----------
    estimator : fitted estimator or nn.Module
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)
    gradient : bool
        Whether gradients must reach X.

    Returns
    -------
    opponents : list of Opponent

    Raises
    ------
    ValueError
        If there are no members, or a single one.
    """
    target = resolve_target(estimator, X, gradient=gradient)
    x, labels = target.tensor(X), target.encode(y)
    n_members = count_members(target.module, x)
    if n_members < 2:
        raise ValueError(
            f"{type(estimator).__name__} has no members to transfer between: give an ensemble of "
            "two or more, or a dict of fitted models such as {'vanilla': a, 'dverge': b}"
        )
    alone = [Opponent(f"member {i}", Member(target.module, i), x, labels) for i in range(n_members)]
    return [*alone, Opponent("ensemble", target.module, x, labels)]


def whole_models(
    estimators: Mapping[str, Any], X: ArrayLike, y: ArrayLike, *, gradient: bool
) -> list[Opponent]:
    """Several fitted models, each as a whole.

    Parameters
    ----------
    estimators : mapping of str to fitted estimator or nn.Module
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)
    gradient : bool
        Whether gradients must reach X.

    Returns
    -------
    opponents : list of Opponent

    Raises
    ------
    ValueError
        If there are fewer than two, or if they take X in different units.
    """
    if len(estimators) < 2:
        raise ValueError(
            f"a dict needs two fitted models or more to transfer between; got {list(estimators)}. "
            "For the members of one ensemble give the ensemble itself"
        )
    targets = {
        str(name): resolve_target(estimator, X, gradient=gradient)
        for name, estimator in estimators.items()
    }
    if np.asarray(X).dtype == np.uint8 and len({t.scales_uint8 for t in targets.values()}) > 1:
        raise ValueError(
            "uint8 X means images in [0, 1] to some of the models and numbers up to 255 to "
            "others, so that eps has two units: convert X to floats that all take"
        )
    return [
        Opponent(name, target.module, target.tensor(X), target.encode(y))
        for name, target in targets.items()
    ]
