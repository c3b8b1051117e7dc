"""CLDL against the equations in plain loops, in both formulations."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch

from robust_ensembles.losses import (
    cldl_gradient_diversity,
    cldl_label_diversity,
    soft_label_divergence,
)

MEMBERS = [2, 3, 4, 5]


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def y():
    return torch.tensor([0, 3, 1, 1, 2])


@pytest.fixture
def weight():
    return torch.tensor([0.5, 2.0, 0.0, 1.0, 1.5], dtype=torch.float64)


@pytest.mark.parametrize("formulation", ["paper", "released"])
def test_soft_label_divergence(formulation):
    s, log_p = random(5, 4).softmax(dim=-1), random(5, 4, seed=1).log_softmax(dim=-1)
    found = soft_label_divergence(s, log_p, formulation=formulation)
    expected = naive.cldl_divergence(s.numpy(), log_p.numpy(), formulation)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    both = soft_label_divergence(s.expand(3, 5, 4), log_p, formulation=formulation)
    torch.testing.assert_close(both, found.expand(3, 5))


def test_divergence_is_zero_for_equal_and_not_negative():
    s, p = random(50, 4).softmax(dim=-1), random(50, 4, seed=1).softmax(dim=-1)
    assert soft_label_divergence(s, s.log()).abs().max() < 1e-12
    assert soft_label_divergence(s, p.log()).min() > 0


def test_divergence_with_empty_classes():
    """0 log 0 = 0; the released offset bounds the loss near 14."""
    s, log_p = torch.tensor([[1.0, 0.0]]), torch.tensor([[-100.0, 0.0]])
    torch.testing.assert_close(soft_label_divergence(s, log_p), torch.tensor([100.0]))
    assert soft_label_divergence(s, log_p, formulation="released") == pytest.approx(13.8, abs=0.1)


def test_divergence_teaches_both_sides():
    logits = random(2, 5, 4).requires_grad_()
    s, log_p = logits[0].softmax(dim=-1), logits[1].log_softmax(dim=-1)
    (gradient,) = torch.autograd.grad(soft_label_divergence(s, log_p).sum(), logits)
    assert (gradient.abs().sum(dim=(1, 2)) > 0.1).all()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["sample", "element_mean"])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_label_diversity(n_members, reduction, weighted, y, weight):
    s, weight = random(n_members, 5, 4).softmax(dim=-1), weight if weighted else None
    found = cldl_label_diversity(s, y, jsd_reduction=reduction, sample_weight=weight)
    expected = naive.cldl_label_diversity(s.numpy(), y, reduction, weight)
    assert float(found) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("formulation", "reduction"), [("paper", "sample"), ("released", "element_mean")]
)
def test_formulation_sets_the_reduction(formulation, reduction, y):
    s = random(3, 5, 4).softmax(dim=-1)
    other = {"sample": "element_mean", "element_mean": "sample"}[reduction]
    found = cldl_label_diversity(s, y, formulation=formulation)
    assert found == cldl_label_diversity(s, y, jsd_reduction=reduction)
    chosen = cldl_label_diversity(s, y, formulation=formulation, jsd_reduction=other)
    assert chosen == cldl_label_diversity(s, y, jsd_reduction=other) != found


def test_element_mean_is_n_classes_minus_one_times_smaller(y):
    """With two members the logarithm undoes the exponential."""
    s = random(2, 5, 4).softmax(dim=-1)
    per_sample = cldl_label_diversity(s, y)
    element_mean = cldl_label_diversity(s, y, formulation="released")
    # the released code adds 1e-6 inside its logarithm
    assert float(element_mean) == pytest.approx(float(per_sample) / 3, abs=1e-6)


@pytest.mark.parametrize("formulation", ["paper", "released"])
def test_label_diversity_invariances(formulation, y):
    s = random(4, 5, 4).softmax(dim=-1)
    found = cldl_label_diversity(s, y, formulation=formulation)
    permuted = cldl_label_diversity(s[[3, 1, 0, 2]], y, formulation=formulation)
    torch.testing.assert_close(permuted, found, atol=1e-12, rtol=0)
    same = cldl_label_diversity(s[:1].expand(4, 5, 4), y, formulation=formulation)
    offset = {"paper": 0.0, "released": 1e-6}[formulation]
    assert float(same) == pytest.approx(offset, abs=1e-11)
    assert cldl_label_diversity(s[:1], y, formulation=formulation) == 0
    label = torch.nn.functional.one_hot(y, 4).bool()
    moved = s.masked_fill(label, 0.1234)
    torch.testing.assert_close(cldl_label_diversity(moved, y, formulation=formulation), found)


def test_label_diversity_of_disjoint_labels_is_one_bit():
    s = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]], dtype=torch.float64)
    assert float(cldl_label_diversity(s, torch.tensor([0]))) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("eps_mode", ["torch2", "torch1"])
@pytest.mark.parametrize("divisor", ["pairs", "members"])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_gradient_diversity(n_members, divisor, eps_mode, weighted, weight):
    g, weight = 2e-5 * random(n_members, 5, 7), weight if weighted else None
    found = cldl_gradient_diversity(
        g, gradient_norm=divisor, cos_eps_mode=eps_mode, sample_weight=weight
    )
    expected = naive.cldl_gradient_diversity(g.numpy(), divisor, eps_mode, weight)
    assert float(found) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("n_members", MEMBERS)
def test_released_cosine_term_is_larger(n_members):
    """(N - 1) / 2 times the paper's: twice at N = 5."""
    g = random(n_members, 5, 7)
    paper = cldl_gradient_diversity(g)
    assert paper == cldl_gradient_diversity(g, gradient_norm="pairs")
    released = cldl_gradient_diversity(g, formulation="released")
    assert float(released / paper) == pytest.approx((n_members - 1) / 2)
    chosen = cldl_gradient_diversity(g, formulation="released", gradient_norm="pairs")
    assert chosen == paper


def test_gradient_diversity_invariances():
    g = random(4, 5, 7)
    found = cldl_gradient_diversity(g)
    factors = torch.tensor([1e-4, -3.0, 50.0, 1.0], dtype=torch.float64).view(4, 1, 1)
    torch.testing.assert_close(cldl_gradient_diversity(g * factors), found)
    torch.testing.assert_close(cldl_gradient_diversity(g[[1, 3, 2, 0]]), found)
    assert cldl_gradient_diversity(g[:1]) == 0
    assert float(cldl_gradient_diversity(g[:1].expand(3, 5, 7))) == pytest.approx(1)


@pytest.mark.parametrize(
    ("gamma", "n_classes", "low", "high"),
    [(4.0, 10, 0.836, 0.943), (3.0, 10, 0.652, 0.859), (4.0, 100, 0.35, 0.60)],
)
def test_bounds_of_the_soft_label(gamma, n_classes, low, high):
    """The extremes of softmax(gamma onehot(y) + c) over probability vectors c."""
    best = torch.zeros(n_classes, dtype=torch.float64)
    best[0] = 1.0
    worst = torch.zeros(n_classes, dtype=torch.float64)
    worst[1] = 1.0
    bounds = [float((gamma * best + c).softmax(dim=0)[0]) for c in (worst, best)]
    assert bounds == pytest.approx([low, high], abs=6e-3)
    assert math.isclose(bounds[0], math.exp(gamma) / (math.exp(gamma) + math.e + n_classes - 2))
