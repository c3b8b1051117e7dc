"""Training data as batches on the device."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.dataset import Dataset
from torch import Tensor
from torch.utils.data import Subset

from ._streaming import StreamedX
from .augmentation import AugmentationPipeline
from .random import derive_seed, generator

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
    X : ndarray of shape (n_samples, ...), float32 or uint8, or StreamedX
    y : int64 ndarray of shape (n_samples,)
    sample_weight : float32 ndarray of shape (n_samples,), default=None
    """

    def __init__(
        self,
        X: NDArray[Any] | StreamedX,
        y: NDArray[np.int64],
        sample_weight: NDArray[np.float32] | None = None,
    ) -> None:
        super().__init__(X, y, length=len(y))
        self.sample_weight = sample_weight


def to_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating point values of raw X: uint8 is divided by 255, all else is cast."""
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


class HeldRows:
    """Samples of an array.

    It moves to an accelerator once, if it takes at most half of the free memory there, else batch
    by batch.

    Parameters
    ----------
    X : ndarray of shape (n_samples, ...)
        May be a read-only memory map: batches are copies.
    device : torch.device
    """

    def __init__(self, X: NDArray[Any], device: torch.device) -> None:
        self.device, self.X = device, X
        self.on_device: Tensor | None = None
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if X.nbytes < _RESIDENT_SHARE * free:
                self.on_device = torch.tensor(X, device=device)

    def batches(
        self, rows: list[NDArray[np.int64]], where: tuple[Tensor, ...], seed: int
    ) -> Generator[Tensor, None, None]:
        """Batches of raw samples on the device.

        Parameters
        ----------
        rows : list of int64 ndarray
            The samples of each batch.
        where : tuple of int64 Tensor
            The same, on the device.
        seed : int
            Of what reading draws; here nothing.

        Yields
        ------
        x : Tensor of shape (n_samples, ...)
        """
        for on_host, there in zip(rows, where, strict=True):
            if self.on_device is None:
                yield torch.from_numpy(self.X[on_host]).to(self.device)
            else:
                yield self.on_device[there]


class StreamedRows:
    """Samples that are read for each batch.

    Parameters
    ----------
    X : StreamedX
    device : torch.device
    """

    def __init__(self, X: StreamedX, device: torch.device) -> None:
        self.X, self.device = X, device

    def batches(
        self, rows: list[NDArray[np.int64]], where: tuple[Tensor, ...], seed: int
    ) -> Generator[Tensor, None, None]:
        """Batches of raw samples on the device; see `HeldRows`."""
        with closing(self.X.batches(rows, seed=seed)) as reading:
            for x, _ in reading:
                yield x.to(self.device)


class MiniBatches:
    """Mini-batches of a data set, in an order that the epoch determines.

    Close what iterates over it, to end the processes that read a streamed data set.

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
        self.n_rows = len(base)
        streamed = isinstance(base.X, StreamedX)
        self.source: HeldRows | StreamedRows = (
            StreamedRows(base.X, device) if streamed else HeldRows(np.asarray(base.X), device)
        )
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

    def __iter__(self) -> Generator[Batch, None, None]:
        with closing(self._stream("")) as batches:
            if not self.paired:
                yield from batches
                return
            with closing(self._stream("target ")) as targets:
                for batch, target in zip(batches, targets, strict=True):
                    yield batch._replace(x_target=target.x)

    def _stream(self, prefix: str) -> Generator[Batch, None, None]:
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
        where, copies = (
            torch.from_numpy(of_all).to(self.device).tensor_split(self._ends)
            for of_all in (rows, copy)
        )
        reading_seed = derive_seed(self.seed, f"{prefix}reading", self.epoch)
        raw = self.source.batches(np.split(rows, self._ends), where, reading_seed)
        with closing(raw) as batches:
            for x, there, copy_of in zip(batches, where, copies, strict=True):
                yield self._batch(x, there, copy_of, noise)

    def _batch(self, x: Tensor, where: Tensor, copy: Tensor, noise: torch.Generator) -> Batch:
        """The raw samples from `where`, as they are trained on."""
        x = to_float(x, self.dtype)
        if self.augmentation is not None:
            x = self.augmentation(x, copy, noise)
        weight = None if self.sample_weight is None else self.sample_weight[where]
        return Batch(x, self.y[where], weight, where + copy * self.n_rows)


def _base_and_indices(dataset: Any) -> tuple[EnsembleDataset, NDArray[np.int64]]:
    """The arrays below nested Subsets, and which of their rows are meant."""
    if isinstance(dataset, Subset):
        base, indices = _base_and_indices(dataset.dataset)
        return base, indices[np.asarray(dataset.indices, dtype=np.int64)]
    return dataset, np.arange(len(dataset), dtype=np.int64)
