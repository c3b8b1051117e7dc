"""Random changes of batches."""

import math

import pytest
import torch
import torch.nn.functional as F

from robust_ensembles.training import (
    AugmentationPipeline,
    GaussianNoise,
    NoisyCopies,
    RandomCrop,
    RandomHorizontalFlip,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=50, height=7, width=5, dtype=torch.float32):
    return torch.rand(n, 3, height, width, generator=generator(1), dtype=dtype) + 0.1


@pytest.mark.parametrize("padding", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_crop_is_a_loop_over_samples(padding, dtype):
    x = images(dtype=dtype)
    found = RandomCrop(padding)(x, generator())
    padded = F.pad(x, [padding] * 4)
    windows = range(2 * padding + 1)
    offsets = []
    for sample, image in zip(padded, found, strict=True):
        matches = [
            (i, j)
            for i in windows
            for j in windows
            if torch.equal(sample[:, i : i + 7, j : j + 5], image)
        ]
        assert len(matches) == 1
        offsets += matches
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert {i for i, _ in offsets} == {j for _, j in offsets} == set(windows)
    assert len(set(offsets)) > min(15, len(windows) ** 2 - 3)  # rows and columns independently


def test_crop_offsets_come_from_the_generator():
    x = images()
    again = RandomCrop(2)(x, generator())
    assert torch.equal(RandomCrop(2)(x, generator()), again)
    assert not torch.equal(RandomCrop(2)(x, generator(1)), again)
    offsets = torch.randint(5, (2, len(x), 1), generator=generator()).squeeze(-1)
    padded = F.pad(x, [2] * 4)
    expected = [p[:, i : i + 7, j : j + 5] for p, i, j in zip(padded, *offsets, strict=True)]
    assert torch.equal(again, torch.stack(expected))


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_flip(p):
    x = images(1000)
    found = RandomHorizontalFlip(p)(x, generator())
    flipped = (found == x.flip(3)).flatten(1).all(dim=1)
    same = (found == x).flatten(1).all(dim=1)
    assert (flipped ^ same).all()
    assert flipped.float().mean() == pytest.approx(p, abs=0.05)


def test_noise():
    x = images(2000)
    found = GaussianNoise(sigma=0.2, p=0.4)(x, generator())
    noise = (found - x).flatten(1)
    noisy = (noise != 0).any(dim=1)
    assert noisy.float().mean() == pytest.approx(0.4, abs=0.04)
    assert (noise[noisy] != 0).float().mean() > 0.99
    assert noise[noisy].std() == pytest.approx(0.2, abs=0.005)
    assert noise[noisy].mean() == pytest.approx(0, abs=0.005)
    assert torch.unique(noise[noisy][:, 0]).numel() == noisy.sum()  # each sample its own
    assert found.max() > 1.3  # released code does not clip
    assert found.min() < 0


def test_noise_clipped():
    found = GaussianNoise(sigma=0.5, p=1.0, clip_values=(0, 1))(images(), generator())
    assert (found.min(), found.max()) == (0, 1)


def test_noise_on_rows():
    found = GaussianNoise(sigma=0.2, p=1.0)(torch.zeros(500, 20), generator())
    assert found.std() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("transform", [RandomCrop(), RandomHorizontalFlip()])
def test_needs_images(transform):
    with pytest.raises(ValueError, match=r"needs images .* Set input_shape"):
        transform(torch.zeros(5, 64), generator())


def test_crop_needs_padding():
    with pytest.raises(ValueError, match="padding must be at least 1"):
        RandomCrop(0)(images(), generator())


def test_noisy_copies_get_nothing_else():
    x = images(400)
    pipeline = AugmentationPipeline(
        [RandomCrop(2), NoisyCopies(0.15), RandomHorizontalFlip(), lambda x, _: x + 100]
    )
    assert pipeline.n_copies == 2
    copy = (torch.arange(400) % 2).long()
    found = pipeline(x, copy, generator())
    assert (found[copy == 0] >= 100).all()
    copies = found[copy == 1]
    assert (copies.min(), copies.max()) == (0, 1)
    noise = copies - x[copy == 1]
    inside = (copies > 0) & (copies < 1) & ((x[copy == 1] - 0.5).abs() < 0.05)
    truncated = 0.15 * math.sqrt(0.997)  # at more than three standard deviations: hardly
    assert noise[inside].std() == pytest.approx(truncated, rel=0.05)
    assert (noise != 0).float().mean() > 0.99


def test_pipeline_applies_in_order():
    def double(x, _):
        return 2 * x

    def plus_one(x, _):
        return x + 1

    x, copy = torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)
    both = AugmentationPipeline([double, plus_one]), AugmentationPipeline((plus_one, double))
    assert [p(x, copy, generator())[0, 0].item() for p in both] == [3, 4]
    assert AugmentationPipeline(double)(x, copy, generator())[0, 0] == 2
    assert AugmentationPipeline(None)(x, copy, generator()) is x
    assert AugmentationPipeline(None).n_copies == 1


def test_pipeline_refuses():
    with pytest.raises(TypeError, match="augmentation must be a callable"):
        AugmentationPipeline(["crop"])
    with pytest.raises(ValueError, match="more than one NoisyCopies"):
        AugmentationPipeline([NoisyCopies(0.1), NoisyCopies(0.2)])
