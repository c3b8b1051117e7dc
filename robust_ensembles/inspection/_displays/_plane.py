"""A plane through a sample: the direction to its adversarial example, and a random one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...attacks._mode import untouched
from ...attacks.engine.balls import NORMS, Ball
from ...attacks.engine.margins import member_logits
from ...losses import ensemble_log_proba


@dataclass(frozen=True)
class Plane:
    """Points ``x + a u + b v``; u and v are orthogonal and of length 1 in the attack's norm.

    Parameters
    ----------
    x, u, v : Tensor of shape (1, ...)
    ball : type of Ball
        Its norm measures lengths.
    """

    x: Tensor
    u: Tensor
    v: Tensor
    ball: type[Ball]

    def look(
        self, module: nn.Module, coordinates: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Decisions on a square grid, and distances from x.

        Parameters
        ----------
        module : nn.Module
        coordinates : ndarray of shape (n_grid,)
            Of a and of b.

        Returns
        -------
        decisions : int ndarray of shape (n_grid, n_grid)
            Class indices, with b along the rows.
        distances : ndarray of shape (n_grid, n_grid)
        """
        a = torch.as_tensor(coordinates).to(self.x).view(-1, *[1] * (self.x.ndim - 1))
        decisions, distances = [], []
        for b in coordinates.tolist():
            delta = a * self.u + b * self.v
            decisions.append(decide(module, self.x + delta))
            distances.append(self.ball.length(delta).double().cpu().numpy())
        return np.stack(decisions), np.stack(distances)


def decide(module: nn.Module, x: Tensor) -> NDArray[np.int64]:
    """Class indices that a module gives samples in eval mode, (n_samples,)."""
    with untouched(module), torch.no_grad():
        chosen = ensemble_log_proba(member_logits(module, x)).argmax(dim=1)
    indices: NDArray[np.int64] = chosen.cpu().numpy()
    return indices


def plane_through(x: Tensor, x_adv: Tensor, norm: str, random_state: int) -> tuple[Plane, float]:
    """Plane of a sample, its adversarial example and a random orthogonal direction.

    Parameters
    ----------
    x, x_adv : Tensor of shape (1, ...)
        Two different points of two features or more.
    norm : {"linf", "l2"}
    random_state : int
        Of the signs that the second direction is made of.

    Returns
    -------
    plane : Plane
    distance : float
        Of the adversarial example.
    """
    ball = NORMS[norm]
    delta = x_adv - x
    distance = float(ball.length(delta))
    signs = np.random.default_rng(random_state).choice([-1.0, 1.0], size=tuple(x.shape))
    random = torch.as_tensor(signs).to(x)
    orthogonal = random - (random * delta).sum() / delta.square().sum() * delta
    return Plane(x, delta / distance, orthogonal / float(ball.length(orthogonal)), ball), distance
