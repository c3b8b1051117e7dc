"""Training data as batches on the device.

`MiniBatches` divides an `EnsembleDataset` into a `Batch` for each step, in an order that follows
from the seed and the epoch. Samples come from an array (`ArrayBatches`) or, if they do not fit into
memory, from a data set that is read when needed (`DatasetBatches`, `StreamedX`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.dataset import Dataset as SkorchDataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..attacks.engine.balls import box_excess
from .augmentation import AugmentationPipeline
from .random import derive_seed, generator, private_global_rng

# fraction of a device's free memory that the training set may use
_RESIDENT_SHARE = 0.5

# batch size of passes other than training
_CHUNK = 256

# number of samples that identify a data set
_PROBES = 16

# beginning of torch's message about a process that has died
_DEATH = "DataLoader worker (pid"

Read = tuple[Tensor, list[Any]]


class Batch(NamedTuple):
    """One mini-batch on the device.

    Parameters
    ----------
    x : Tensor of shape (n_samples, ...)
    y : Tensor of shape (n_samples,)
        Class indices.
    sample_weight : Tensor of shape (n_samples,) or None
    sample_index : int64 Tensor of shape (n_samples,)
        Index of each sample in the training set; copies (`NoisyCopies`) have their own indices.
    x_target : Tensor of the shape of x, or None
        Another, independently drawn batch, for methods that pair samples at random.
    """

    x: Tensor
    y: Tensor
    sample_weight: Tensor | None
    sample_index: Tensor
    x_target: Tensor | None = None


class EnsembleDataset(SkorchDataset):
    """skorch's data set of arrays, with sample weights.

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


class MiniBatches:
    """Mini-batches of a data set, in an order determined by the epoch.

    Close the iterator to end the processes that read a streamed data set.

    Parameters
    ----------
    dataset : EnsembleDataset or a Subset of one
    batch_size : int
    device : torch.device
    dtype : torch.dtype
        The dtype of the members' parameters.
    seed : int
        Seed of the fit.
    augmentation : AugmentationPipeline or None
        None is for validation, in the order of the data.
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
        self.source: ArrayBatches | DatasetBatches = (
            DatasetBatches(base.X, device) if streamed else ArrayBatches(np.asarray(base.X), device)
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
        """Positions where one batch ends and the next begins."""
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
        # to the device once, because the host waits for each transfer
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
        """The batch of the raw samples x from `where`, converted and augmented."""
        x = to_float(x, self.dtype)
        if self.augmentation is not None:
            x = self.augmentation(x, copy, noise)
        weight = None if self.sample_weight is None else self.sample_weight[where]
        return Batch(x, self.y[where], weight, where + copy * self.n_rows)


def _base_and_indices(dataset: Any) -> tuple[EnsembleDataset, NDArray[np.int64]]:
    """The data set below nested Subsets, and their rows in it."""
    if isinstance(dataset, Subset):
        base, indices = _base_and_indices(dataset.dataset)
        return base, indices[np.asarray(dataset.indices, dtype=np.int64)]
    return dataset, np.arange(len(dataset), dtype=np.int64)


def to_float(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating point values of raw X: uint8 is divided by 255, other dtypes are cast."""
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


class ArrayBatches:
    """Batches of an array.

    The array moves to an accelerator once, if it takes at most half of the free memory there, else
    batch by batch.

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
            The same samples, on the device.
        seed : int
            Seed of reading, which draws no random numbers here.

        Yields
        ------
        x : Tensor of shape (n_samples, ...)
        """
        for on_host, there in zip(rows, where, strict=True):
            if self.on_device is None:
                yield torch.from_numpy(self.X[on_host]).to(self.device)
            else:
                yield self.on_device[there]


