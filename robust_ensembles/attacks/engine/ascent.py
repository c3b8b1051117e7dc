"""Projected steepest ascent, the loop that all the gradient attacks share."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .balls import Ball


class Climbable(ABC):
    """What a walk climbs: the loss of an attack, or a distance of features."""

    @abstractmethod
    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each sample's value, upwards, and whether the sample is broken.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
        y : Tensor of shape (n_samples,)

        Returns
        -------
        gradient : Tensor of the shape of x
        broken : bool Tensor of shape (n_samples,)
        """

    def broken(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each sample is broken; by default none is, so that all take every step.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
        y : Tensor of shape (n_samples,)

        Returns
        -------
        broken : bool Tensor of shape (n_samples,)
        """
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)


@dataclass(frozen=True)
class Steps:
    """How to walk.

    Parameters
    ----------
    n_steps : int
    step_size : float
        Length of a step, in the attack's norm and the units of X.
    decay : float or None
        Momentum: the direction accumulates gradients of unit L1 norm, discounted by this factor.
    """

    n_steps: int
    step_size: float
    decay: float | None = None


def ascend(
    objective: Climbable,
    ball: Ball,
    start: Tensor,
    y: Tensor,
    steps: Steps,
    *,
    stop_when_broken: bool,
) -> tuple[Tensor, Tensor]:
    """Walk uphill from `start`, projecting each step into the ball.

    Parameters
    ----------
    objective : Climbable
    ball : Ball
    start : Tensor of shape (n_samples, ...)
        Points in the ball.
    y : Tensor of shape (n_samples,)
    steps : Steps
    stop_when_broken : bool
        Drop a sample at the first iterate that is broken; the others go on by themselves. False
        takes every step and looks at no decision.

    Returns
    -------
    x : Tensor of shape (n_samples, ...)
        The breaking iterate, or the last.
    broken : bool Tensor of shape (n_samples,)
        All False unless `stop_when_broken`.
    """
    result = start.clone()
    is_broken = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    active = torch.arange(len(start), device=start.device)
    x, momentum = start, torch.zeros_like(start) if steps.decay is not None else None
    for _ in range(steps.n_steps):
        gradient, broken = objective.gradient(x, y)
        if stop_when_broken:
            check_finite(gradient)
        if stop_when_broken and broken.any():
            result[active], is_broken[active] = x, broken
            keep = ~broken
            active, x, y, gradient, ball = (
                active[keep],
                x[keep],
                y[keep],
                gradient[keep],
                ball[keep],
            )
            momentum = None if momentum is None else momentum[keep]
            if not len(active):
                return result, is_broken
        if momentum is not None and steps.decay is not None:
            momentum = steps.decay * momentum + _unit_l1(gradient)
        direction = ball.steepest(gradient if momentum is None else momentum)
        x = ball.project(x + steps.step_size * direction)
    result[active] = x
    if stop_when_broken:
        is_broken[active] = objective.broken(x, y)
    return result, is_broken


def check_finite(gradient: Tensor) -> None:
    """Raise FloatingPointError if a sample's gradient is NaN or infinite."""
    finite = gradient.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        raise FloatingPointError(
            f"the module's gradient is NaN or infinite for {int((~finite).sum())} of "
            f"{len(finite)} samples, so it cannot be attacked by gradients: look for a division "
            "by zero, a square root of zero or an overflow in its forward pass"
        )


def _unit_l1(gradient: Tensor) -> Tensor:
    norm = gradient.abs().flatten(1).sum(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / norm.view(-1, *([1] * (gradient.ndim - 1)))
