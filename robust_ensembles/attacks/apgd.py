"""APGD: projected gradient ascent that sets its own step size (Croce and Hein 2020).

`MomentumAttack` is the ascent with momentum that keeps the best point; MORA uses it with other
rules. APGD adds the halving of steps and, in the L1 norm (Croce and Hein 2021), the number of
coordinates that a step moves. Walks of few samples run side by side in one batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _registry
from .._parameters import between, choice, count, param
from .base import BoundedAttack
from .engine.ascent import (
    Evaluation,
    Objective,
    TowardsClass,
    check_finite,
    likeliest_wrong_classes,
)
from .engine.balls import Ball, L1Ball, L2Ball, LinfBall, per_sample
from .engine.margins import targeted_dlr
from .engine.noise import RESTART_SHIFT

# from the papers: the first step in units of eps, and the weight of the gradient step against
# momentum
FIRST_STEP: dict[type[Ball], float] = {LinfBall: 2.0, L2Ball: 2.0, L1Ball: 1.0}
_MOMENTUM = 0.75
# walks of up to this many samples in all run side by side: small batches are slow
SIDE_BY_SIDE = 64
# from the paper: the step size is checked after 22% of the steps, then at intervals that shrink by
# 3% each time, down to 6%
_FIRST_INTERVAL, _SHRINKAGE, _LEAST_INTERVAL = 0.22, 0.03, 0.06
# from the paper: radii, and parts of the steps spent on them, before the ball itself; step size
# and sparsity are adapted after each 4% of the steps
WIDER_BALLS = ((3.0, 0.3), (2.0, 0.3))
_INTERVAL = 0.04
# a first step moves a fifth of the coordinates, later ones two thirds of those that differ
_FIRST_PART, _DENSER = 0.2, 1.5
# if fewer than this part of the former coordinates differ, continue with full steps; else shorten
# the steps, tenfold at most
_STILL_SPARSER, _SHORTER, _SHORTEST = 0.95, 1.5, 10.0


@dataclass(kw_only=True, repr=False, eq=False)
class MomentumAttack(BoundedAttack):
    """Base class of attacks that ascend with momentum and keep the best point.

    Parameters
    ----------
    n_steps : int, default=100
        Steps of a walk, which takes one more gradient at its start.
    n_gradients : int, default=1
        Evaluations averaged in each step, for modules that draw random numbers (EOT).
    """

    n_steps: int = param(100, count())
    n_gradients: int = param(1, count())

    @abstractmethod
    def _walks(self, objective: Objective, x: Tensor, y: Tensor) -> Iterator[Walk]:
        """Yield walks; each is run on the samples not broken by those before it."""

    def _next_point(self, ball: Ball, state: WalkState, step: int) -> Tensor:
        """A step along the gradient, mixed with the previous step."""
        momentum = _MOMENTUM if step else 1.0
        size = per_sample(state.step_size, state.x)
        ahead = ball.project(state.x + size * ball.steepest(state.gradient))
        inertia = state.x - state.x_before
        return ball.project(state.x + momentum * (ahead - state.x) + (1 - momentum) * inertia)

    @abstractmethod
    def _adapt(self, ball: Ball, state: WalkState, step: int, n_steps: int) -> WalkState:
        """The state from which the next step starts, after `step` of `n_steps` steps."""

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
        """Mean of `n_gradients` evaluations; the last one decides which samples are broken."""
        evaluations = [objective.evaluate(x, y) for _ in range(self.n_gradients)]
        gradient = torch.stack([e.gradient for e in evaluations]).mean(dim=0)
        check_finite(gradient)
        loss = torch.stack([e.loss for e in evaluations]).mean(dim=0)
        return Evaluation(loss, gradient, evaluations[-1].broken)


@_registry.attack(
    "apgd",
    kind="gradients",
    paper="Croce and Hein 2020, 2021",
    summary="PGD that adapts its step size; L1 too",
    count="n_steps",
    cost=("n_steps", "n_restarts", "n_gradients"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class APGD(MomentumAttack):
    """Auto-PGD: halves the step size where progress stalls, and returns to the best point.

    In the L1 norm, steps change few coordinates, and the first 60% of them explore balls of three
    and two times the radius.

    Parameters
    ----------
    norm : {"linf", "l2", "l1"}, default="linf"
        Norm of the perturbation.
    n_restarts : int, default=1
        Walks from different random points, for the samples not yet broken.
    rho : float, default=0.75
        Part of an interval's steps that must increase the loss for the step size to stay.

    References
    ----------
    .. [1] F. Croce and M. Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble
       of Diverse Parameter-free Attacks", ICML 2020.
    .. [2] F. Croce and M. Hein, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image
       Classifiers", ICML 2021.
    """

    norm: str = param("linf", choice("linf", "l2", "l1"))
    n_restarts: int = param(1, count())
    rho: float = param(0.75, between(0, 1, closed="right"))

    def _climbs_anything(self) -> bool:
        return True

    def _walks(self, objective: Objective, x: Tensor, y: Tensor) -> Iterator[Walk]:
        for restart in range(self.n_restarts):
            yield Walk(objective, y, restart)

    def _walk(
        self,
        objective: Objective,
        ball: Ball,
        start: Tensor,
        y: Tensor,
        n_steps: int,
        stop_when_broken: bool,
    ) -> End:
        if self.norm == "l1":
            for radius, part in WIDER_BALLS:
                wide = L1Ball(ball.x, radius * ball.eps, ball.clip_values)
                steps = int(part * self.n_steps)
                end = super()._walk(objective, wide, wide.project(start), y, steps, False)
                start, n_steps = end.x, n_steps - steps
        return super()._walk(objective, ball, ball.project(start), y, n_steps, stop_when_broken)

    def _next_point(self, ball: Ball, state: WalkState, step: int) -> Tensor:
        if isinstance(ball, L1Ball):
            return sparse_step(ball, state)
        return super()._next_point(ball, state, step)

    def _adapt(self, ball: Ball, state: WalkState, step: int, n_steps: int) -> WalkState:
        if isinstance(ball, L1Ball):
            return adapt_sparsity(ball, state, step, n_steps)
        length = _checkpoints(n_steps).get(step)
        return state if length is None else _halved_where_it_pays(state, self.rho * length)


@_registry.attack(
    "apgdt",
    kind="gradients",
    paper="Croce and Hein 2020, 2021",
    summary="APGD on the DLR loss towards each of the most likely wrong classes",
    count="n_steps",
    cost=("n_steps", "n_restarts", "n_gradients", "n_target_classes"),
)
@dataclass(kw_only=True, repr=False, eq=False)
class TargetedAPGD(APGD):
    """APGD-T: one walk towards each of the likeliest wrong classes, on the targeted DLR loss.

    An untargeted attack: any wrong decision counts.

    Parameters
    ----------
    n_target_classes : int, default=9
        How many classes to try; at most all wrong ones.

    References
    ----------
    .. [1] F. Croce and M. Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble
       of Diverse Parameter-free Attacks", ICML 2020.
    """

    n_target_classes: int = param(9, count())
    loss: str = "dlr"

    def _climbs_anything(self) -> bool:
        return False  # but a loss with a class to move towards

    def _walks(self, objective: Objective, x: Tensor, y: Tensor) -> Iterator[Walk]:
        towards = TowardsClass(objective, targeted_dlr)
        classes = likeliest_wrong_classes(objective, x, y, self.n_target_classes)
        for rank, target in enumerate(classes.unbind(dim=1)):
            for restart in range(self.n_restarts):
                number = rank * self.n_restarts + restart
                yield Walk(towards, torch.stack([y, target], dim=1), number)

    def _validate(self) -> None:
        super()._validate()
        if self.targeted:
            raise ValueError(
                "TargetedAPGD is untargeted: it tries the classes itself. Set targeted=False, or "
                "take APGD(targeted=True)"
            )


def _halved_where_it_pays(state: WalkState, least_rises: float) -> WalkState:
    """Halve the steps of walks that oscillate or stagnate, and return them to their best point.

    Parameters
    ----------
    state : WalkState
    least_rises : float
        Steps of the interval that must have increased the loss.
    """
    oscillates = state.n_rises <= least_rises
    stands_still = ~state.was_halved & (state.loss_at_check >= state.loss_best)
    halve = oscillates | stands_still
    wide = per_sample(halve, state.x)
    return replace(
        state,
        x=torch.where(wide, state.x_best, state.x),
        gradient=torch.where(wide, state.gradient_best, state.gradient),
        loss=torch.where(halve, state.loss_best, state.loss),
        step_size=torch.where(halve, state.step_size / 2, state.step_size),
        was_halved=halve,
        loss_at_check=state.loss_best,
        n_rises=torch.zeros_like(state.n_rises),
    )


@lru_cache
def _checkpoints(n_steps: int) -> dict[int, int]:
    """Numbers of steps after which step sizes are checked, and the lengths of the intervals."""
    length = max(int(_FIRST_INTERVAL * n_steps), 1)
    shrinkage = max(int(_SHRINKAGE * n_steps), 1)
    least = max(int(_LEAST_INTERVAL * n_steps), 1)
    checkpoints, step = {}, length
    while step <= n_steps:
        checkpoints[step] = length
        length = max(length - shrinkage, least)
        step += length
    return checkpoints


class Walk(NamedTuple):
    """The objective of one walk, its labels, and the number of its random start."""

    climbed: Objective
    y: Tensor
    number: int


@dataclass
class WalkState:
    """State of the walks of the active samples; all fields have one row per sample.

    APGD's rules for the step size use `was_halved`, `n_rises` and `n_moved` (how many features
    were changed).
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
    """Number of features of each sample that differ from the ball's centre, (n_samples,)."""
    return (x != ball.x).flatten(1).sum(dim=1)


