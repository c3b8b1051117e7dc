"""DeepFool: repeated steps to the nearest linearised boundary (Moosavi-Dezfooli et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _registry
from .._parameters import at_least, count, param
from .engine.ascent import Objective, TowardsClass, check_finite, likeliest_wrong_classes
from .engine.balls import Ball, per_sample
from .engine.margins import difference
from .minimum_norm import MinimumNormAttack, Nearest, project_onto_hyperplane


@_registry.attack(
    "deepfool",
    kind="minimum norm",
    paper="Moosavi-Dezfooli et al. 2016",
    summary="quick steps across the nearest boundary",
    count="n_steps",
    cost=("n_steps", "n_target_classes"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class DeepFool(MinimumNormAttack):
    """Steps onto the nearest of the linearised boundaries until the decision changes.

    Quick and rough: `FAB` finds nearer examples. See `MinimumNormAttack` for the effect of
    ``stop_when_broken=False``.

    Parameters
    ----------
    n_steps : int, default=50
        Steps onto a boundary.
    n_target_classes : int, default=9
        How many of the likeliest wrong classes to consider; at most all.
    overshoot : float, default=0.02
        Step beyond the boundary, as a fraction of the distance from x.

    References
    ----------
    .. [1] S.-M. Moosavi-Dezfooli, A. Fawzi and P. Frossard, "DeepFool: A Simple and Accurate
       Method to Fool Deep Neural Networks", CVPR 2016.
    """

    n_steps: int = param(50, count())
    n_target_classes: int = param(9, count())
    overshoot: float = param(0.02, at_least(0))

    def _search(self, objective: Objective, nearest: Nearest, y: Tensor, seed: int) -> None:
        active, ball = nearest.wanting(), nearest.ball
        classes = likeliest_wrong_classes(objective, nearest.x, y, self.n_target_classes)
        towards = TowardsClass(objective, difference)
        origin = x = ball.x[active]
        for _ in range(self.n_steps):
            if not len(active):
                return
            x = ball.clip(x + self._nearest_boundary(towards, ball, x, y[active], classes[active]))
            beyond = ball.clip(origin + (1 + self.overshoot) * (x - origin))
            broken = objective.broken(beyond, y[active])
            nearest.offer(active, beyond, broken)
            active, x, origin = active[~broken], x[~broken], origin[~broken]

    def _nearest_boundary(
        self, towards: TowardsClass, ball: Ball, x: Tensor, y: Tensor, classes: Tensor
    ) -> Tensor:
        """The shortest of the steps onto the boundaries to several classes."""
        best = torch.zeros_like(x)
        shortest = x.new_full((len(x),), torch.inf)
        for target in classes.unbind(dim=1):
            at = towards.evaluate(x, torch.stack([y, target], dim=1))
            check_finite(at.gradient)
            w = at.gradient.flatten(1)
            step = project_onto_hyperplane(
                x.flatten(1), w, -at.loss, norm=self.norm, box=ball.clip_values
            )
            delta = step.view_as(x)
            # the boundary may be outside the box
            reached = (w * step).sum(dim=1) / -at.loss
            distance = ball.length(delta) / reached.clamp_min(torch.finfo(x.dtype).tiny)
            nearer = distance < shortest
            best = torch.where(per_sample(nearer, x), delta, best)
            shortest = torch.where(nearer, distance, shortest)
        return best
