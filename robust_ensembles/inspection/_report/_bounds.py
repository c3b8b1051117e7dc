"""Whether adversarial examples lie where their attack has promised, looked at in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...attacks import Attack
from ...attacks.engine.balls import NORMS, Box

# as a part of X's size: what float32 does to a scaled image before any attack
_TOLERANCE = 1e-6
_BATCH_SIZE = 1024


class Limits(NamedTuple):
    """Where the examples of an attack may lie.

    Parameters
    ----------
    eps : float
    norm : str
    clip_values : tuple of two floats or None
        None is the box of the module.
    """

    eps: float
    norm: str
    clip_values: Box | None


def limits_of(attack: Attack) -> list[Limits]:
    """Limits of an attack, those of each part for a union; empty where nothing is known."""
    if hasattr(attack, "eps") and hasattr(attack, "norm"):
        box = getattr(attack, "clip_values", None)
        return [Limits(attack.eps, attack.norm, None if box is None else tuple(box))]
    parts = getattr(attack, "attacks", ())
    inner = parts() if callable(parts) else parts
    return [limits for part in inner for limits in limits_of(part)]


class Witness(Attack):
    """Another attack, whose examples are looked at on their way out.

    Parameters
    ----------
    attack : Attack

    Attributes
    ----------
    excess : ndarray of shape (n_attacked,)
        How far each of the latest examples lies outside the ball or the box, in the units of X;
        0 within rounding, infinite for NaN.
    """

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.excess: NDArray[np.float64] = np.zeros(0)

    @property
    def gradient_free(self) -> bool:
        """As the attack."""
        return self.attack.gradient_free

    def __call__(
        self, module: nn.Module, X: Tensor, y: Tensor, *, stop_when_broken: bool = True
    ) -> Tensor:
        """Adversarial examples of the attack; see `Attack`."""
        made = self.attack(module, X, y, stop_when_broken=stop_when_broken)
        box = getattr(module, "clip_values", None)
        self.excess = excess(limits_of(self.attack), box, X, made)
        return made

    def check_classes(self, classes: NDArray[Any]) -> None:
        """As the attack."""
        self.attack.check_classes(classes)

    def _validate(self) -> None:
        self.attack._validate()


def excess(
    limits: Sequence[Limits], box: Box | None, X: Tensor, made: Tensor
) -> NDArray[np.float64]:
    """How far examples lie outside the nearest of several limits.

    Parameters
    ----------
    limits : sequence of Limits
    box : tuple of two floats or None
        Of the module, for limits without a box of their own.
    X, made : Tensor of shape (n_samples, ...)

    Returns
    -------
    excess : ndarray of shape (n_samples,)
    """
    tolerance = _TOLERANCE * max(1.0, float(X.abs().max())) if len(X) else 0.0
    unknown = Limits(float("inf"), "linf", None)
    found = [np.zeros(0)]
    for start, end in zip(X.split(_BATCH_SIZE), made.split(_BATCH_SIZE), strict=True):
        pair = start.detach().cpu().double(), end.detach().cpu().double()
        beyond = torch.stack([_beyond(one, box, *pair) for one in limits or (unknown,)])
        nearest = beyond.nan_to_num(nan=float("inf")).amin(dim=0)
        found.append(torch.where(nearest > tolerance, nearest, 0.0).numpy())
    return np.concatenate(found)


def _beyond(limits: Limits, box: Box | None, start: Tensor, end: Tensor) -> Tensor:
    """Distance from one ball and box, (n_samples,); negative inside."""
    distance = torch.full((len(start),), -torch.inf, dtype=torch.float64)
    if limits.norm in NORMS:
        distance = NORMS[limits.norm].length(end - start) - limits.eps
    box = box if limits.clip_values is None else limits.clip_values
    if box is not None:
        low, high = end.flatten(1).aminmax(dim=1)
        distance = torch.maximum(distance, torch.maximum(box[0] - low, high - box[1]))
    finite = end.isfinite().flatten(1).all(dim=1)
    return distance.where(finite, torch.nan)


def same_threat(attack: Any, limits: Limits) -> bool:
    """Whether an attack, and all its parts, search the same ball and box."""
    found = limits_of(attack)
    return bool(found) and all(one == limits for one in found)
