"""CLDL: against the equations in plain loops, in both formulations, and its whole objective."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch
from naive_equations import FORMULATIONS, MEMBERS, random, with_weights
from naive_steps import (
    check,
    gradients_of,
    make_step,
    naive_divergence,
    naive_soft_label,
    objective,
    samples,
)
from small_estimators import make
from torch import nn

from robust_ensembles import CLDLEnsembleClassifier
from robust_ensembles.losses import (
    cldl_gradient_diversity,
    cldl_label_diversity,
    soft_label_divergence,
)


@pytest.fixture
def y():
    return torch.tensor([0, 3, 1, 2])


@pytest.mark.parametrize("formulation", ["paper", "released"])
def test_soft_label_divergence(formulation):
    s, log_p = random(4, 5).softmax(dim=-1), random(4, 5, seed=1).log_softmax(dim=-1)
    found = soft_label_divergence(s, log_p, formulation=formulation)
    expected = naive.cldl_divergence(s.numpy(), log_p.numpy(), formulation)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    both = soft_label_divergence(s.expand(3, 4, 5), log_p, formulation=formulation)
    torch.testing.assert_close(both, found.expand(3, 4))


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
    logits = random(2, 4, 5).requires_grad_()
    s, log_p = logits[0].softmax(dim=-1), logits[1].log_softmax(dim=-1)
    (gradient,) = torch.autograd.grad(soft_label_divergence(s, log_p).sum(), logits)
    assert (gradient.abs().sum(dim=(1, 2)) > 0.1).all()


@with_weights
@pytest.mark.parametrize("reduction", ["sample", "element_mean"])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_label_diversity(n_members, reduction, y, weight):
    s = random(n_members, 4, 5).softmax(dim=-1)
    found = cldl_label_diversity(s, y, jsd_reduction=reduction, sample_weight=weight)
    expected = naive.cldl_label_diversity(s.numpy(), y, reduction, weight)
    assert float(found) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("formulation", "reduction"), [("paper", "sample"), ("released", "element_mean")]
)
def test_formulation_sets_the_reduction(formulation, reduction, y):
    s = random(3, 4, 5).softmax(dim=-1)
    other = {"sample": "element_mean", "element_mean": "sample"}[reduction]
    found = cldl_label_diversity(s, y, formulation=formulation)
    assert found == cldl_label_diversity(s, y, jsd_reduction=reduction)
    chosen = cldl_label_diversity(s, y, formulation=formulation, jsd_reduction=other)
    assert chosen == cldl_label_diversity(s, y, jsd_reduction=other) != found


def test_element_mean_is_n_classes_minus_one_times_smaller(y):
    """With two members the logarithm undoes the exponential."""
    s = random(2, 4, 5).softmax(dim=-1)
    per_sample = cldl_label_diversity(s, y)
    element_mean = cldl_label_diversity(s, y, formulation="released")
    # the released code adds 1e-6 inside its logarithm
    assert float(element_mean) == pytest.approx(float(per_sample) / 4, abs=1e-6)


@pytest.mark.parametrize("formulation", ["paper", "released"])
def test_label_diversity_invariances(formulation, y):
    s = random(4, 4, 5).softmax(dim=-1)
    found = cldl_label_diversity(s, y, formulation=formulation)
    same = cldl_label_diversity(s[:1].expand(4, 4, 5), y, formulation=formulation)
    offset = {"paper": 0.0, "released": 1e-6}[formulation]
    assert float(same) == pytest.approx(offset, abs=1e-11)
    assert cldl_label_diversity(s[:1], y, formulation=formulation) == 0
    label = torch.nn.functional.one_hot(y, 5).bool()
    moved = s.masked_fill(label, 0.1234)
    torch.testing.assert_close(cldl_label_diversity(moved, y, formulation=formulation), found)


def test_label_diversity_of_disjoint_labels_is_one_bit():
    s = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]], dtype=torch.float64)
    assert float(cldl_label_diversity(s, torch.tensor([0]))) == pytest.approx(1, abs=1e-9)


@with_weights
@pytest.mark.parametrize("eps_mode", ["torch2", "torch1"])
@pytest.mark.parametrize("divisor", ["pairs", "members"])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_gradient_diversity(n_members, divisor, eps_mode, weight):
    g = 2e-5 * random(n_members, 4, 7)
    found = cldl_gradient_diversity(
        g, gradient_norm=divisor, cos_eps_mode=eps_mode, sample_weight=weight
    )
    expected = naive.cldl_gradient_diversity(g.numpy(), divisor, eps_mode, weight)
    assert float(found) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("n_members", MEMBERS)
def test_released_cosine_term_is_larger(n_members):
    """(N - 1) / 2 times the paper's: twice at N = 5."""
    g = random(n_members, 4, 7)
    paper = cldl_gradient_diversity(g)
    assert paper == cldl_gradient_diversity(g, gradient_norm="pairs")
    released = cldl_gradient_diversity(g, formulation="released")
    assert float(released / paper) == pytest.approx((n_members - 1) / 2)
    chosen = cldl_gradient_diversity(g, formulation="released", gradient_norm="pairs")
    assert chosen == paper


