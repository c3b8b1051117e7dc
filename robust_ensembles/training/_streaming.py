"""Samples that are read when they are needed, because there are too many for memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..attacks._checks import box_excess
from .random import derive_seed, private_global_rng

# samples of a pass that is not cut into training batches
_CHUNK = 256
# samples that tell one data set from another
_PROBES = 16
# how torch begins to tell of a process that has died
_DEATH = "DataLoader worker (pid"

Read = tuple[Tensor, list[Any]]


class StreamedX(Dataset[Tensor]):
    """The inputs of a data set, which stands in for an array of them.

    Samples are checked when they are read, since none is kept.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        With a length; an item is x, or begins with x and its label.
    sample_shape : tuple of int
        Of x as it comes.
    input_shape : tuple of int
        What it becomes.
    dtype : dtype
        uint8, or float32, to which all else is cast.
    num_workers : int
        Processes that read ahead; 0 is none.
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
        """Axes of the array that this stands for."""
        return len(self.shape)

    def min(self) -> float:
        """Smallest number; takes a pass over the data, for the largest one as well."""
        return self._extremes()[0]

    def max(self) -> float:
        """Largest number."""
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
        """Read batches; close the iterator to end the processes that do it.

        Parameters
        ----------
        rows : iterable of int64 ndarray
            The samples of each batch.
        seed : int
            Of what the data set draws from torch's global generator: it depends on the batch, and
            not on the process that reads it.

        Yields
        ------
        x : Tensor of shape (n_samples, `*input_shape`), float32 or uint8
        labels : list
            What stands beside each x, or None.

        Raises
        ------
        ValueError, TypeError
            For a sample unlike the first one, with its index.
        RuntimeError
            If a process that reads has died.
        """
        # what DataLoader takes for a list of indices
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
        """What is read, with one error for the end of a process."""
        while True:
            try:
                outcome = next(reading)
            except StopIteration:
                return
            except (OSError, EOFError) as error:
                # errors inside a process begin with "Caught"; this is a connection that broke
                if self.num_workers == 0 or str(error).startswith("Caught"):
                    raise
                raise RuntimeError(f"{_DEATH}?) is gone: {error!r}") from error
            yield outcome

    def read(self, indices: Sequence[int]) -> Read:
        """Read some samples, here and now; see `batches`."""
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
        """Digest of size and type, and of a few samples from the first to the last."""
        probed = np.linspace(0, len(self) - 1, min(_PROBES, len(self))).astype(np.int64)
        hashed = hashlib.sha256(f"{self.shape} {self.dtype}".encode())
        with private_global_rng(0):
            hashed.update(self.read(probed.tolist())[0].contiguous().numpy().data)
        return hashed.hexdigest()


@contextmanager
def death_of_a_reader_explained() -> Iterator[None]:
    """Say in plain words that a process that reads has died.

    torch raises that wherever the main thread is at that moment.

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
    """A sample that cannot be trained on; told where the data are asked for."""


class _Reader(Dataset[Any]):
    """Reads whole batches, in any process; errors of a sample are results there."""

    def __init__(self, rows: StreamedX) -> None:
        self.rows = rows

    def __getitems__(self, order: tuple[int, list[int]]) -> Read | BadSampleError:
        seed, indices = order
        with private_global_rng(seed):
            try:
                return self.rows.read(indices)
            except BadSampleError as error:
                return BadSampleError(*error.args)


def split_item(item: Any) -> tuple[Any, Any]:
    """An item of a data set as x and its label, which may be None."""
    if not isinstance(item, tuple | list):
        return item, None
    return item[0], item[1] if len(item) > 1 else None


def to_tensor(x: Any, index: int) -> Tensor:
    """A sample as float32, or uint8 if it is.

    Parameters
    ----------
    x : ndarray or Tensor
    index : int
        For the message.

    Returns
    -------
    x : Tensor
        On the CPU.

    Raises
    ------
    BadSampleError
        For anything else, such as an image of PIL.
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


def _as_it_is(batch: Any) -> Any:
    return batch
