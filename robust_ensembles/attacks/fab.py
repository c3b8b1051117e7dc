"""FAB: fast adaptive boundary attack (Croce and Hein 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _registry
from .._parameters import at_least, between, count, param
from .apgd import SIDE_BY_SIDE
from .engine.ascent import (
    Evaluation,
    Objective,
    TowardsClass,
    check_finite,
    likeliest_wrong_classes,
)
from .engine.balls import Ball, per_sample
from .engine.margins import difference
from .engine.noise import RESTART_SHIFT
from .minimum_norm import MinimumNormAttack, Nearest, project_onto_hyperplane

_TINY = 1e-8


@_registry.attack(
    "fab",
    kind="minimum norm",
    paper="Croce and Hein 2020",
    summary="nearest adversarial example by linearised boundaries",
    count="n_steps",
    cost=("n_steps", "n_restarts", "n_target_classes"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class FAB(MinimumNormAttack):
    """Searches for the *nearest* adversarial example by steps onto linearised boundaries.

    Targets classes internally, as in AutoAttack: one boundary after the other, to each of the
    likeliest wrong classes; any wrong decision counts. See `MinimumNormAttack` for the effect of
    ``stop_when_broken=False``.

    Parameters
    ----------
    n_steps : int, default=100
        Steps onto a boundary, for each class.
    n_restarts : int, default=1
        Number of walks; the first starts from x, others from random points.
    n_target_classes : int, default=9
        How many classes to try; at most all wrong ones.
    eta : float, default=1.05
        Overshoot beyond the boundary.
    alpha_max : float, default=0.1
        Largest share of the step that starts from x itself.
    beta : float, default=0.9
        Fraction of the perturbation that is kept after an adversarial iterate.

    References
    ----------
    .. [1] F. Croce and M. Hein, "Minimally Distorted Adversarial Examples with a Fast Adaptive
       Boundary Attack", ICML 2020.
    """

    n_steps: int = param(100, count())
    n_restarts: int = param(1, count())
    n_target_classes: int = param(9, count())
    eta: float = param(1.05, at_least(0))
    alpha_max: float = param(0.1, between(0, 1))
    beta: float = param(0.9, between(0, 1))

    def _search(self, objective: Objective, nearest: Nearest, y: Tensor, seed: int) -> None:
        classes = likeliest_wrong_classes(objective, nearest.x, y, self.n_target_classes)
        towards = TowardsClass(objective, difference)
        for restart in range(self.n_restarts):
            done = 0
            while done < classes.shape[1]:
                active = nearest.wanting()
                if not len(active):
                    return
                # the first walk finds most; random starts depend on the examples found before
                width = 1 if restart or not done else max(SIDE_BY_SIDE // len(active), 1)
                targets = classes[active, done : done + width]
                active = active.repeat_interleave(targets.shape[1])
                labels = torch.stack([y[active], targets.flatten()], dim=1)
                x = self._start(nearest, active, seed, restart)
                self._walk(towards, active, x, labels, nearest)
                done += width

    def _start(self, nearest: Nearest, active: Tensor, seed: int, restart: int) -> Tensor:
        """X itself first, then random points half as far as the nearest example or eps."""
        x = nearest.ball.x[active]
        if restart == 0 or not self.eps:
            return x
        random = nearest.ball[active].random_point(seed + (restart << RESTART_SHIFT))
        reach = (nearest.distance[active] / self.eps).clamp(max=1.0) / 2
        return x + per_sample(reach, x) * (random - x)

    def _walk(
        self, towards: TowardsClass, active: Tensor, x: Tensor, y: Tensor, nearest: Nearest
    ) -> None:
        """Step onto the boundary repeatedly, and offer the adversarial points beyond it."""
        for _ in range(self.n_steps):
            if not len(active):
                return
            origin = nearest.ball.x[active]
            evaluation = towards.evaluate(x, y)
            check_finite(evaluation.gradient)
            x = self._step(nearest.ball, x, origin, evaluation)
            broken = towards.broken(x, y)
            nearest.offer(active, x, broken)
            x = torch.where(per_sample(broken, x), origin + self.beta * (x - origin), x)
            keep = nearest.distance[active] > nearest.enough
            active, x, y = active[keep], x[keep], y[keep]

    def _step(self, ball: Ball, x: Tensor, origin: Tensor, at: Evaluation) -> Tensor:
        """Mean of the steps onto the boundary from x and from the origin, nearly all from x."""
        w = at.gradient.flatten(1)
        gap_at_origin = -at.loss - (w * (origin - x).flatten(1)).sum(dim=1)
        ends, lengths = [], []
        for start, gap in ((x, -at.loss), (origin, gap_at_origin)):
            delta = project_onto_hyperplane(
                start.flatten(1), w, gap, norm=self.norm, box=ball.clip_values
            ).view_as(start)
            ends.append(start + self.eta * delta)
            lengths.append(ball.length(delta).clamp_min(_TINY))
        alpha = (lengths[0] / (lengths[0] + lengths[1])).clamp(max=self.alpha_max)
        return ball.clip(ends[0] + per_sample(alpha, x) * (ends[1] - ends[0]))