def test_gradient_diversity_invariances():
    g = random(4, 4, 7)
    found = cldl_gradient_diversity(g)
    factors = torch.tensor([1e-4, -3.0, 50.0, 1.0], dtype=torch.float64).view(4, 1, 1)
    torch.testing.assert_close(cldl_gradient_diversity(g * factors), found)
    assert cldl_gradient_diversity(g[:1]) == 0
    assert float(cldl_gradient_diversity(g[:1].expand(3, 4, 7))) == pytest.approx(1)


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


# --- the objective ---------------------------------------------------------------------------

# of each formulation: what is compared, the reduction, and the divisor
CHOICES = {
    "paper": ("soft_labels", "sample", "pairs"),
    "released": ("confusion_vectors", "element_mean", "members"),
}
OPTIONS = ("label_diversity_on", "jsd_reduction", "gradient_norm")


def naive_cldl(step, formulation, *, gamma=4.0, alpha=2.0, beta=4.0, **options):
    chosen = dict(zip(OPTIONS, CHOICES[formulation], strict=True)) | options

    def divergence(member, x, y):
        return naive_divergence(step, member, x, y, gamma=gamma, formulation=formulation)

    kl, compared = [], []
    for m in step.module:
        kl.append([divergence(m, x, y) for x, y, _ in samples(step)])
        labels = [naive_soft_label(step, m, x, y, gamma) for x, y, _ in samples(step)]
        compared.append([pair[chosen[OPTIONS[0]] == "confusion_vectors"] for pair in labels])
    weight = step.sample_weight
    label_diversity = naive.cldl_label_diversity(
        np.array(compared), step.y, chosen["jsd_reduction"], weight
    )
    gradient_diversity = naive.cldl_gradient_diversity(
        gradients_of(step, divergence), chosen["gradient_norm"], sample_weight=weight
    )
    return {
        "soft_label_divergence": np.mean([naive.batch_mean(row, weight) for row in kl]),
        "label_diversity": -alpha * label_diversity,
        "gradient_diversity": beta * gradient_diversity,
    }


@pytest.mark.parametrize("option", [None, *OPTIONS])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [1, 2, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_objective(formulation, n_members, weighted, option):
    """Each option set to what the other formulation has, alone."""
    step = make_step(n_members, weighted=weighted, auxiliary=True)
    other = dict(zip(OPTIONS, CHOICES[FORMULATIONS[formulation == "paper"]], strict=True))
    params = {"gamma": 3.0, "alpha": 5.0, "beta": 0.5}
    params |= {option: other[option]} if option else {}
    found = objective(CLDLEnsembleClassifier, step, formulation=formulation, **params)
    check(found, naive_cldl(step, formulation, **params))


def test_options_of_the_own_formulation_change_nothing():
    step = make_step(3, auxiliary=True)
    for formulation, values in CHOICES.items():
        params = dict(zip(OPTIONS, values, strict=True))
        found = objective(CLDLEnsembleClassifier, step, formulation=formulation, **params)
        assert found == objective(CLDLEnsembleClassifier, step, formulation=formulation)


def test_defaults():
    step = make_step(3, auxiliary=True)
    check(objective(CLDLEnsembleClassifier, step), naive_cldl(step, "paper"))


# --- refused ---------------------------------------------------------------------------------


def test_no_final_linear_layer(rejects, digit_images):
    X, _, y, _ = digit_images

    class Convolution(nn.Sequential):
        def __init__(self, n_classes):
            super().__init__(nn.Conv2d(1, n_classes, 8), nn.Flatten())

    estimator = make(CLDLEnsembleClassifier, module=Convolution)
    rejects(estimator, X, y, "ends in a linear layer.*Convolution has no nn.Linear")


def test_embeddings_of_different_sizes(rejects, digit_rows):
    X, _, y, _ = digit_rows
    params = [{"hidden_sizes": (size,)} for size in (8, 8, 4)]
    estimator = make(CLDLEnsembleClassifier, module=["mlp"] * 3, module_params=params)
    rejects(estimator, X, y, r"\[8, 8, 4\]")
