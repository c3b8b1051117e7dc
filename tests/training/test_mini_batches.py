"""Batches of the training set."""

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from robust_ensembles.training import (
    AugmentationPipeline,
    EnsembleDataset,
    MiniBatches,
    NoisyCopies,
)

NOTHING = AugmentationPipeline(None)


def batches(n=23, batch_size=5, *, augmentation=NOTHING, weighted=True, seed=0, subset=None):
    """Sample i is (i, -i), has label i, and weight i + 0.5."""
    index = np.arange(n)
    X = np.stack([index, -index], axis=1).astype(np.float32)
    weight = (index + 0.5).astype(np.float32) if weighted else None
    dataset = EnsembleDataset(X, index, weight)
    for indices in subset or ():
        dataset = Subset(dataset, indices)
    return MiniBatches(
        dataset,
        batch_size=batch_size,
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=seed,
        augmentation=augmentation,
    )


def order(iterator, epoch=0):
    iterator.epoch = epoch
    return torch.cat([batch.y for batch in iterator]).tolist()


def test_order_belongs_to_the_epoch():
    first = order(batches(), epoch=3)
    assert order(batches(), epoch=3) == first
    assert sorted(first) == list(range(23))
    orders = {tuple(order(batches(seed=seed), epoch)) for seed in (0, 1) for epoch in range(3)}
    assert len(orders) == 6
    again = batches()
    order(again, epoch=7)
    assert order(again, epoch=3) == first  # nothing is carried from epoch to epoch


def test_validation_is_in_order():
    assert order(batches(augmentation=None)) == list(range(23))


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [
        (23, 5, [5, 5, 5, 5, 3]),
        (21, 5, [5, 5, 5, 6]),
        (20, 5, [5, 5, 5, 5]),
        (6, 5, [6]),
        (1, 5, [1]),
        (3, 1, [1, 2]),
        (4, 1000, [4]),
    ],
)
@pytest.mark.parametrize("augmentation", [NOTHING, None])
def test_no_last_batch_of_one(n, batch_size, sizes, augmentation):
    """BatchNorm cannot train on one sample."""
    iterator = batches(n, batch_size, augmentation=augmentation)
    assert [len(batch.x) for batch in iterator] == sizes
    assert len(iterator) == len(sizes)


def test_rows_stay_together():
    for batch in batches():
        y = batch.y.float()
        assert torch.equal(batch.x, torch.stack([y, -y], dim=1))
        assert torch.equal(batch.sample_weight, y + 0.5)
    assert all(batch.sample_weight is None for batch in batches(weighted=False))


def test_nested_subsets():
    outer, inner = [20, 3, 9, 14, 7], [4, 0, 2]
    iterator = batches(subset=[outer, inner], batch_size=2, augmentation=None)
    assert order(iterator) == [7, 20, 9]
    for batch in batches(subset=[outer, inner], batch_size=2):
        assert torch.equal(batch.x[:, 0], batch.y.float())
        assert torch.equal(batch.sample_weight, batch.y + 0.5)


def test_noisy_copies_double_the_epoch():
    augmentation = AugmentationPipeline([NoisyCopies(0.1, clip_values=None), lambda x, _: x + 1000])
    iterator = batches(augmentation=augmentation)
    seen = list(iterator)
    x, y = torch.cat([b.x for b in seen]), torch.cat([b.y for b in seen])
    assert len(iterator) == len(seen) == 9  # the last of 6 samples
    assert torch.equal(y.bincount(), torch.full((23,), 2))
    original = x[:, 0] > 900
    assert torch.equal(x[original, 0], y[original] + 1000.0)
    assert sorted(y[original].tolist()) == sorted(y[~original].tolist()) == list(range(23))
    noise = x[~original, 0] - y[~original]
    assert ((noise != 0) & (noise.abs() < 0.5)).all()
    sizes = {int((b.x[:, 0] > 900).sum()) for b in seen}
    assert len(sizes) > 1  # mixed into the batches, not appended


def test_augmentation_is_drawn_per_epoch():
    augmentation = AugmentationPipeline(
        lambda x, g: x + torch.rand(len(x), 1, generator=g)  # shifts both features
    )
    iterator = batches(augmentation=augmentation)

    def shifts(epoch):
        iterator.epoch = epoch
        seen = [(b.y, b.x.sum(dim=1) / 2) for b in iterator]
        y, shift = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return shift[y.argsort()]

    assert torch.equal(shifts(0), shifts(0))
    assert not torch.equal(shifts(0), shifts(1))
    assert shifts(0).unique().numel() > 20


def test_bytes_become_unit_floats():
    X = np.arange(256, dtype=np.uint8)[:, None]
    dataset = EnsembleDataset(X, np.zeros(256, dtype=np.int64))
    iterator = MiniBatches(
        dataset,
        batch_size=300,
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=0,
        augmentation=None,
    )
    (batch,) = iterator
    np.testing.assert_array_equal(batch.x.numpy(), X.astype(np.float32) / np.float32(255))
