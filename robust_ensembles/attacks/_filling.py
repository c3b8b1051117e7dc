"""Vessels of limited room that fill at their own speeds: what projections come down to."""

from __future__ import annotations

import torch
from torch import Tensor


def fill(speed: Tensor, room: Tensor, amount: Tensor) -> Tensor:
    r"""When vessels that fill at constant speeds hold a given amount together.

    .. math:: \min \lambda \ge 0 \quad\text{with}\quad \sum_i \min(\lambda s_i, r_i) = a

    The sum is concave in lambda, so Newton's method comes up from below and is exact after finitely
    many steps, in practice a handful: cheaper than sorting the times at which vessels are full.

    Parameters
    ----------
    speed, room : Tensor of shape (n_samples, n_features)
        At least 0; room may be infinite.
    amount : Tensor of shape (n_samples,)
        At least 0.

    Returns
    -------
    lam : Tensor of shape (n_samples,)
        Infinity where all the room is less than the amount.
    """
    lam = torch.zeros_like(amount)
    n_full = torch.full_like(amount, -1)
    while True:
        full = lam.unsqueeze(1) * speed >= room
        n_full_before, n_full = n_full, full.sum(dim=1).to(amount)
        # vessels never become empty again; those of no speed count for nothing, full or not
        if torch.equal(n_full, n_full_before):
            return lam
        missing = amount - torch.where(full, room, 0.0).sum(dim=1)
        rate = torch.where(full, 0.0, speed).sum(dim=1)
        reached = torch.where(rate > 0, missing / rate, torch.inf)
        lam = torch.where(missing > 0, reached.maximum(lam), lam)
