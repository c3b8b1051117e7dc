"""Feasible sets of adversarial examples: an eps-ball around x, intersected with the data's box.

A ball provides projection, the unit step of steepest ascent, and random starting points. The box
is validated here too (`check_box`, `check_radius`), and `water_filling` solves the projection onto
ball and box together.

Membership is exact: a check in float64 finds no point outside, because rounding to the tensor's
dtype always goes towards x. The ends of the box are rounded to that dtype.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ..._checks import is_number
from .noise import STREAM_SHIFT, sample_keys, uniform

Box = tuple[float, float]
# X may exceed the box by this fraction of its size: rounding of scaled images in float32
_BOX_TOLERANCE = 1e-6


class Ball(ABC):
    """Perturbations of at most eps around each sample of x, within the box.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
    eps : float
    clip_values : tuple of two floats or None
    """

    def __init__(self, x: Tensor, eps: float, clip_values: Box | None) -> None:
        self.x, self.eps, self.clip_values = x, eps, clip_values

    def __getitem__(self, index: Tensor) -> Ball:
        return type(self)(self.x[index], self.eps, self.clip_values)

    def clip(self, x: Tensor) -> Tensor:
        """Move x into the box."""
        return x if self.clip_values is None else x.clamp(*self.clip_values)

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """Move x into the ball and the box."""

    @staticmethod
    @abstractmethod
    def length(delta: Tensor) -> Tensor:
        """Norm of each sample's perturbation, (n_samples,)."""

    @abstractmethod
    def steepest(self, direction: Tensor) -> Tensor:
        """The unit step with the largest inner product with a direction."""

    @abstractmethod
    def random_point(self, seed: int) -> Tensor:
        """A random point for each sample, which depends only on the sample and the seed."""

    def _shrink_rounded(self, x_adv: Tensor) -> Tensor:
        """Pull back the points that rounding of x + delta has moved outside."""
        for _ in range(4):
            length = self.length(exact(x_adv) - exact(self.x))
            outside = length > self.eps
            if not outside.any():
                return x_adv
            ratio = torch.where(outside, 0.999 * self.eps / length, 1.0).to(x_adv.dtype)
            pulled = self.clip(self.x + (x_adv - self.x) * per_sample(ratio, x_adv))
            x_adv = torch.where(per_sample(outside, x_adv), pulled, x_adv)
        return torch.where(per_sample(outside, x_adv), self.x, x_adv)