@dataclass
class End:
    """Final points of walks."""

    x: Tensor
    loss: Tensor
    broken: Tensor

    @classmethod
    def of(cls, state: WalkState) -> End:
        """The final points if the walks ended now."""
        return cls(state.x_best.clone(), state.loss_best.clone(), state.broken.clone())

    def split(self, n_samples: int) -> Iterator[End]:
        """Separate the walks that ran side by side, each of `n_samples` samples."""
        parts = (part.split(n_samples) for part in (self.x, self.loss, self.broken))
        return map(End, *parts)

    def put(self, active: Tensor, state: WalkState) -> None:
        """Store the points of the active samples."""
        wide = per_sample(state.broken, state.x)
        self.x[active] = torch.where(wide, state.x, state.x_best)
        self.loss[active], self.broken[active] = state.loss_best, state.broken


def sparse_step(ball: L1Ball, state: WalkState) -> Tensor:
    """A step along the largest coordinates of the gradient, projected.

    Parameters
    ----------
    ball : L1Ball
    state : WalkState
        `n_moved` is how many coordinates differed at the last check: all after a random start.

    Returns
    -------
    x : Tensor of shape (n_samples, ...)
    """
    n_features = ball.x.shape[1:].numel()
    at_start = state.n_moved >= n_features
    count = torch.where(at_start, _FIRST_PART * n_features, state.n_moved / _DENSER)
    direction = ball.sparse(state.gradient, count.clamp_min(1).ceil())
    return ball.project(state.x + per_sample(state.step_size, state.x) * direction)


def adapt_sparsity(ball: L1Ball, state: WalkState, step: int, n_steps: int) -> WalkState:
    """After each interval, count the changed coordinates of the best points and set step sizes.

    Parameters
    ----------
    ball : L1Ball
    state : WalkState
    step, n_steps : int
        Steps taken, and steps in all.

    Returns
    -------
    state : WalkState
    """
    if step % max(int(_INTERVAL * n_steps), 1):
        return state
    full = FIRST_STEP[L1Ball] * ball.eps
    n_moved = count_moved(ball, state.x_best).to(state.n_moved)
    sparser = n_moved < _STILL_SPARSER * state.n_moved
    shorter = (state.step_size / _SHORTER).clamp(full / _SHORTEST, full)
    wide = per_sample(sparser, state.x)
    return replace(
        state,
        x=torch.where(wide, state.x_best, state.x),
        gradient=torch.where(wide, state.gradient_best, state.gradient),
        step_size=torch.where(sparser, torch.full_like(shorter, full), shorter),
        n_moved=n_moved,
    )
