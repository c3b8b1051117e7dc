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


def batches(n=23, batch_size=5, *, augmentation=NOTHING, weighted=True, subsets=(), **params):
    """Sample i is (i, -i), has label i, and weight i + 0.5."""
    index = np.arange(n)
    X = np.stack([index, -index], axis=1).astype(np.float32)
    weight = (index + 0.5).astype(np.float32) if weighted else None
    return over(EnsembleDataset(X, index, weight), batch_size, augmentation, subsets, **params)


def over(dataset, batch_size, augmentation, subsets=(), *, seed=0, paired=False):
    for indices in subsets:
        dataset = Subset(dataset, indices)
    return MiniBatches(
        dataset,
        batch_size=batch_size,
        device=torch.device("cpu"),
        dtype=torch.float32,
        seed=seed,
        augmentation=augmentation,
        paired=paired,
    )


def order(iterator, epoch=0):
    iterator.epoch = epoch
    return torch.cat([batch.y for batch in iterator]).tolist()


def one_epoch(iterator, epoch=0):
    """x, x_target and sample_index of all batches."""
    iterator.epoch = epoch
    parts = [(b.x, b.x_target, b.sample_index) for b in iterator]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def shift(x, generator):
    """Both features."""
    return x + torch.rand(len(x), 1, generator=generator)


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


SUBSETS = [(), ([20, 3, 9, 14, 7],), ([20, 3, 9, 14, 7], [4, 0, 2])]


@pytest.mark.parametrize("subsets", SUBSETS)
@pytest.mark.parametrize("augmentation", [None, NOTHING])
def test_rows_stay_together(augmentation, subsets):
    """Also in a part of the data set, of which the index says the row of the whole."""
    for batch in batches(augmentation=augmentation, subsets=subsets):
        y = batch.y.float()
        assert torch.equal(batch.x, torch.stack([y, -y], dim=1))
        assert torch.equal(batch.sample_weight, y + 0.5)
        assert torch.equal(batch.sample_index, batch.y)
        assert batch.sample_index.dtype == torch.int64
        assert batch.x_target is None
    assert all(batch.sample_weight is None for batch in batches(weighted=False))
    assert order(batches(subsets=SUBSETS[2], batch_size=2, augmentation=None)) == [7, 20, 9]


@pytest.mark.parametrize("subsets", SUBSETS[:2])
def test_noisy_copies_double_the_epoch(subsets):
    """Copies count as further samples: row i is i, its copy n + i."""
    copies = NoisyCopies(0.1, clip_values=None)
    augmentation = AugmentationPipeline([copies, lambda x, _: x + torch.tensor([0.0, 1000.0])])
    iterator = batches(augmentation=augmentation, subsets=subsets, paired=True)
    seen = list(iterator)
    assert len(iterator) == len(seen) == (2 if subsets else 9)  # the last of 6 samples
    y = torch.cat([batch.y for batch in seen])
    x, x_target, index = one_epoch(iterator)
    rows = sorted(subsets[0]) if subsets else list(range(23))
    is_copy = x[:, 1] < 100
    noise = x[:, 0] - y
    assert torch.equal(noise != 0, is_copy)
    assert noise.abs().max() < 0.5
    assert sorted(y[is_copy].tolist()) == sorted(y[~is_copy].tolist()) == rows
    assert torch.equal(index, y + 23 * is_copy)
    assert (x_target[:, 1] < 100).sum() == is_copy.sum()  # targets are copies as often
    sizes = {int((batch.x[:, 1] < 100).sum()) for batch in seen}
    assert len(sizes) > 1  # mixed into the batches, not appended


def test_augmentation_is_drawn_for_each_epoch_and_seed():
    def shifts(epoch, seed=0):
        """What is added to each sample."""
        iterator = batches(augmentation=AugmentationPipeline(shift), seed=seed)
        iterator.epoch = epoch
        seen = [(b.y, b.x.sum(dim=1) / 2) for b in iterator]
        y, shift_of = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return shift_of[y.argsort()]

    first = shifts(0)
    assert torch.equal(shifts(0), first)
    assert first.unique().numel() > 20
    for other in (shifts(1), shifts(0, seed=1)):
        # other numbers, not the same ones for other samples
        assert (other.sort().values - first.sort().values).abs().max() > 1e-3


def test_bytes_become_unit_floats():
    X = np.arange(256, dtype=np.uint8)[:, None]
    dataset = EnsembleDataset(X, np.zeros(256, dtype=np.int64))
    iterator = over(dataset, 300, None)
    (batch,) = iterator
    np.testing.assert_array_equal(batch.x.numpy(), X.astype(np.float32) / np.float32(255))


def pairs(*args, **params):
    return batches(*args, paired=True, **params)


class TestPairs:
    """The targets are another order of the same samples."""

    @pytest.mark.parametrize("subsets", [(), SUBSETS[2]])
    def test_both_have_all_samples(self, subsets):
        x, x_target, _ = one_epoch(pairs(subsets=subsets))
        rows = [7, 9, 20] if subsets else list(range(23))
        for part in (x, x_target):
            assert sorted(part[:, 0].tolist()) == rows
            assert torch.equal(part[:, 1], -part[:, 0])
        assert subsets or not torch.equal(x, x_target)
        assert [b.x_target.shape for b in pairs(21)] == [b.x.shape for b in pairs(21)]

    def test_the_order_belongs_to_epoch_and_seed(self):
        again = pairs()
        one_epoch(again, epoch=1)
        _, target, _ = one_epoch(pairs(), epoch=3)
        assert torch.equal(one_epoch(again, epoch=3)[1], target)
        others = [one_epoch(pairs(), epoch=4)[1], one_epoch(pairs(seed=1), epoch=3)[1]]
        assert not any(torch.equal(target, other) for other in others)

    def test_x_is_what_it_is_without_pairs(self):
        for augmentation in (NOTHING, AugmentationPipeline(shift)):
            alone, paired = (make(augmentation=augmentation) for make in (batches, pairs))
            for found, expected in zip(paired, alone, strict=True):
                for name in ("x", "y", "sample_index"):
                    assert torch.equal(getattr(found, name), getattr(expected, name))

    def test_draws_are_independent(self):
        """Over many epochs each sample meets all others, itself no more often than they."""
        iterator = pairs(5, 2)
        meetings = np.zeros((5, 5))
        for epoch in range(400):
            x, x_target, _ = one_epoch(iterator, epoch)
            np.add.at(meetings, (x[:, 0].long().numpy(), x_target[:, 0].long().numpy()), 1)
        assert meetings.min() > 40  # 80 expected, with a standard deviation of 8
        assert meetings.max() < 120

    def test_augmented_on_its_own(self):
        x, x_target, _ = one_epoch(pairs(augmentation=AugmentationPipeline(shift)))
        shifts = [part.sum(dim=1) / 2 for part in (x, x_target)]
        for part in shifts:
            assert part.unique().numel() > 15
        assert (shifts[0] - shifts[1]).abs().min() > 1e-4
