"""Base class of attacks that search for the nearest adversarial example.

A subclass searches and offers the examples it finds; `Nearest` keeps the nearest one for each
sample, and at the end bisection moves it back to the boundary. `project_onto_hyperplane` is the
step of attacks that linearise the boundary (FAB, DeepFool).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import BoundedAttack
from .engine.ascent import Objective
from .engine.balls import Ball, Box, per_sample, water_filling

_BISECTIONS = 20


@dataclass(kw_only=True, repr=False, eq=False)
class MinimumNormAttack(BoundedAttack):
    """Base class of attacks that minimise the perturbation instead of maximising the loss.

    Untargeted. Within eps by default: the search for a sample ends once an example is in its ball.
    With ``stop_when_broken=False``, the result is the nearest adversarial example found, *whatever
    eps is*, moved back to the boundary by bisection; samples without one are left unchanged.
    `loss` has no effect.
    """

    @abstractmethod
    def _search(self, objective: Objective, nearest: Nearest, y: Tensor, seed: int) -> None:
        """Offer adversarial examples to `nearest` for the samples that still need one."""

    def _perturb(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        start = ball.clip(ball.x)
        nearest = Nearest(ball, enough=self.eps if stop_when_broken else 0.0)
        nearest.offer(torch.arange(len(y), device=y.device), start, objective.broken(start, y))
        self._search(objective, nearest, y, seed)
        if stop_when_broken:
            return ball.project(nearest.x)
        _bisect(objective, y, nearest)
        return nearest.x

    def _accelerates(self, stop_when_broken: bool) -> bool:
        # the nearest examples are on the boundary of the module that they are made with
        return stop_when_broken

    def _validate(self) -> None:
        super()._validate()
        name = type(self).__name__
        if self.targeted:
            raise ValueError(
                f"{name} is untargeted: set targeted=False, or take PGD(targeted=True)"
            )


class Nearest:
    """The nearest adversarial examples found so far.

    Parameters
    ----------
    ball : Ball
    enough : float
        Distance below which a sample needs no nearer example.
    """

    def __init__(self, ball: Ball, *, enough: float) -> None:
        self.ball, self.enough = ball, enough
        self.x = ball.x.clone()
        self.distance = ball.x.new_full((len(ball.x),), torch.inf)

    def wanting(self) -> Tensor:
        """Indices of the samples that need a nearer example."""
        return (self.distance > self.enough).nonzero().squeeze(1)

    def offer(self, index: Tensor, x: Tensor, broken: Tensor) -> None:
        """Keep those points that are adversarial and nearer than before.

        Parameters
        ----------
        index : int64 Tensor of shape (n_points,)
            Samples that the points belong to; a sample may have several.
        x : Tensor of shape (n_points, ...)
        broken : bool Tensor of shape (n_points,)
        """
        distance = self.ball.length(x - self.ball.x[index])
        distance = torch.where(broken, distance, torch.inf)
        shortest = self.distance.scatter_reduce(0, index, distance, "amin")
        nearer = (distance < self.distance[index]) & (distance == shortest[index])
        self.x[index[nearer]], self.distance[index[nearer]] = x[nearer], distance[nearer]


def _bisect(objective: Objective, y: Tensor, nearest: Nearest) -> None:
    """Bisect between x and the nearest example: searches overshoot the boundary."""
    found = nearest.distance.isfinite().nonzero().squeeze(1)
    inside, outside = nearest.ball.x[found], nearest.x[found]
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        broken = objective.broken(middle, y[found])
        nearest.offer(found, middle, broken)
        wide = per_sample(broken, middle)
        inside, outside = torch.where(wide, inside, middle), torch.where(wide, middle, outside)


def project_onto_hyperplane(
    x: Tensor, w: Tensor, gap: Tensor, *, norm: str, box: Box | None
) -> Tensor:
    r"""Shortest step inside the box that changes a linear function by a given amount.

    .. math:: \min_\delta |\delta|_p \quad\text{subject to}\quad w^T \delta = g,\;
              x + \delta \in \text{box}

    The step is :math:`\delta_i = \mathrm{sign}(g w_i) \min(\lambda s_i, r_i)` with the room
    :math:`r_i` that the box leaves and s = 1 (maximum norm) or |w| (Euclidean norm).

    Parameters
    ----------
    x, w : Tensor of shape (n_samples, n_features)
        Points in the box, gradients of the linear functions.
    gap : Tensor of shape (n_samples,)
        Required change of the functions.
    norm : {"linf", "l2"}
    box : tuple of two floats or None

    Returns
    -------
    delta : Tensor of shape (n_samples, n_features)
        Where the box does not reach the hyperplane, the step to its end.
    """
    direction = w * gap.sign().unsqueeze(1)
    weight = direction.abs()
    if box is None:
        room = torch.full_like(x, torch.inf)
    else:
        room = torch.where(direction > 0, box[1] - x, x - box[0]).clamp_min(0)
    speed = torch.ones_like(weight) if norm == "linf" else weight
    # coordinates of weight 0 do not move
    speed = torch.where(weight > 0, speed, 0.0)
    lam = water_filling(weight * speed, torch.where(weight > 0, weight * room, 0.0), gap.abs())
    # 0 times infinity: a coordinate of weight 0 where the box does not reach the hyperplane
    length = torch.minimum((lam.unsqueeze(1) * speed).nan_to_num(nan=0.0, posinf=torch.inf), room)
    return direction.sign() * torch.where(length.isfinite(), length, 0.0)
