"""Training data as batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.dataset import Dataset
from torch import Tensor
from torch.utils.data import Subset

from ._random import derive_seed, generator
from .augmentation import AugmentationPipeline

# the part of a device's free memory that the training set may take
_RESIDENT_SHARE = 0.5


class Batch(NamedTuple):
    """One mini-batch on the device.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
    y : Tensor of shape (n_samples,)
        Class indices.
    sample_weight : Tensor of shape (n_samples,) or None
    sample_index : int64 Tensor of shape (n_samples,)
        Which sample of the training set each is; copies (`NoisyCopies`) count as further ones.
    x_target : Tensor of the shape of x, or None
        An independent draw of other inputs, for methods that pair samples at random.
    """

    x: Tensor
    y: Tensor
    sample_weight: Tensor | None
    sample_index: Tensor
    x_target: Tensor | None = None


class EnsembleDataset(Dataset):
    """skorch's data set of arrays, with sample weights beside.

    Parameters
    ----------
    X : ndarray of shape (n_samples, ...), float32 or uint8
    y : int64 ndarray of shape (n_samples,)
    sample_weight : float32 ndarray of shape (n_samples,), default=None
    """

    def __init__(
        self,
        X: NDArray[Any],
        y: NDArray[np.int64],
        sample_weight: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(X, y)
        self.sample_weight = sample_weight


def to_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating point values of raw X: uint8 is divided by 255, all else is cast."""
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


class MiniBatches:
    """Mini-batches of a data set, in an order that the epoch determines.

    The arrays move to an accelerator once, if they take at most half of its free memory; else
    batch by batch. On a CPU batches are copies, so X may be a read-only memory map.

    Parameters
    ----------
    dataset : EnsembleDataset or a Subset of one
    batch_size : int
    device : torch.device
    dtype : torch.dtype
        Of the members' parameters.
    seed : int
        Seed of the fit.
    augmentation : AugmentationPipeline or None
        None also means in the order of the data, for validation.
    paired : bool, default=False
        Whether batches have an `x_target`.
    """

    def __init__(
        self,
        dataset: EnsembleDataset | Subset[Any],
        *,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
        augmentation: AugmentationPipeline | None,
        paired: bool = False,
    ) -> None:
        self.paired = paired
        self.device, self.dtype, self.seed = device, dtype, seed
        self.augmentation, self.epoch = augmentation, 0
        base, self.indices = _base_and_indices(dataset)
        self.batch_size = min(batch_size, self._n_samples)
        self.X = self._place(np.asarray(base.X))
        self.y = torch.as_tensor(np.asarray(base.y), device=device)
        weight = base.sample_weight
        self.sample_weight = (
            None if weight is None else torch.as_tensor(weight, device=device, dtype=dtype)
        )

    @property
    def _n_samples(self) -> int:
        copies = 1 if self.augmentation is None else self.augmentation.n_copies
        return len(self.indices) * copies

    def __len__(self) -> int:
        return len(self._ends) + 1

    @property
    def _ends(self) -> list[int]:
        """Where one batch ends and the next begins."""
        ends = list(range(self.batch_size, self._n_samples, self.batch_size))
        # BatchNorm cannot train on a last batch of one sample
        return ends[:-1] if ends and self._n_samples - ends[-1] == 1 else ends

    def __iter__(self) -> Iterator[Batch]:
        batches = self._stream("")
        if not self.paired:
            return batches
        pairs = zip(batches, self._stream("target "), strict=True)
        return (batch._replace(x_target=target.x) for batch, target in pairs)

    def _stream(self, prefix: str) -> Iterator[Batch]:
        """One pass over the data; the prefix names its random streams."""
        order = np.arange(self._n_samples)
        if self.augmentation is not None:
            order_seed = derive_seed(self.seed, f"{prefix}order", self.epoch)
            order = np.random.default_rng(order_seed).permutation(order)
        noise_seed = derive_seed(self.seed, f"{prefix}augmentation", self.epoch)
        noise = generator(noise_seed, self.device)
        copy, position = np.divmod(order, len(self.indices))
        rows = self.indices[position]
        # to the device once, since each transfer makes the host wait
        parts = (self._to_device(of_all).tensor_split(self._ends) for of_all in (rows, copy))
        for on_host, where, copies in zip(np.split(rows, self._ends), *parts, strict=True):
            yield self._batch(on_host, where, copies, noise)

    def _batch(
        self, rows: NDArray[np.int64], where: Tensor, copy: Tensor, noise: torch.Generator
    ) -> Batch:
        """The samples in some rows, which the device knows as `where`."""
        x = self.X[where] if isinstance(self.X, Tensor) else self._to_device(self.X[rows])
        x = to_float(x, self.dtype)
        if self.augmentation is not None:
            x = self.augmentation(x, copy, noise)
        weight = None if self.sample_weight is None else self.sample_weight[where]
        return Batch(x, self.y[where], weight, where + copy * len(self.X))

    def _to_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _place(self, X: NDArray[Any]) -> NDArray[Any] | Tensor:
        if self.device.type != "cuda":
            return X
        free, _ = torch.cuda.mem_get_info(self.device)
        return torch.tensor(X, device=self.device) if X.nbytes < _RESIDENT_SHARE * free else X


def _base_and_indices(dataset: Any) -> tuple[EnsembleDataset, NDArray[np.int64]]:
    """The arrays below nested Subsets, and which of their rows are meant."""
    if isinstance(dataset, Subset):
        base, indices = _base_and_indices(dataset.dataset)
        return base, indices[np.asarray(dataset.indices, dtype=np.int64)]
    return dataset, np.arange(len(dataset), dtype=np.int64)
