"""LAFED's smoothed labels, in both formulations, and the cross-entropy with them."""

import naive_equations as naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robust_ensembles.losses import hierarchical_labels, soft_cross_entropy

MEMBERS = [2, 3, 4, 5]
Y = torch.tensor([0, 3, 1, 1])


def labels(n_members=3, smoothing=0.05, n_classes=4, **params):
    return hierarchical_labels(
        Y, n_members=n_members, n_classes=n_classes, smoothing=smoothing, **params
    )


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("formulation", ["paper", "released"])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_labels(n_members, formulation, smoothing):
    found = labels(n_members, smoothing, formulation=formulation, dtype=torch.float64)
    expected = naive.hierarchical_labels(Y, n_members, 4, smoothing, formulation)
    np.testing.assert_allclose(found, expected, atol=1e-15)
    assert torch.equal(found.argmax(dim=-1), Y.expand(n_members, 4))


@pytest.mark.parametrize("n_classes", [4, 10])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_labels_sum_to_one(n_members, n_classes):
    found = labels(n_members, 0.3, n_classes, dtype=torch.float64).sum(dim=-1)
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-14, rtol=0)


@pytest.mark.parametrize("n_classes", [4, 10])
def test_released_labels_sum_to_one_for_the_second_member_only(n_classes):
    found = labels(3, 0.05, n_classes, formulation="released", dtype=torch.float64).sum(dim=-1)
    for member, expected in zip(found, [0.95, 1.0, 1.05], strict=True):
        np.testing.assert_allclose(member, expected, atol=1e-12)


def test_smoothing_grows_with_the_member():
    found = labels(4, 0.3)
    assert torch.equal(found[0], F.one_hot(Y, 4).float())
    given_away = 1 - found.max(dim=-1).values
    np.testing.assert_allclose(given_away[:, 0], [0, 0.1, 0.2, 0.3], atol=1e-7)


def test_dtype_and_a_single_member():
    assert labels().dtype == torch.float32
    assert labels(dtype=torch.float64).dtype == torch.float64
    assert torch.equal(labels(1, 0.3), F.one_hot(Y, 4).float()[None])


@pytest.mark.parametrize("n_members", MEMBERS)
def test_soft_cross_entropy(n_members):
    logits, targets = random(n_members, 4, 4), random(n_members, 4, 4, seed=1).softmax(dim=-1)
    found = soft_cross_entropy(logits, targets)
    for row, z, t in zip(found, logits.numpy(), targets.numpy(), strict=True):
        np.testing.assert_allclose(row, naive.soft_cross_entropy(z, t), atol=1e-12)


def test_soft_cross_entropy_is_torchs():
    logits, targets = random(5, 4), random(5, 4, seed=1).softmax(dim=-1)
    expected = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, targets), expected)
    hard = soft_cross_entropy(logits[:4], F.one_hot(Y, 4))
    torch.testing.assert_close(hard, F.cross_entropy(logits[:4], Y, reduction="none"))


def test_soft_cross_entropy_does_not_normalize_labels():
    """The released labels sum to 1.05 for the last member."""
    logits, targets = random(4, 4), random(4, 4, seed=1).softmax(dim=-1)
    torch.testing.assert_close(
        soft_cross_entropy(logits, 1.05 * targets), 1.05 * soft_cross_entropy(logits, targets)
    )


def test_soft_cross_entropy_of_certain_members():
    logits = torch.tensor([[1000.0, 0.0, 0.0, 0.0]] * 4, requires_grad=True)
    value = soft_cross_entropy(logits, labels()[2])
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert value[1] > 900