class LinfBall(Ball):
    """Maximum norm."""

    def __init__(self, x: Tensor, eps: float, clip_values: Box | None) -> None:
        super().__init__(x, eps, clip_values)
        # in double precision, since eps itself is not exact in float32; an end that is rounded
        # away from x would leave the ball by half a unit in the last place
        lower, upper = (exact(x) - eps).to(x.dtype), (exact(x) + eps).to(x.dtype)
        too_low, too_high = exact(x) - lower > eps, upper - exact(x) > eps
        self.lower = self.clip(torch.where(too_low, torch.nextafter(lower, x), lower))
        self.upper = self.clip(torch.where(too_high, torch.nextafter(upper, x), upper))

    def __getitem__(self, index: Tensor) -> LinfBall:
        part = object.__new__(LinfBall)
        part.x, part.eps, part.clip_values = self.x[index], self.eps, self.clip_values
        part.lower, part.upper = self.lower[index], self.upper[index]
        return part

    @staticmethod
    def length(delta: Tensor) -> Tensor:
        """Largest absolute entry of each sample, (n_samples,)."""
        return _flat(delta).abs().amax(dim=1)

    def project(self, x: Tensor) -> Tensor:
        """Move x into the ball and the box."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def steepest(self, direction: Tensor) -> Tensor:
        """The sign of the direction."""
        return direction.sign()

    def random_point(self, seed: int) -> Tensor:
        """Uniform in the ball, then clipped into the box."""
        noise = uniform(sample_keys(self.x, seed), self.x.shape[1:], self.x.dtype)
        return self.project(self.x + self.eps * (2 * noise - 1))


class L2Ball(Ball):
    """Euclidean norm."""

    @staticmethod
    def length(delta: Tensor) -> Tensor:
        """Euclidean length of each sample, (n_samples,)."""
        return torch.linalg.vector_norm(_flat(delta), dim=1)

    def project(self, x: Tensor) -> Tensor:
        """The nearest point of ball and box together; uses all of eps where the box allows it."""
        delta = x - self.x
        # a margin for rounding in the norm and in the sum below
        within = self.eps * (1 - 8 * torch.finfo(x.dtype).eps)
        scale = self._scale(_flat(delta), within)
        return self._shrink_rounded(self.clip(self.x + delta * per_sample(scale, x)))

    def _scale(self, delta: Tensor, within: float) -> Tensor:
        """The factor, at most 1, for which clipped delta has length `within`, (n_samples,).

        Coordinate i stops at the room r_i that the box leaves, so the squared length of
        min(t |delta_i|, r_i) must be eps^2.
        """
        tiny = torch.finfo(delta.dtype).tiny
        length = torch.linalg.vector_norm(delta, dim=1)
        if self.clip_values is None:
            return (within / length.clamp_min(tiny)).clamp_max(1.0)
        origin = _flat(self.x)
        room = torch.where(delta > 0, self.clip_values[1] - origin, origin - self.clip_values[0])
        amount = torch.full_like(length, within**2)
        return water_filling(delta.square(), room.square(), amount).sqrt().clamp_max(1.0)

    def steepest(self, direction: Tensor) -> Tensor:
        """The direction normalised to unit length; zero stays zero."""
        tiny = torch.finfo(direction.dtype).tiny
        # divide by the largest entry first: squares of a saturated model's gradient underflow in
        # float32
        largest = _flat(direction).abs().amax(dim=1).clamp_min(tiny)
        scaled = direction / per_sample(largest, direction)
        norm = torch.linalg.vector_norm(_flat(scaled), dim=1).clamp_min(tiny)
        return scaled / per_sample(norm, direction)

    def random_point(self, seed: int) -> Tensor:
        """Uniform in the ball (Gaussian direction, radius to the power 1/d), then clipped."""
        keys = sample_keys(self.x, seed)
        shape = self.x.shape[1:]
        first = uniform(keys, shape, self.x.dtype).clamp_min(torch.finfo(self.x.dtype).tiny)
        second = uniform(sample_keys(self.x, seed + (1 << STREAM_SHIFT)), shape, self.x.dtype)
        gauss = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()  # Box-Muller
        u = uniform(
            sample_keys(self.x, seed + (2 << STREAM_SHIFT)), torch.Size([1]), self.x.dtype
        ).squeeze(1)
        radius = self.eps * u.pow(1 / math.prod(shape))
        return self.project(self.x + self.steepest(gauss) * per_sample(radius, self.x))


class L1Ball(Ball):
    """Sum of absolute values."""

    @staticmethod
    def length(delta: Tensor) -> Tensor:
        """Sum of absolute entries of each sample, (n_samples,)."""
        return _flat(delta).abs().sum(dim=1)

    def project(self, x: Tensor) -> Tensor:
        r"""The nearest point of ball and box together (Croce and Hein 2021).

        Each coordinate moves by :math:`\min(\max(|\delta_i| - \lambda, 0), r_i)`, with the room
        :math:`r_i` that the box leaves and the smallest lambda for which they add up to at most
        eps; lambda is found by sorting the points at which coordinates begin and end to shrink.
        """
        delta = _flat(x - self.x)
        room = _flat(self.clip(x) - self.x).abs()  # in the box, never more than |delta|
        size = delta.abs()
        points = torch.cat([size - room, size], dim=1)
        slopes = torch.cat([-torch.ones_like(size), torch.ones_like(size)], dim=1)
        points, order = points.sort(dim=1)
        slopes = slopes.gather(1, order).cumsum(dim=1)
        falls = slopes[:, :-1] * points.diff(dim=1)
        total = room.sum(dim=1, keepdim=True)
        # lengths that remain with lambda at each of these points
        lengths = torch.cat([total, total + falls.cumsum(dim=1)], dim=1)
        within = self.eps * (1 - 8 * torch.finfo(x.dtype).eps)
        last = ((lengths > within).sum(dim=1, keepdim=True) - 1).clamp_min(0)
        excess = (lengths.gather(1, last) - within).clamp_min(0)
        slope = slopes.gather(1, last).clamp_max(-1)
        threshold = torch.where(total > within, points.gather(1, last) - excess / slope, 0.0)
        moved = delta.sign() * torch.minimum((size - threshold).clamp_min(0), room)
        return self._shrink_rounded(self.clip(self.x + moved.view_as(self.x)))

    def steepest(self, direction: Tensor) -> Tensor:
        """The whole step along the largest coordinate."""
        return self.sparse(direction, torch.ones(len(direction), device=direction.device))

    def sparse(self, direction: Tensor, n_coordinates: Tensor) -> Tensor:
        """A step of unit length, spread evenly over the largest coordinates.

        Parameters
        ----------
        direction : Tensor of shape (n_samples, ...)
        n_coordinates : Tensor of shape (n_samples,)
            Number of coordinates for each sample.

        Returns
        -------
        step : Tensor of the shape of direction
        """
        flat = _flat(direction)
        rank = flat.abs().argsort(dim=1, descending=True).argsort(dim=1)
        signs = torch.where(rank < n_coordinates[:, None], flat.sign(), 0.0)
        count = signs.abs().sum(dim=1, keepdim=True).clamp_min(1)
        return (signs / count).view_as(direction)

    def random_point(self, seed: int) -> Tensor:
        """Uniform in the ball (two-sided exponential direction), then clipped."""
        keys, shape = sample_keys(self.x, seed), self.x.shape[1:]
        tiny = torch.finfo(self.x.dtype).tiny
        u = 2 * uniform(keys, shape, self.x.dtype) - 1
        exponential = u.sign() * -(u.abs().clamp_min(tiny).log())
        radius = uniform(
            sample_keys(self.x, seed + (1 << STREAM_SHIFT)), torch.Size([1]), self.x.dtype
        ).squeeze(1)
        length = self.eps * radius.pow(1 / math.prod(shape)) / self.length(exponential)
        return self.project(self.x + exponential * per_sample(length, self.x))


NORMS: dict[str, type[Ball]] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}


def check_box(clip_values: Any, owner: str) -> None:
    """Raise unless `clip_values` is a pair (low, high) of numbers with low < high."""
    try:
        low, high = clip_values
        valid = is_number(low) and is_number(high) and bool(low < high)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"{owner}: clip_values must be a pair (low, high) of numbers with low < high, such as "
            f"(0, 1); "
            f"got {clip_values!r}"
        )


def box_excess(low: float, high: float, box: Box) -> float:
    """How far the range from low to high exceeds a box; 0 within the tolerance of rounding."""
    excess = max(box[0] - low, high - box[1])
    return excess if excess > _BOX_TOLERANCE * max(1.0, abs(box[0]), abs(box[1])) else 0.0


def check_radius(eps: float, norm: str, box: Box | None, owner: str) -> None:
    """Raise for a radius in the maximum norm that is larger than the box, so in wrong units."""
    if norm != "linf" or box is None or eps <= (box[1] - box[0]) * (1 + _BOX_TOLERANCE):
        return
    hint = f"; did you mean {eps:g}/255?" if tuple(box) == (0, 1) else ""
    raise ValueError(
        f"{owner}: eps={eps:g} is more than X can change, whose values lie in [{box[0]:g}, "
        f"{box[1]:g}]: eps is in the units of X{hint}"
    )


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (n,) values so that they broadcast over samples of any rank."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def exact(x: Tensor) -> Tensor:
    """Convert to double precision, where the device supports it.

    Parameters
    ----------
    x : Tensor

    Returns
    -------
    x : Tensor
    """
    return x if x.device.type == "mps" else x.double()


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def water_filling(speed: Tensor, room: Tensor, amount: Tensor) -> Tensor:
    r"""Time after which vessels filling at constant speeds together hold a given amount.

    .. math:: \min \lambda \ge 0 \quad\text{with}\quad \sum_i \min(\lambda s_i, r_i) = a

    The sum is concave in lambda, so Newton's method converges from below and is exact after
    finitely many steps, in practice a handful: cheaper than sorting the times at which vessels are
    full.

    Parameters
    ----------
    speed, room : Tensor of shape (n_samples, n_features)
        At least 0; room may be infinite.
    amount : Tensor of shape (n_samples,)
        At least 0.

    Returns
    -------
    lam : Tensor of shape (n_samples,)
        Infinity where the total room is less than the amount.
    """
    lam = torch.zeros_like(amount)
    n_full = torch.full_like(amount, -1)
    while True:
        full = lam.unsqueeze(1) * speed >= room
        n_full_before, n_full = n_full, full.sum(dim=1).to(amount)
        # vessels never become empty again; those of speed 0 do not contribute
        if torch.equal(n_full, n_full_before):
            return lam
        missing = amount - torch.where(full, room, 0.0).sum(dim=1)
        rate = torch.where(full, 0.0, speed).sum(dim=1)
        reached = torch.where(rate > 0, missing / rate, torch.inf)
        lam = torch.where(missing > 0, reached.maximum(lam), lam)
