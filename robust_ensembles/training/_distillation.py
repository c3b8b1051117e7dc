"""Distilled images: they look like one sample and have a member's features of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..attacks.engine.ascent import Climbable, Steps, ascend
from ..attacks.engine.balls import LinfBall
from .features import features

if TYPE_CHECKING:
    from .step import TrainingStep


class FeatureDistance(Climbable):
    """Distance of a member's features from given ones, as something to climb or to descend.

    Parameters
    ----------
    member : nn.Module
        Its parameters must be frozen by the caller.
    layer : str
    target : Tensor of shape (n_samples, ...)
        Features to be measured from.
    descend : bool
        Whether the gradient points downwards.
    """

    def __init__(self, member: nn.Module, layer: str, target: Tensor, *, descend: bool) -> None:
        self.member, self.layer, self.target = member, layer, target
        self.sign = -1.0 if descend else 1.0

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each sample's mean squared distance; nothing counts as broken."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            difference = features(self.member, self.layer, x) - self.target
            distance = self.sign * difference.square().flatten(1).mean(dim=1).sum()
            (gradient,) = torch.autograd.grad(distance, x)
        return gradient, self.broken(x, y)


def distill(
    step: TrainingStep,
    member: nn.Module,
    layer: str,
    *,
    x_target: Tensor,
    eps: float,
    walk: Steps,
) -> Tensor:
    r"""Samples of the batch, moved to have a member's features of other samples.

    .. math:: \arg\min_{|x' - x|_\infty \le \varepsilon} |f^l(x') - f^l(x_t)|^2

    Parameters
    ----------
    step : TrainingStep
        Its x is where the walk starts. The members must be frozen.
    member : nn.Module
    layer : str
    x_target : Tensor of the shape of x
    eps : float
        Radius of the ball around x, in the units of X.
    walk : Steps

    Returns
    -------
    x_distilled : Tensor of the shape of x
    """
    with torch.no_grad():
        target = features(member, layer, x_target)
    descent = FeatureDistance(member, layer, target, descend=True)
    return _walk(step, descent, None, eps, walk)


def repel(
    step: TrainingStep, member: nn.Module, layer: str, *, start: Tensor, eps: float, walk: Steps
) -> Tensor:
    r"""Samples of the batch, moved away from a member's features of themselves.

    .. math:: \arg\max_{|x' - x|_\infty \le \varepsilon} |f^l(x') - f^l(x)|^2

    Parameters
    ----------
    step : TrainingStep
        The members must be frozen.
    member : nn.Module
    layer : str
    start : Tensor of the shape of x
        Where the walk starts: at x itself the gradient is zero.
    eps : float
        Radius of the ball around x, in the units of X.
    walk : Steps

    Returns
    -------
    x_repelled : Tensor of the shape of x
    """
    with torch.no_grad():
        own = features(member, layer, step.x)
    return _walk(step, FeatureDistance(member, layer, own, descend=False), start, eps, walk)


def _walk(
    step: TrainingStep, distance: FeatureDistance, start: Tensor | None, eps: float, walk: Steps
) -> Tensor:
    """All steps within the ball around the batch, by default from its centre."""
    ball = LinfBall(step.x, eps, step.clip_values)
    start = ball.project(step.x) if start is None else start
    return ascend(distance, ball, start, step.y, walk, stop_when_broken=False)[0]
