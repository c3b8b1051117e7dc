"""Samples that are read when they are needed."""

import multiprocessing
import os
import signal
from contextlib import closing

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from robust_ensembles.training import (
    AugmentationPipeline,
    BadSampleError,
    EnsembleDataset,
    MiniBatches,
    NoisyCopies,
    StreamedX,
)

# on a machine with few cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

AUGMENTATION = AugmentationPipeline(
    [NoisyCopies(0.1, clip_values=None), lambda x, g: x + torch.rand(len(x), 1, generator=g)]
)


class Samples(Dataset):
    """Rows of an array, some of which are something else."""

    def __init__(self, X, *, odd=None):
        self.X, self.odd = X, odd or {}

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        value = self.odd.get(index, self.X[index])
        return (value() if callable(value) else value), -index


class Noisy(Samples):
    def __getitem__(self, index):
        return torch.rand(2), index


def rows(n=23, dtype=np.float32):
    index = np.arange(n)
    return np.stack([index, 2 * index], axis=1).astype(dtype)


def streamed(dataset, num_workers=0, dtype=np.float32, shape=(2,)):
    return StreamedX(
        dataset, sample_shape=(2,), input_shape=shape, dtype=dtype, num_workers=num_workers
    )


def mini_batches(X, *, augmentation=AUGMENTATION, paired=False, epoch=1):
    n = len(X)
    dataset = EnsembleDataset(X, np.arange(n), (np.arange(n) + 0.5).astype(np.float32))
    iterator = MiniBatches(
        torch.utils.data.Subset(dataset, list(range(3, n))),
        batch_size=5,
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=7,
        augmentation=augmentation,
        paired=paired,
    )
    iterator.epoch = epoch
    return iterator


def killed():
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
@pytest.mark.parametrize("paired", [False, True])
def test_same_batches_as_an_array(num_workers, dtype, paired):
    X = rows(dtype=dtype)
    expected = list(mini_batches(X, paired=paired))
    found = list(mini_batches(streamed(Samples(X), num_workers, dtype), paired=paired))
    assert len(found) == len(expected) == 8
    for one, other in zip(found, expected, strict=True):
        for name in one._fields:
            first, second = getattr(one, name), getattr(other, name)
            assert (first is second is None) or torch.equal(first, second), name
    assert (found[0].x_target is not None) == paired


def test_what_samples_may_be():
    """All of a kind: arrays, read-only ones too, and tensors of any floating point type."""
    kinds = [np.float64, np.float32, np.float16, np.int64]
    for kind in kinds:
        X = rows(dtype=kind)
        X.flags.writeable = False
        (x,) = streamed(Samples(X)).in_order(50)
        assert x.dtype == torch.float32
        np.testing.assert_array_equal(x.numpy(), rows())
    (x,) = streamed(Samples(torch.from_numpy(rows()).double()), shape=(2, 1, 1)).in_order(50)
    assert x.shape == (23, 2, 1, 1)
    batches = list(streamed(Samples(rows()), num_workers=2).in_order(10))
    np.testing.assert_array_equal(torch.cat(batches).numpy(), rows())
    assert streamed(Samples(rows())).labels() == [-i for i in range(23)]


class InBatches(Samples):
    def __getitem__(self, index):
        raise AssertionError("one by one")

    def __getitems__(self, indices):
        return [(self.X[i], i) for i in indices]


def test_data_set_that_reads_many_at_once():
    (x,) = streamed(InBatches(rows())).in_order(50)
    np.testing.assert_array_equal(x.numpy(), rows())


BAD = [
    (np.zeros(3, dtype=np.float32), r"sample 4 has shape \(3,\), the first one \(2,\)"),
    (np.array([0, np.nan]), "sample 4 holds NaN"),
    (np.array([0, 1e300]), "sample 4 holds NaN, infinity or a value too large"),
    (np.zeros(2, dtype=np.uint8), "sample 4 is torch.uint8, the first one is float32"),
    (np.array([0.0, 500.0]), r"sample 4 spans \[0, 500\], outside clip_values"),
    ("text", "sample 4 of the data set is str"),
    (None, "sample 4 of the data set is NoneType"),
]


@pytest.mark.parametrize(
    ("num_workers", "value", "message"), [*((0, *bad) for bad in BAD), (2, *BAD[0]), (2, *BAD[5])]
)
def test_bad_samples_are_named(num_workers, value, message, children):
    X = streamed(Samples(rows(), odd={4: value}), num_workers)
    X.box = (0.0, 100.0)
    with pytest.raises(BadSampleError, match=message):
        list(X.in_order(3))
    assert not children()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_randomness_of_the_data_set(num_workers):
    """Follows from the seed and the batch, whichever process draws; nothing else is disturbed."""
    order = [np.arange(3), np.arange(3), np.arange(7)]
    state = torch.get_rng_state()
    seen = [x for x, _ in streamed(Noisy(rows()), num_workers).batches(order, seed=3)]
    assert torch.equal(torch.get_rng_state(), state)
    expected = [x for x, _ in streamed(Noisy(rows())).batches(order, seed=3)]
    assert all(map(torch.equal, seen, expected))
    assert not torch.equal(seen[0], seen[1])
    (other,) = [x for x, _ in streamed(Noisy(rows())).batches(order[:1], seed=4)]
    assert not torch.equal(seen[0], other)


def test_a_process_that_reads_dies(children):
    X = streamed(Samples(rows(), odd={20: killed}), num_workers=2)
    with pytest.raises(RuntimeError, match=r"data has died.*num_workers=0"):
        X.labels()
    assert not children()


def test_processes_end_with_the_iterator(children):
    X = streamed(Samples(rows()), num_workers=2)
    with closing(iter(mini_batches(X, paired=True))) as batches:
        next(batches)
        assert len(children()) == 4
    assert not children()


class Failing(Samples):
    def __getitem__(self, index):
        raise KeyError("on purpose")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_of_the_data_set_are_its_own(num_workers, children):
    with pytest.raises(KeyError, match="on purpose"):
        list(streamed(Failing(rows()), num_workers).in_order(5))
    assert not children()


def test_fingerprint():
    X = rows(400)
    found = streamed(Samples(X)).fingerprint()
    assert found == streamed(Samples(X.copy()), num_workers=2).fingerprint()
    last, shorter = X.copy(), X[:399]
    last[-1, -1] += 1
    others = [streamed(Samples(part)).fingerprint() for part in (last, shorter)]
    assert len({found, *others}) == 3
    assert streamed(Noisy(X)).fingerprint() == streamed(Noisy(X)).fingerprint()
