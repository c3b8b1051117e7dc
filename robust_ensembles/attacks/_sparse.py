"""The rules of APGD in the L1 norm (Croce and Hein 2021): how many coordinates a step moves."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ._momentum import FIRST_STEP, WalkState, count_moved
from .engine.balls import L1Ball, per_sample

# of the paper: radii and parts of the steps before the ball itself; the step size and the
# sparsity are looked at after each 4% of the steps
WIDER_BALLS = ((3.0, 0.3), (2.0, 0.3))
_INTERVAL = 0.04
# a first step moves a fifth of the coordinates, later ones two thirds of those that differ
_FIRST_PART, _DENSER = 0.2, 1.5
# fewer coordinates than this part of before: go on with full steps; else shorten, tenfold at most
_STILL_SPARSER, _SHORTER, _SHORTEST = 0.95, 1.5, 10.0


def sparse_step(ball: L1Ball, state: WalkState) -> Tensor:
    """A step along the largest coordinates of the gradient, projected.

    Parameters
    ----------
    ball : L1Ball
    state : WalkState
        `n_moved` says how many coordinates differed at the last look: all after a random start.

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
    """After each interval: count the coordinates of the best points, and set the step sizes.

    Parameters
    ----------
    ball : L1Ball
    state : WalkState
    step, n_steps : int
        Steps taken, of all.

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
