"""Random transforms of training batches, on their device, independent for each sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from sklearn.base import BaseEstimator
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(repr=False, eq=False)
class BatchTransform(BaseEstimator, ABC):
    """Base class of transforms, called with a batch and a generator on the batch's device."""

    @abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Transform a batch.

        Parameters
        ----------
        x : Tensor of shape (n_samples, n_channels, height, width)
        generator : torch.Generator
            On the device of x.

        Returns
        -------
        x : Tensor of the same shape
        """


@dataclass(repr=False, eq=False)
class RandomCrop(BatchTransform):
    """Pad each image with zeros and crop a window of its size at a random position.

    Parameters
    ----------
    padding : int, default=4
        Pixels on each side.
    """

    padding: int = 4

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Crop a batch; see `BatchTransform`."""
        n, _, height, width = _images(x, "RandomCrop")
        if self.padding < 1:
            raise ValueError(f"RandomCrop: padding must be at least 1; got {self.padding!r}")
        offsets = torch.randint(
            2 * self.padding + 1, (2, n, 1), generator=generator, device=x.device
        )
        rows = offsets[0] + torch.arange(height, device=x.device)
        columns = offsets[1] + torch.arange(width, device=x.device)
        padded = F.pad(x, [self.padding] * 4)
        sample = torch.arange(n, device=x.device).view(n, 1, 1)
        # advanced indices on axes 0, 2 and 3 move the channels last
        return padded[sample, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


@dataclass(repr=False, eq=False)
class RandomHorizontalFlip(BatchTransform):
    """Mirror each image with probability p.

    Parameters
    ----------
    p : float, default=0.5
    """

    p: float = 0.5

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Flip a batch; see `BatchTransform`."""
        _images(x, "RandomHorizontalFlip")
        return torch.where(_chosen(x, self.p, generator), x.flip(-1), x)


@dataclass(repr=False, eq=False)
class GaussianNoise(BatchTransform):
    """Add Gaussian noise to each sample with probability p (the noise of GAL and CLDL).

    Parameters
    ----------
    sigma : float, default=0.045
        Standard deviation, in the units of X.
    p : float, default=0.5
    clip_values : tuple of two floats, default=None
        Box to clip into; the released code does not clip.
    """

    sigma: float = 0.045
    p: float = 0.5
    clip_values: tuple[float, float] | None = None

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Add noise to a batch; see `BatchTransform`."""
        noisy = x + self.sigma * _normal_like(x, generator)
        if self.clip_values is not None:
            noisy = noisy.clamp(*self.clip_values)
        return torch.where(_chosen(x, self.p, generator), noisy, x)


@dataclass(repr=False, eq=False)
class NoisyCopies(BatchTransform):
    """Train on the data and a noisy copy of it, NCEn's D + D_noise: an epoch is twice as long.

    Only this noise is applied to the copy, none of the other transforms.

    Parameters
    ----------
    sigma : float
        Standard deviation, in the units of X: eps / 2 in the paper, 0.15 for Fashion-MNIST and
        0.045 for CIFAR-10.
    clip_values : tuple of two floats, default=(0, 1)
        Box to clip the copies into.
    """

    sigma: float
    clip_values: tuple[float, float] | None = (0.0, 1.0)

    n_copies: ClassVar[int] = 2

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the noisy copy of a batch; see `BatchTransform`."""
        noisy = x + self.sigma * _normal_like(x, generator)
        return noisy if self.clip_values is None else noisy.clamp(*self.clip_values)


class AugmentationPipeline:
    """The transforms of one fit, applied in order.

    Parameters
    ----------
    transforms : callable, sequence of callables, or None
    """

    def __init__(self, transforms: Augmentation | Sequence[Augmentation] | None) -> None:
        listed = [transforms] if callable(transforms) else list(transforms or ())
        for transform in listed:
            if not callable(transform):
                raise TypeError(
                    "augmentation must be a callable (x, generator) -> x or a list of them, such "
                    f"as [RandomCrop(4), RandomHorizontalFlip()]; got {transform!r}"
                )
        self.transforms = [t for t in listed if not isinstance(t, NoisyCopies)]
        copies = [t for t in listed if isinstance(t, NoisyCopies)]
        if len(copies) > 1:
            raise ValueError("augmentation has more than one NoisyCopies; give one")
        self.noisy_copies = copies[0] if copies else None

    def check(self, x: Tensor) -> None:
        """Raise, before any training, for transforms that do not return a batch like the given one.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)

        Raises
        ------
        ValueError
        """
        random = torch.Generator(x.device).manual_seed(0)
        last = [] if self.noisy_copies is None else [self.noisy_copies]
        every: list[Augmentation] = [*self.transforms, *last]
        for transform in every:
            try:
                made: Any = transform(x.clone(), random)
            except Exception as error:  # of any user's function
                raise ValueError(
                    f"augmentation: {transform!r} fails on a batch of shape {tuple(x.shape)}: "
                    f"{error}. It must be callable as (x, generator) -> x"
                ) from error
            if not isinstance(made, Tensor) or made.shape != x.shape or made.dtype != x.dtype:
                shape = tuple(getattr(made, "shape", ()))
                raise ValueError(
                    f"augmentation: {transform!r} returns a {type(made).__name__} of shape "
                    f"{shape} and type {getattr(made, 'dtype', None)} for {x.dtype} of shape "
                    f"{tuple(x.shape)}; it must return a tensor like the batch"
                )

    @property
    def n_copies(self) -> int:
        """Number of passes over the data in an epoch."""
        return 1 if self.noisy_copies is None else self.noisy_copies.n_copies

    def __call__(self, x: Tensor, copy: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
        copy : int Tensor of shape (n_samples,)
            0 for samples of the data, 1 for samples of the noisy copy.
        generator : torch.Generator

        Returns
        -------
        x : Tensor of shape (n_samples, ...)
        """
        result = x
        for transform in self.transforms:
            result = transform(result, generator)
        if self.noisy_copies is None:
            return result
        is_copy = (copy == 1).view(-1, *([1] * (x.ndim - 1)))
        return torch.where(is_copy, self.noisy_copies(x, generator), result)


def _images(x: Tensor, name: str) -> torch.Size:
    if x.ndim != 4:
        raise ValueError(
            f"{name} needs images of shape (n, channels, height, width); got {tuple(x.shape)}. "
            "Set input_shape=(channels, height, width) on the estimator."
        )
    return x.shape


def _chosen(x: Tensor, p: float, generator: torch.Generator) -> Tensor:
    u = torch.rand(len(x), generator=generator, device=x.device)
    return (u < p).view(-1, *([1] * (x.ndim - 1)))


def _normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
