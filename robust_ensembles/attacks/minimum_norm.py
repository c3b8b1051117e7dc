"""What attacks that look for the nearest adversarial example share.

A subclass searches and offers what it finds; `Nearest` keeps the nearest for each sample, and at
the end bisection moves it back to the boundary. `project_onto_hyperplane` is the step of those
that linearise the boundary (FAB, DeepFool).
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
    """Base of the attacks that make the perturbation small instead of the loss large.

    Untargeted. Within eps by default: a sample is left alone once an example lies in its ball.
    With ``stop_when_broken=False`` the result is the nearest adversarial example that was found,
    *whatever eps is*, moved back to the boundary by bisection; samples for which none was found
    stay as they are. `loss` has no effect.
    """

    @abstractmethod
    def _search(self, objective: Objective, nearest: Nearest, y: Tensor, seed: int) -> None:
        """Offer adversarial examples to `nearest` for the samples that want one."""

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
        # the nearest examples lie on the boundary of the module that they are made with
        return stop_when_broken

    def _validate(self) -> None:
        super()._validate()
        name = type(self).__name__
        if self.targeted:
            raise ValueError(
                f"{name} is untargeted: set targeted=False, or take PGD(targeted=True)"
            )


class Nearest:
    """The nearest adversarial examples so far.

    Parameters
    ----------
    ball : Ball
    enough : float
        Distance at which a sample needs no nearer example.
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
    """Halve the way between x and the nearest example again and again: searches overshoot."""
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
    r"""Shortest step that changes a linear function by a given amount without leaving the box.

    .. math:: \min_\delta |\delta|_p \quad\text{subject to}\quad w^T \delta = g,\;
              x + \delta \in \text{box}

    The step is :math:`\delta_i = \mathrm{sign}(g w_i) \min(\lambda s_i, r_i)` with the room
    :math:`r_i` that the box leaves and s = 1 (maximum norm) or |w| (Euclidean norm).

    Parameters
    ----------
    x, w : Tensor of shape (n_samples, n_features)
        Points in the box, gradients of the linear functions.
    gap : Tensor of shape (n_samples,)
        By how much the functions are to change.
    norm : {"linf", "l2"}
    box : tuple of two floats or None

    Returns
    -------
    delta : Tensor of shape (n_samples, n_features)
        All the room there is where the box does not reach the hyperplane.
    """
    direction = w * gap.sign().unsqueeze(1)
    weight = direction.abs()
    if box is None:
        room = torch.full_like(x, torch.inf)
    else:
        room = torch.where(direction > 0, box[1] - x, x - box[0]).clamp_min(0)
    speed = torch.ones_like(weight) if norm == "linf" else weight
    # coordinates that do not matter stay where they are
    speed = torch.where(weight > 0, speed, 0.0)
    lam = water_filling(weight * speed, torch.where(weight > 0, weight * room, 0.0), gap.abs())
    # 0 times infinity is where a coordinate does not matter and the box ends too early
    length = torch.minimum((lam.unsqueeze(1) * speed).nan_to_num(nan=0.0, posinf=torch.inf), room)
    return direction.sign() * torch.where(length.isfinite(), length, 0.0)
