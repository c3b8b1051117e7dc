"""Walks with momentum that APGD and MORA share: who goes where, and what each has found."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ._base import BoundedAttack
from ._objective import Evaluation, Objective
from .engine.ascent import check_finite
from .engine.balls import Ball, L1Ball, L2Ball, LinfBall, per_sample
from .engine.noise import RESTART_SHIFT

# of the papers: the first step in units of eps, and the part of a step that is not inertia
FIRST_STEP: dict[type[Ball], float] = {LinfBall: 2.0, L2Ball: 2.0, L1Ball: 1.0}
_MOMENTUM = 0.75

# walks of so many samples in all, or fewer, go side by side: small batches are slow
SIDE_BY_SIDE = 64


class Walk(NamedTuple):
    """What one walk climbs, its labels, and the number of its random start."""

    climbed: Objective
    y: Tensor
    number: int


@dataclass(kw_only=True, repr=False, eq=False)
class MomentumAttack(BoundedAttack):
    """Base of the attacks that walk with momentum and keep the best point.

    Parameters
    ----------
    n_steps : int, default=100
        Gradients of a walk after the first.
    n_gradients : int, default=1
        Evaluations averaged in each step, for modules that draw random numbers (EOT).
    """

    _counts: ClassVar[tuple[str, ...]] = (*BoundedAttack._counts, "n_steps", "n_gradients")

    n_steps: int = 100
    n_gradients: int = 1

    @abstractmethod
    def _walks(self, objective: Objective, x: Tensor, y: Tensor) -> Iterator[Walk]:
        """One walk after the other, for the samples that those before it have left."""

    def _next_point(self, ball: Ball, state: WalkState, step: int) -> Tensor:
        """A step along the gradient, mixed with the step before."""
        momentum = _MOMENTUM if step else 1.0
        size = per_sample(state.step_size, state.x)
        ahead = ball.project(state.x + size * ball.steepest(state.gradient))
        inertia = state.x - state.x_before
        return ball.project(state.x + momentum * (ahead - state.x) + (1 - momentum) * inertia)

    @abstractmethod
    def _adapt(self, ball: Ball, state: WalkState, step: int, n_steps: int) -> WalkState:
        """The state that the next step starts from, after some of all the steps."""

    def _perturb(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        result = ball.project(ball.x).clone()
        active = torch.arange(len(y), device=y.device)
        if stop_when_broken:
            active = active[~objective.broken(result, y)]
        best = result.new_full((len(y),), -torch.inf)
        walks = list(self._walks(objective, ball.x, y)) if len(active) else []
        width = 1  # the first walk breaks most of the samples that can be broken
        while walks and len(active):
            group = [walk for walk in walks[:width] if walk.climbed is walks[0].climbed]
            del walks[: len(group)]
            ends = self._side_by_side(group, ball[active], active, seed, stop_when_broken)
            left = torch.ones_like(active, dtype=torch.bool)
            for end in ends:
                better = left & (end.broken | (end.loss > best[active]))
                result[active[better]] = end.x[better]
                best[active[better]] = end.loss[better].to(best)
                left &= ~end.broken
            active = active[left]
            width = max(SIDE_BY_SIDE // max(len(active), 1), 1)
        return result

    def _side_by_side(
        self, group: Sequence[Walk], ball: Ball, active: Tensor, seed: int, stop_when_broken: bool
    ) -> Iterator[End]:
        """Walks of the same samples on the same objective, in one batch."""
        starts = [ball.random_point(seed + (walk.number << RESTART_SHIFT)) for walk in group]
        rows = torch.arange(len(active), device=active.device).repeat(len(group))
        ends = self._walk(
            group[0].climbed,
            ball[rows],
            torch.cat(starts),
            torch.cat([walk.y[active] for walk in group]),
            self.n_steps,
            stop_when_broken,
        )
        return ends.split(len(active))

    def _walk(
        self,
        objective: Objective,
        ball: Ball,
        start: Tensor,
        y: Tensor,
        n_steps: int,
        stop_when_broken: bool,
    ) -> End:
        """One walk of all samples."""
        evaluation = self._evaluate(objective, start, y)
        state = WalkState.at(ball, start, evaluation)
        end = End.of(state)
        active = torch.arange(len(start), device=start.device)
        for step in range(n_steps):
            if stop_when_broken and state.broken.any():
                end.put(active, state)
                keep = ~state.broken
                active, state, y, ball = active[keep], state[keep], y[keep], ball[keep]
                if not len(active):
                    return end
            x = self._next_point(ball, state, step)
            state = state.moved(x, self._evaluate(objective, x, y))
            state = self._adapt(ball, state, step + 1, n_steps)
        end.put(active, state)
        return end

    def _evaluate(self, objective: Objective, x: Tensor, y: Tensor) -> Evaluation:
        """Mean of `n_gradients` evaluations; broken if the last of them says so."""
        evaluations = [objective.evaluate(x, y) for _ in range(self.n_gradients)]
        gradient = torch.stack([e.gradient for e in evaluations]).mean(dim=0)
        check_finite(gradient)
        loss = torch.stack([e.loss for e in evaluations]).mean(dim=0)
        return Evaluation(loss, gradient, evaluations[-1].broken)


@dataclass
class WalkState:
    """Where the walks of the active samples stand; all fields have one row per sample.

    `was_halved`, `n_rises` and `n_moved` (how many features were changed) are what APGD's rules
    for the step size look at.
    """

    x: Tensor
    x_before: Tensor
    loss: Tensor
    gradient: Tensor
    broken: Tensor
    step_size: Tensor
    x_best: Tensor
    loss_best: Tensor
    gradient_best: Tensor
    loss_at_check: Tensor
    was_halved: Tensor
    n_rises: Tensor
    n_moved: Tensor

    @classmethod
    def at(cls, ball: Ball, x: Tensor, evaluation: Evaluation) -> WalkState:
        """The state at the start of the walks."""
        loss, gradient, broken = evaluation
        return cls(
            x=x,
            x_before=x,
            loss=loss,
            gradient=gradient,
            broken=broken,
            step_size=torch.full_like(loss, FIRST_STEP[type(ball)] * ball.eps),
            x_best=x,
            loss_best=loss,
            gradient_best=gradient,
            loss_at_check=loss,
            was_halved=torch.ones_like(broken),
            n_rises=torch.zeros_like(loss),
            n_moved=count_moved(ball, x).to(loss),
        )

    def __getitem__(self, keep: Tensor) -> WalkState:
        return WalkState(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    def moved(self, x: Tensor, evaluation: Evaluation) -> WalkState:
        """The state after a step to x."""
        loss, gradient, broken = evaluation
        better = loss > self.loss_best
        wide = per_sample(better, x)
        return replace(
            self,
            x=x,
            x_before=self.x,
            loss=loss,
            gradient=gradient,
            broken=broken,
            x_best=torch.where(wide, x, self.x_best),
            loss_best=torch.where(better, loss, self.loss_best),
            gradient_best=torch.where(wide, gradient, self.gradient_best),
            n_rises=self.n_rises + (loss > self.loss),
        )


def count_moved(ball: Ball, x: Tensor) -> Tensor:
    """How many features of each sample differ from the ball's centre, (n_samples,)."""
    return (x != ball.x).flatten(1).sum(dim=1)


@dataclass
class End:
    """Where walks have ended."""

    x: Tensor
    loss: Tensor
    broken: Tensor

    @classmethod
    def of(cls, state: WalkState) -> End:
        """The ends, if the walks were to end now."""
        return cls(state.x_best.clone(), state.loss_best.clone(), state.broken.clone())

    def split(self, n_samples: int) -> Iterator[End]:
        """The ends of walks that went side by side, each of so many samples."""
        parts = (part.split(n_samples) for part in (self.x, self.loss, self.broken))
        return map(End, *parts)

    def put(self, active: Tensor, state: WalkState) -> None:
        """Note the points of the samples that are active."""
        wide = per_sample(state.broken, state.x)
        self.x[active] = torch.where(wide, state.x, state.x_best)
        self.loss[active], self.broken[active] = state.loss_best, state.broken
