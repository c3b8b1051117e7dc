"""The sets that adversarial examples stay in: an eps-ball around x, cut by the data's box.

Membership is exact in the sense that a check in float64 finds no point outside: rounding to the
tensor's dtype always goes towards x. The ends of the box are what they are in that dtype.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ._noise import STREAM_SHIFT, sample_keys, uniform

Box = tuple[float, float]


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (n,) values so that they broadcast over samples of any rank."""
    return values.view(-1, *([1] * (like.ndim - 1)))


def _exact(x: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return x if x.device.type == "mps" else x.double()


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

    @abstractmethod
    def steepest(self, direction: Tensor) -> Tensor:
        """The unit step that has the largest inner product with a direction."""

    @abstractmethod
    def random_point(self, seed: int) -> Tensor:
        """A random point for each sample, which depends on the sample and the seed alone."""


class LinfBall(Ball):
    """Maximum norm."""

    def __init__(self, x: Tensor, eps: float, clip_values: Box | None) -> None:
        super().__init__(x, eps, clip_values)
        # in double precision, since eps itself has no exact float32; then an end that was
        # rounded away from x would leave the ball by half a unit in the last place
        lower, upper = (_exact(x) - eps).to(x.dtype), (_exact(x) + eps).to(x.dtype)
        too_low, too_high = _exact(x) - lower > eps, upper - _exact(x) > eps
        self.lower = self.clip(torch.where(too_low, torch.nextafter(lower, x), lower))
        self.upper = self.clip(torch.where(too_high, torch.nextafter(upper, x), upper))

    def __getitem__(self, index: Tensor) -> LinfBall:
        part = object.__new__(LinfBall)
        part.x, part.eps, part.clip_values = self.x[index], self.eps, self.clip_values
        part.lower, part.upper = self.lower[index], self.upper[index]
        return part

    def project(self, x: Tensor) -> Tensor:
        """Move x into the ball and the box."""
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def steepest(self, direction: Tensor) -> Tensor:
        """The sign."""
        return direction.sign()

    def random_point(self, seed: int) -> Tensor:
        """Uniform in the ball, then clipped into the box."""
        noise = uniform(sample_keys(self.x, seed), self.x.shape[1:], self.x.dtype)
        return self.project(self.x + self.eps * (2 * noise - 1))


class L2Ball(Ball):
    """Euclidean norm."""

    def project(self, x: Tensor) -> Tensor:
        """Scale the perturbation into the ball, then clip into the box, which shortens it."""
        delta = x - self.x
        norm = torch.linalg.vector_norm(_flat(delta), dim=1)
        # the margin of rounding in the norm and in the sum below
        within = self.eps * (1 - 8 * torch.finfo(x.dtype).eps)
        scale = (within / norm.clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(1.0)
        projected = self.clip(self.x + delta * _per_sample(scale, x))
        return self._shrink_rounded(projected)

    def _shrink_rounded(self, x_adv: Tensor) -> Tensor:
        """Pull back the points that the rounding of x + delta has put outside."""
        for _ in range(4):
            length = torch.linalg.vector_norm(_flat(_exact(x_adv) - _exact(self.x)), dim=1)
            outside = length > self.eps
            if not outside.any():
                return x_adv
            ratio = torch.where(outside, 0.999 * self.eps / length, 1.0).to(x_adv.dtype)
            pulled = self.clip(self.x + (x_adv - self.x) * _per_sample(ratio, x_adv))
            x_adv = torch.where(_per_sample(outside, x_adv), pulled, x_adv)
        return torch.where(_per_sample(outside, x_adv), self.x, x_adv)

    def steepest(self, direction: Tensor) -> Tensor:
        """The direction at unit length; zero stays zero."""
        tiny = torch.finfo(direction.dtype).tiny
        # largest entry first: the squares of a saturated model's float32 gradient underflow
        largest = _flat(direction).abs().amax(dim=1).clamp_min(tiny)
        scaled = direction / _per_sample(largest, direction)
        norm = torch.linalg.vector_norm(_flat(scaled), dim=1).clamp_min(tiny)
        return scaled / _per_sample(norm, direction)

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
        return self.project(self.x + self.steepest(gauss) * _per_sample(radius, self.x))


NORMS: dict[str, type[Ball]] = {"linf": LinfBall, "l2": L2Ball}
