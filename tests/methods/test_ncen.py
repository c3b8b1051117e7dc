"""NCEn against the equations in plain loops, in both formulations."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch

from robust_ensembles.losses import gradient_correlations, nceen_regularizer

MEMBERS = [2, 3, 4, 5]
FORMULATIONS = ["paper", "released"]


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("norm_sign", [1, -1])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("n_members", MEMBERS)
def test_regularizer(n_members, formulation, norm_sign, weighted):
    g = random(n_members, 4, 6)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64) if weighted else None
    for lambdas in [(1.0, 0.0), (0.0, 1.0), (0.06, 0.04)]:
        found = nceen_regularizer(
            g,
            lambda_cos=lambdas[0],
            lambda_norm=lambdas[1],
            formulation=formulation,
            norm_sign=norm_sign,
            sample_weight=weight,
        )
        expected = naive.ncen_regularizer(g.numpy(), *lambdas, formulation, norm_sign, weight)
        assert float(found) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("n_members", MEMBERS)
def test_norm_term_is_minus_the_sum_of_squares(n_members):
    g = random(n_members, 4, 6)
    _, u = gradient_correlations(g)
    assert u.sum(dim=0).abs().max() < 1e-9
    found = nceen_regularizer(g, lambda_cos=0.0, lambda_norm=1.0)
    assert float(found) == pytest.approx(-float(u.square().mean()), abs=1e-10)


@pytest.mark.parametrize("n_members", MEMBERS)
def test_cosine_terms_in_closed_form(n_members):
    g = random(n_members, 4, 6)
    c, _ = gradient_correlations(g)
    paper = nceen_regularizer(g, lambda_cos=1.0, lambda_norm=0.0)
    expected = (c.sum(dim=0).square() - c.square().sum(dim=0)).mean() / n_members
    assert float(paper) == pytest.approx(float(expected), abs=1e-12)
    released = nceen_regularizer(g, lambda_cos=1.0, lambda_norm=0.0, formulation="released")
    both_orders = [
        sum(
            math.exp(c[i, b] + c[j, b])
            for i in range(n_members)
            for j in range(n_members)
            if i != j
        )
        for b in range(4)
    ]
    # the norm term of the released code is log k where lambda_norm = 0 does not remove it
    assert float(released) == pytest.approx(np.log(both_orders).mean(), abs=1e-12)


@pytest.mark.parametrize("n_members", MEMBERS)
def test_correlations(n_members):
    g = random(n_members, 4, 6)
    c, u = gradient_correlations(g)
    length = g.norm(dim=-1)
    k_mean = n_members * g.mean(dim=0).norm(dim=-1)
    torch.testing.assert_close((length * c).sum(dim=0), k_mean)  # sum n_i c_i = k |gbar|
    torch.testing.assert_close(u, length / length.mean(dim=0) - 1, atol=1e-10, rtol=0)


@pytest.mark.parametrize("factor", [1e-3, 1 / 128, 100.0])
def test_rescaling_all_gradients_changes_nothing(factor):
    g = random(3, 4, 6)
    for found, expected in zip(
        gradient_correlations(factor * g), gradient_correlations(g), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_invariances(formulation):
    g = random(4, 4, 6)
    lambdas = {"lambda_cos": 0.3, "lambda_norm": 0.2, "formulation": formulation}
    permuted = nceen_regularizer(g[[2, 3, 0, 1]], **lambdas)
    torch.testing.assert_close(permuted, nceen_regularizer(g, **lambdas))
    assert nceen_regularizer(g[:1], **lambdas) == 0


def test_equal_gradients():
    """c_i = 1 and u_i = 0: (k - 1) and log(k (k - 1))."""
    g = random(1, 4, 6).expand(4, 4, 6)
    assert float(nceen_regularizer(g, lambda_cos=1.0, lambda_norm=1.0)) == pytest.approx(3)
    found = nceen_regularizer(g, lambda_cos=1.0, lambda_norm=0.0, formulation="released")
    assert float(found) == pytest.approx(2 + math.log(12))


def test_sign_of_the_norm_term():
    """The paper's sign rewards unequal magnitudes; -1 punishes them."""
    g = random(3, 4, 6)
    even = g / g.norm(dim=-1, keepdim=True)
    terms = {"lambda_cos": 0.0, "lambda_norm": 1.0}
    assert nceen_regularizer(g, **terms) < nceen_regularizer(even, **terms)
    balanced = nceen_regularizer(even, norm_sign=-1, **terms)
    assert nceen_regularizer(g, norm_sign=-1, **terms) > balanced