class DatasetBatches:
    """Batches that are read from a data set.

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
        """Batches of raw samples on the device; see `ArrayBatches`."""
        with closing(self.X.batches(rows, seed=seed)) as reading:
            for x, _ in reading:
                yield x.to(self.device)


class StreamedX(Dataset[Tensor]):
    """The inputs of a data set, in place of an array.

    Samples are checked when they are read, since none are kept.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        With a length; an item is x, or begins with x and its label.
    sample_shape : tuple of int
        Shape of x in the data set.
    input_shape : tuple of int
        Shape of x for the members.
    dtype : dtype
        uint8, or float32, to which other dtypes are cast.
    num_workers : int
        Number of processes that read ahead.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        sample_shape: tuple[int, ...],
        input_shape: tuple[int, ...],
        dtype: Any,
        num_workers: int,
    ) -> None:
        self.dataset, self.sample_shape, self.num_workers = dataset, sample_shape, num_workers
        self.shape, self.dtype = (len(dataset), *input_shape), np.dtype(dtype)
        self.box: tuple[float, float] | None = None  # that samples have to lie in
        # a method that pretrains hands its inputs on
        self._range: tuple[float, float] | None = (
            dataset._range if isinstance(dataset, StreamedX) else None
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        return self.read([index])[0][0]

    @property
    def ndim(self) -> int:
        """Number of axes of the equivalent array."""
        return len(self.shape)

    def min(self) -> float:
        """Smallest value; makes one pass over the data, also for the largest value."""
        return self._extremes()[0]

    def max(self) -> float:
        """Largest value."""
        return self._extremes()[1]

    def _extremes(self) -> tuple[float, float]:
        if self._range is None:
            low, high = math.inf, -math.inf
            with death_of_a_reader_explained(), closing(self._pass()) as batches:
                for x, _ in batches:
                    low, high = min(low, float(x.min())), max(high, float(x.max()))
            self._range = low, high
        return self._range

    def labels(self) -> list[Any]:
        """The label of each sample, by a pass over the data."""
        with death_of_a_reader_explained(), closing(self._pass()) as batches:
            return [label for _, labels in batches for label in labels]

    def in_order(self, size: int) -> Iterator[Tensor]:
        """All samples, in batches of a size."""
        with death_of_a_reader_explained(), closing(self._pass(size)) as batches:
            yield from (x for x, _ in batches)

    def _pass(self, size: int = _CHUNK) -> Generator[Read, None, None]:
        starts = range(0, len(self), size)
        return self.batches([np.arange(i, min(i + size, len(self))) for i in starts], seed=0)

    def batches(
        self, rows: Iterable[NDArray[np.int64]], *, seed: int
    ) -> Generator[Read, None, None]:
        """Read batches; close the iterator to end the reading processes.

        Parameters
        ----------
        rows : iterable of int64 ndarray
            The samples of each batch.
        seed : int
            Seed of torch's global generator, from which a data set may draw: it depends on the
            batch, not on the process that reads it.

        Yields
        ------
        x : Tensor of shape (n_samples, `*input_shape`), float32 or uint8
        labels : list
            The label of each x, or None.

        Raises
        ------
        ValueError, TypeError
            For a sample unlike the first one, with its index.
        RuntimeError
            If a reading process has died.
        """
        # DataLoader treats each entry as a list of indices
        orders: list[Any] = [
            (derive_seed(seed, "samples", i), part.tolist()) for i, part in enumerate(rows)
        ]
        loader = DataLoader(
            _Reader(self),
            batch_sampler=orders,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(seed),
        )
        reading = iter(loader)
        try:
            for outcome in self._outcomes(reading):
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
        finally:
            if hasattr(reading, "_shutdown_workers"):
                reading._shutdown_workers()  # now, and not when an exception is forgotten

    def _outcomes(self, reading: Iterator[Any]) -> Iterator[Any]:
        """The read batches, with one error for the death of a process."""
        while True:
            try:
                outcome = next(reading)
            except StopIteration:
                return
            except (OSError, EOFError) as error:
                # errors inside a process begin with "Caught"; this is a broken connection
                if self.num_workers == 0 or str(error).startswith("Caught"):
                    raise
                raise RuntimeError(f"{_DEATH}?) is gone: {error!r}") from error
            yield outcome

    def read(self, indices: Sequence[int]) -> Read:
        """Read some samples in this process; see `batches`."""
        if hasattr(self.dataset, "__getitems__"):
            items = self.dataset.__getitems__(list(indices))
        else:
            items = [self.dataset[i] for i in indices]
        pairs = [split_item(item) for item in items]
        parts = [self._checked(x, i) for (x, _), i in zip(pairs, indices, strict=True)]
        return torch.stack(parts), [label for _, label in pairs]

    def _checked(self, x: Any, index: int) -> Tensor:
        tensor = to_tensor(x, index)
        if tuple(tensor.shape) != self.sample_shape:
            raise BadSampleError(
                f"sample {index} has shape {tuple(tensor.shape)}, the first one {self.sample_shape}"
            )
        if (tensor.dtype == torch.uint8) != (self.dtype == np.uint8):
            raise BadSampleError(
                f"sample {index} is {tensor.dtype}, the first one is {self.dtype}; uint8 is "
                "divided by 255 and all else is not, so all must be of one kind"
            )
        if not tensor.isfinite().all():
            raise BadSampleError(
                f"sample {index} holds NaN, infinity or a value too large for float32"
            )
        if self.box is not None:
            scale = 255 if self.dtype == np.uint8 else 1
            low, high = float(tensor.min()) / scale, float(tensor.max()) / scale
            if box_excess(low, high, self.box):
                raise BadSampleError(
                    f"sample {index} spans [{low:.4g}, {high:.4g}], outside "
                    f"clip_values={self.box}; give the box that the raw data live in"
                )
        return tensor.reshape(self.shape[1:])

    def fingerprint(self) -> str:
        """Digest of shape, dtype, and a few samples from the first to the last."""
        probed = np.linspace(0, len(self) - 1, min(_PROBES, len(self))).astype(np.int64)
        hashed = hashlib.sha256(f"{self.shape} {self.dtype}".encode())
        with private_global_rng(0):
            hashed.update(self.read(probed.tolist())[0].contiguous().numpy().data)
        return hashed.hexdigest()


class _Reader(Dataset[Any]):
    """Reads whole batches, in any process, and returns errors of samples as results."""

    def __init__(self, rows: StreamedX) -> None:
        self.rows = rows

    def __getitems__(self, order: tuple[int, list[int]]) -> Read | BadSampleError:
        seed, indices = order
        with private_global_rng(seed):
            try:
                return self.rows.read(indices)
            except BadSampleError as error:
                return BadSampleError(*error.args)


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def death_of_a_reader_explained() -> Iterator[None]:
    """Explain the error of torch about a reading process that has died.

    torch raises it wherever the main thread is at that moment.

    Raises
    ------
    RuntimeError
    """
    try:
        yield
    except RuntimeError as error:
        if _DEATH not in str(error):
            raise
        raise RuntimeError(
            f"a process that reads the data has died: {error}. What was trained so far is kept. "
            "It may have been out of memory (take a smaller num_workers) or of shared memory "
            "(/dev/shm); with num_workers=0 an error in the data set shows itself"
        ) from error


class BadSampleError(ValueError):
    """A sample cannot be trained on; raised in the process that requests the data."""


def split_item(item: Any) -> tuple[Any, Any]:
    """An item of a data set as x and its label, which may be None."""
    if not isinstance(item, tuple | list):
        return item, None
    return item[0], item[1] if len(item) > 1 else None


def to_tensor(x: Any, index: int) -> Tensor:
    """Convert a sample to float32, or keep it as uint8.

    Parameters
    ----------
    x : ndarray or Tensor
    index : int
        Index of the sample, for the message.

    Returns
    -------
    x : Tensor
        On the CPU.

    Raises
    ------
    BadSampleError
        For other objects, such as a PIL image.
    """
    if isinstance(x, np.ndarray) and x.dtype.kind in "buif":
        x = torch.from_numpy(np.array(x))  # a copy: torch warns of arrays that are read-only
    if not isinstance(x, Tensor) or x.is_complex():
        raise BadSampleError(
            f"sample {index} of the data set is {type(x).__name__}; it must be (x, y) with x an "
            "ndarray or Tensor of numbers. For images of PIL give the data set "
            "transform=torchvision.transforms.PILToTensor()"
        )
    x = x.detach().cpu()
    return x if x.dtype == torch.uint8 else x.float()
