"""ADP against the equations in plain loops, and at its two extremes."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch

from robust_ensembles.losses import adp_regularizer, non_true_log_determinant, without_true_class

MEMBERS = [2, 3, 4, 5]
Y = torch.tensor([0, 6, 3, 3])
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)


def probabilities(n_members, n_samples=4, n_classes=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = n_members, n_samples, n_classes
    return torch.randn(shape, generator=generator, dtype=torch.float64).softmax(dim=-1)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_regularizer(n_members, weight):
    p = probabilities(n_members)
    for alpha, beta in [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)]:
        found = adp_regularizer(p, Y, alpha=alpha, beta=beta, sample_weight=weight)
        expected = naive.adp_regularizer(p.numpy(), Y, alpha, beta, weight)
        assert float(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n_members", MEMBERS)
def test_log_determinant(n_members):
    p = probabilities(n_members)
    found = non_true_log_determinant(p, Y)
    np.testing.assert_allclose(found, naive.adp_log_determinant(p.numpy(), Y), atol=1e-9)
    short = p * 1e-4  # where the 1e-12 under the root is seen, hence an equal part of it
    found_short = non_true_log_determinant(short, Y)
    np.testing.assert_allclose(found_short, naive.adp_log_determinant(short.numpy(), Y), atol=1e-9)
    assert (found - found_short).abs().min() > 1e-6


@pytest.mark.parametrize("n_members", MEMBERS)
def test_orthogonal_columns(n_members):
    """Each member gives its doubts to a class of its own: N log(1 + 1e-6)."""
    p = torch.zeros(n_members, 1, n_members + 1, dtype=torch.float64)
    p[:, 0, 0] = 0.6
    p[torch.arange(n_members), 0, torch.arange(1, n_members + 1)] = 0.4
    found = float(non_true_log_determinant(p, torch.tensor([0])))
    assert found == pytest.approx(n_members * math.log1p(1e-6), abs=1e-10)


@pytest.mark.parametrize("n_members", MEMBERS)
def test_identical_columns(n_members):
    """log(N + 1e-6) + (N - 1) log 1e-6, whatever they are."""
    p = probabilities(1).expand(n_members, 4, 7)
    expected = math.log(n_members + 1e-6) + (n_members - 1) * math.log(1e-6)
    found = non_true_log_determinant(p, Y)
    np.testing.assert_allclose(found, np.full(4, expected), atol=1e-5)


def test_more_members_than_other_classes():
    """Five columns of three entries span no volume."""
    p = probabilities(5, n_classes=4)
    found = non_true_log_determinant(p, torch.tensor([0, 1, 2, 3]))
    assert (found < math.log(1e-6)).all()


def test_uniform_prediction_has_the_largest_entropy():
    p = torch.full((3, 4, 7), 1 / 7, dtype=torch.float64)
    found = adp_regularizer(p, Y, alpha=2.0, beta=0.0)
    assert float(found) == pytest.approx(-2 * math.log(7))
    assert found < adp_regularizer(probabilities(3), Y, alpha=2.0, beta=0.0)


def test_entropy_is_the_ensembles():
    """Sure members that contradict each other: log 2, not 0."""
    p = torch.eye(3, dtype=torch.float64)[:2, None]
    found = adp_regularizer(p, torch.tensor([0]), alpha=1.0, beta=0.0)
    assert float(found) == pytest.approx(-math.log(2))


def test_true_class_is_not_compared():
    p = probabilities(3)
    moved = p.scatter(2, Y.expand(3, 4)[..., None], 0.123)
    torch.testing.assert_close(non_true_log_determinant(moved, Y), non_true_log_determinant(p, Y))
    other = non_true_log_determinant(p, (Y + 1) % 7)
    assert (other - non_true_log_determinant(p, Y)).abs().min() > 1e-3


def test_both_terms_are_rewards():
    same, different = probabilities(1).expand(3, 4, 7), probabilities(3)
    terms = {"alpha": 0.0, "beta": 1.0}
    assert adp_regularizer(different, Y, **terms) < adp_regularizer(same, Y, **terms)


def test_members_are_interchangeable():
    p = probabilities(4)
    found = adp_regularizer(p[[2, 0, 3, 1]], Y, alpha=2.0, beta=0.5)
    torch.testing.assert_close(found, adp_regularizer(p, Y, alpha=2.0, beta=0.5))


def test_weight_zero_removes_a_sample():
    p = probabilities(3)
    changed = p.clone()
    changed[:, 2] = p[:, 2].roll(1, dims=-1)
    for terms in ({"alpha": 1.0, "beta": 0.0}, {"alpha": 0.0, "beta": 1.0}):
        values = [adp_regularizer(q, Y, sample_weight=WEIGHT, **terms) for q in (p, changed)]
        assert values[0] == values[1]
    assert non_true_log_determinant(p, Y)[2] != non_true_log_determinant(changed, Y)[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sure", [1, 3])
def test_certain_members(sure, dtype):
    """Nothing but the true class is left in float32: columns of length zero."""
    logits = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:sure] = 1000 * torch.nn.functional.one_hot(Y, 7).to(dtype)
    logits.requires_grad_()
    p = logits.softmax(dim=-1)
    assert without_true_class(p, Y)[0].abs().max() == 0
    value = adp_regularizer(p, Y, alpha=2.0, beta=0.5)
    (first,) = torch.autograd.grad(value, logits, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), logits)
    for tensor in (value, first, second):
        assert tensor.isfinite().all()


def test_without_true_class():
    p = probabilities(3)
    found = without_true_class(p, Y)
    expected = [[naive.without_label(row, y) for row, y in zip(m, Y, strict=True)] for m in p]
    np.testing.assert_array_equal(found, expected)
    p.requires_grad_()
    (gradient,) = torch.autograd.grad(without_true_class(p, Y).sum(), p)
    assert torch.equal(gradient, 1.0 - torch.nn.functional.one_hot(Y, 7).expand(3, 4, 7))
