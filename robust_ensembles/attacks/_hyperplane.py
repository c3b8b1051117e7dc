"""The shortest way from points to hyperplanes inside a box."""

from __future__ import annotations

import torch
from torch import Tensor

from ._filling import fill
from .engine.balls import Box


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
    lam = fill(weight * speed, torch.where(weight > 0, weight * room, 0.0), gap.abs())
    # 0 times infinity is where a coordinate does not matter and the box ends too early
    length = torch.minimum((lam.unsqueeze(1) * speed).nan_to_num(nan=0.0, posinf=torch.inf), room)
    return direction.sign() * torch.where(length.isfinite(), length, 0.0)
