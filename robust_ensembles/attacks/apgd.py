"""APGD: projected gradient ascent that sets its own step size (Croce and Hein 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import is_number
from ._momentum import End, MomentumAttack, Walk, WalkState
from ._objective import Objective, TowardsClass, likeliest_wrong_classes
from ._sparse import WIDER_BALLS, adapt_sparsity, sparse_step
from .engine.balls import Ball, L1Ball, per_sample
from .engine.margins import targeted_dlr

# of the paper: the step size is looked at after 22% of the steps, then at intervals shorter by 3%
# each time, down to 6%
_FIRST_INTERVAL, _SHRINKAGE, _LEAST_INTERVAL = 0.22, 0.03, 0.06


@dataclass(kw_only=True, repr=False, eq=False)
class APGD(MomentumAttack):
    """Auto-PGD: halves its steps where they do not pay, and goes back to the best point.

    See `BoundedAttack` for the other parameters. In the L1 norm steps go along few coordinates,
    and the first 60% of them explore balls of three and of two times the radius.

    Parameters
    ----------
    norm : {"linf", "l2", "l1"}, default="linf"
    n_steps : int, default=100
        Gradients after the first.
    n_restarts : int, default=1
        Walks from different random points, for the samples that are left.
    rho : float, default=0.75
        Part of an interval's steps that must increase the loss for the step size to stay.
    n_gradients : int, default=1
        Evaluations averaged in each step, for modules that draw random numbers (EOT).
    loss : {"margin", "dlr", "cw_margin", "cross_entropy", ...}, default="margin"
        ``"margin"`` decides as the original's cross-entropy does, but does not round to zero for
        over-confident ensembles; ``"dlr"`` is the difference of logits ratio.

    References
    ----------
    .. [1] F. Croce and M. Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble
       of Diverse Parameter-free Attacks", ICML 2020.
    .. [2] F. Croce and M. Hein, "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image
       Classifiers", ICML 2021.
    """

    _norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")
    _counts: ClassVar[tuple[str, ...]] = (*MomentumAttack._counts, "n_restarts")

    n_restarts: int = 1
    rho: float = 0.75

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

    def _validate(self) -> None:
        super()._validate()
        name = type(self).__name__
        if not (is_number(self.rho) and 0 < self.rho <= 1):
            raise ValueError(f"{name}: rho must be above 0 and at most 1; got {self.rho!r}")


@dataclass(kw_only=True, repr=False, eq=False)
class TargetedAPGD(APGD):
    """APGD-T: a walk towards each of the likeliest wrong classes, on the targeted DLR loss.

    An untargeted attack: any wrong decision counts.

    Parameters
    ----------
    n_target_classes : int, default=9
        How many classes are tried; at most all wrong ones.

    References
    ----------
    .. [1] F. Croce and M. Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble
       of Diverse Parameter-free Attacks", ICML 2020.
    """

    _counts: ClassVar[tuple[str, ...]] = (*APGD._counts, "n_target_classes")

    n_target_classes: int = 9
    loss: str = "dlr"

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
    """Halve the steps of walks that oscillate or stand still, and put them back to their best.

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
    """Numbers of steps after which step sizes are looked at, and the lengths of the intervals."""
    length = max(int(_FIRST_INTERVAL * n_steps), 1)
    shrinkage = max(int(_SHRINKAGE * n_steps), 1)
    least = max(int(_LEAST_INTERVAL * n_steps), 1)
    checkpoints, step = {}, length
    while step <= n_steps:
        checkpoints[step] = length
        length = max(length - shrinkage, least)
        step += length
    return checkpoints
