"""Square attack: random search with patches, from outputs alone (Andriushchenko et al. 2020).

A `Proposal` makes the changes: in the maximum norm stripes at first, then squares at either end
of the ball; in the Euclidean norm lumps, whose mass moves from one square to another.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import _registry
from .._parameters import between, count, param
from .base import BoundedAttack
from .engine.ascent import Objective
from .engine.balls import Ball
from .engine.noise import sample_keys, stream, uniform

# the queries, of 10,000, after which the patches' area is halved
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_SCHEDULE_QUERIES = 10_000
_TINY = 1e-12


@_registry.attack(
    "square",
    kind="no gradients",
    paper="Andriushchenko et al. 2020",
    summary="random search that only needs outputs",
    count="n_queries",
)
@dataclass(kw_only=True, repr=False, eq=False)
class Square(BoundedAttack):
    """Random search that changes a patch of pixels at a time and keeps what raises the loss.

    Uses only the outputs of the module, so it reveals misleading gradients. In rows of features, a
    patch is a run of neighbouring features.

    Parameters
    ----------
    n_queries : int, default=5000
        Queries for each sample, besides the first two.
    p_init : float, default=0.8
        Fraction of the image that the first patches cover; it shrinks by the paper's schedule.

    References
    ----------
    .. [1] M. Andriushchenko, F. Croce, N. Flammarion and M. Hein, "Square Attack: a
       Query-Efficient Black-Box Adversarial Attack via Random Search", ECCV 2020.
    """

    n_queries: int = param(5000, count())
    p_init: float = param(0.8, between(0, 1, closed="right"))
    loss: str = "cw_margin"

    @property
    def gradient_free(self) -> bool:
        """True: nothing needs to be differentiable."""
        return True

    def _climbs_anything(self) -> bool:
        return True

    def count_queries(self, module: nn.Module, X: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Adversarial examples, and the number of queries needed to find them.

        Parameters
        ----------
        module : nn.Module
        X : Tensor of shape (n_samples, ...)
        y : Tensor of shape (n_samples,)

        Returns
        -------
        X_adv : Tensor of shape (n_samples, ...)
            As the attack itself returns them.
        n_queries : int64 Tensor of shape (n_samples,)
            1 for samples that are misclassified from the start, `n_queries` + 2 for those that
            are never broken.
        """
        counted = _Counting(**self.get_params())
        X_adv = counted(module, X, y)
        return X_adv, torch.cat(counted.counts).to(X.device)

    def _perturb(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        return self._search(objective, ball, y, seed, stop_when_broken)[0]

    def _search(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> tuple[Tensor, Tensor]:
        """Examples, and their numbers of queries."""
        proposal = PROPOSALS[self.norm](ball, self.eps)
        keys = sample_keys(ball.x, seed)
        result = ball.project(ball.x).clone()
        n_queries = torch.ones_like(y)
        active = torch.arange(len(y), device=y.device)
        if stop_when_broken:
            active = active[~objective.broken(result, y)]
        x = proposal.start(active, stream(keys[active], 0))
        loss, broken = objective.look(x, y[active])
        n_queries[active] += 1
        for query in range(self.n_queries):
            if stop_when_broken and broken.any():
                result[active[broken]] = x[broken]
                active, x, loss = active[~broken], x[~broken], loss[~broken]
            if not len(active):
                return result, n_queries
            part = self.part(query)
            proposed = proposal.change(active, x, part, stream(keys[active], query + 1))
            new_loss, broken = objective.look(proposed, y[active])
            n_queries[active] += 1
            # with some losses, a broken sample may have a smaller loss
            better = (new_loss > loss) | (broken & stop_when_broken)
            x[better], loss = proposed[better], torch.where(better, new_loss, loss)
        result[active] = x
        return result, n_queries

    def part(self, query: int) -> float:
        """Fraction of the image that a patch covers at a query, counted from 0."""
        scaled = query / self.n_queries * _SCHEDULE_QUERIES
        return self.p_init / 2 ** sum(scaled > step for step in _HALVED_AFTER)


class _Counting(Square):
    """Keeps the counts of each batch."""

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self.counts: list[Tensor] = []

    def _perturb(
        self, objective: Objective, ball: Ball, y: Tensor, seed: int, stop_when_broken: bool
    ) -> Tensor:
        found, n_queries = self._search(objective, ball, y, seed, stop_when_broken)
        self.counts.append(n_queries)
        return found

    def _accelerates(self, stop_when_broken: bool) -> bool:
        return False  # nothing is done twice then, and each query is one of the module itself


class Proposal(ABC):
    """Random changes of samples within their balls.

    Parameters
    ----------
    ball : Ball
    eps : float
    """

    def __init__(self, ball: Ball, eps: float) -> None:
        self.ball, self.eps = ball, eps
        self.shape = as_images(ball.x).shape[1:]

    @abstractmethod
    def start(self, index: Tensor, keys: Tensor) -> Tensor:
        """Starting points of some samples, from one key for each."""

    @abstractmethod
    def change(self, index: Tensor, x: Tensor, part: float, keys: Tensor) -> Tensor:
        """Points with one patch changed, which covers the fraction `part` of the image."""

    def _window(self, side: int, u: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of a patch in each sample, (n, 1, s, 1) and (n, 1, 1, s)."""
        _, height, width = self.shape
        corners, sides = [], (min(side, height), min(side, width))
        for place, (size, extent) in enumerate(zip(sides, (height, width), strict=True)):
            corner = (u[:, place] * (extent - size + 1)).long()
            corners.append(corner[:, None] + torch.arange(size, device=u.device))
        return corners[0][:, None, :, None], corners[1][:, None, None, :]

    def _side(self, part: float) -> int:
        """Side of a square (length of a run) that covers the fraction `part` of the image."""
        _, height, width = self.shape
        area = part * height * width
        return max(round(area if 1 in (height, width) else math.sqrt(area)), 1)

    def _put(self, images: Tensor, rows: Tensor, columns: Tensor, values: Tensor | float) -> None:
        sample = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
        channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
        images[sample, channel, rows, columns] = values

    def _get(self, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        sample = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
        channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
        return images[sample, channel, rows, columns]


class LinfProposal(Proposal):
    """Sets each channel of a square to one end of the ball or the other."""

    def start(self, index: Tensor, keys: Tensor) -> Tensor:
        """Vertical stripes of plus and minus eps."""
        x = self.ball.x[index]
        channels, height, width = self.shape
        signs = _signs(uniform(keys, torch.Size([channels, 1, width]), x.dtype))
        stripes = signs.expand(-1, -1, height, -1).reshape(x.shape)
        return self.ball[index].project(x + self.eps * stripes)

    def change(self, index: Tensor, x: Tensor, part: float, keys: Tensor) -> Tensor:
        """A square of plus or minus eps."""
        origin, images = as_images(self.ball.x[index]), as_images(x).clone()
        channels = self.shape[0]
        u = uniform(keys, torch.Size([2 + channels]), x.dtype)
        rows, columns = self._window(self._side(part), u)
        values = self._get(origin, rows, columns) + self.eps * _signs(u[:, 2:, None, None])
        self._put(images, rows, columns, values)
        return self.ball[index].project(images.view_as(x))


class L2Proposal(Proposal):
    """Moves the mass of one square into another, as a lump."""

    def start(self, index: Tensor, keys: Tensor) -> Tensor:
        """A grid of lumps of either sign."""
        x = self.ball.x[index]
        channels, height, width = self.shape
        side = max((min(height, width) if 1 not in (height, width) else max(height, width)) // 5, 1)
        sides = min(side, height), min(side, width)
        tiles = height // sides[0], width // sides[1]
        signs = _signs(uniform(keys, torch.Size([channels, *tiles]), x.dtype))
        grid = torch.kron(signs, _lump(*sides, like=x)[None, None])
        delta = x.new_zeros((len(x), *self.shape))
        top, left = (height - grid.shape[2]) // 2, (width - grid.shape[3]) // 2
        delta[:, :, top : top + grid.shape[2], left : left + grid.shape[3]] = grid
        return self._at(index, delta)

    def change(self, index: Tensor, x: Tensor, part: float, keys: Tensor) -> Tensor:
        """Empty one square, and fill another with the mass of both and any unused mass."""
        delta = as_images(x - self.ball.x[index]).clone()
        channels = self.shape[0]
        u = uniform(keys, torch.Size([5 + channels]), x.dtype)
        side = max(self._side(part), 3) | 1
        filled, emptied = self._window(side, u), self._window(side, u[:, 2:])
        spare = (self.eps**2 - delta.square().flatten(1).sum(dim=1)).clamp_min(0)
        there = self._get(delta, *filled)
        both = torch.zeros_like(delta, dtype=torch.bool)
        self._put(both, *filled, True)
        self._put(both, *emptied, True)
        mass = (delta.square() * both).sum(dim=(2, 3), keepdim=True)
        lump = self._oriented_lump(there, u[:, 4]) * _signs(u[:, 5:, None, None])
        lump = lump + there / (_norms(there) + _TINY)
        weight = (spare.view(-1, 1, 1, 1) / channels + mass).sqrt()
        self._put(delta, *emptied, 0.0)
        self._put(delta, *filled, lump / (_norms(lump) + _TINY) * weight)
        return self._at(index, delta)

    def _oriented_lump(self, like: Tensor, u: Tensor) -> Tensor:
        """A lump that is horizontal or vertical, at random for each sample."""
        height, width = like.shape[2:]
        lying = _lump(height, width, like=like)
        if height != width:
            return lying.expand_as(like)
        return torch.where((u < 0.5).view(-1, 1, 1, 1), lying, lying.T)

    def _at(self, index: Tensor, delta: Tensor) -> Tensor:
        """The boundary point of the ball in the direction of delta."""
        x = self.ball.x[index]
        length = delta.flatten(1).norm(dim=1).clamp_min(_TINY).view(-1, 1, 1, 1)
        return self.ball[index].project(x + (self.eps * delta / length).view_as(x))


PROPOSALS: dict[str, type[Proposal]] = {"linf": LinfProposal, "l2": L2Proposal}


def as_images(x: Tensor) -> Tensor:
    """Samples as (n, channels, height, width): rows of features are images one pixel high."""
    if x.ndim == 4:
        return x
    # written out, since -1 is ambiguous without samples
    channels = x.shape[1] if x.ndim == 3 else 1
    return x.reshape(len(x), channels, 1, x.shape[1:].numel() // channels)


def _signs(u: Tensor) -> Tensor:
    return torch.where(u < 0.5, -1.0, 1.0).to(u.dtype)


def _norms(images: Tensor) -> Tensor:
    """Norm of each channel, (n, channels, 1, 1)."""
    return images.square().sum(dim=(2, 3), keepdim=True).sqrt()


def _lump(height: int, width: int, *, like: Tensor) -> Tensor:
    """Two neighbouring bumps of opposite sign, of unit length, (height, width)."""
    if width == 1:
        lump = torch.ones(height, 1, dtype=like.dtype, device=like.device)
    else:
        left = _bump(height, width // 2, like=like)
        lump = torch.cat([left, -_bump(height, width - width // 2, like=like)], dim=1)
    return lump / lump.norm()


def _bump(height: int, width: int, *, like: Tensor) -> Tensor:
    """Nested rectangles around the middle, the inner ones higher, of unit length."""
    bump = torch.zeros(height, width, dtype=like.dtype, device=like.device)
    middle = height // 2, width // 2
    for ring in range(max(middle) + 1):
        top, left = max(middle[0] - ring, 0), max(middle[1] - ring, 0)
        bottom, right = middle[0] + ring + 1, middle[1] + ring + 1
        bump[top:bottom, left:right] += 1 / (ring + 1) ** 2
    return bump / bump.norm()
