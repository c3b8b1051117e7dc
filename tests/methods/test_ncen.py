"""NCEn: against the equations in plain loops, in both formulations, and its whole objective."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch
from naive_equations import FORMULATIONS, MEMBERS, random, with_weights
from naive_steps import check, cross_entropy, gradients_of, logits_of, make_step, objective, samples

from robust_ensembles import NCEnEnsembleClassifier
from robust_ensembles.losses import gradient_correlations, nceen_regularizer


@with_weights
@pytest.mark.parametrize("norm_sign", [1, -1])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("n_members", MEMBERS)
def test_regularizer(n_members, formulation, norm_sign, weight):
    g = random(n_members, 4, 6)
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


# --- the objective ---------------------------------------------------------------------------


def naive_ncen(step, formulation="paper", *, cos=0.06, norm=0.04, sign=1, on_probabilities=False):
    def loss(member, x, y):
        z = logits_of(member, x)
        return cross_entropy(naive.softmax(z) if on_probabilities else z, y)

    g, weight = gradients_of(step, loss), step.sample_weight
    losses = [[loss(m, x, y) for x, y, _ in samples(step)] for m in step.module]
    return {
        "cross_entropy": np.mean([naive.batch_mean(row, weight) for row in losses]),
        "direction": naive.ncen_regularizer(g, cos, 0.0, formulation, sign, weight),
        "magnitude": naive.ncen_regularizer(g, 0.0, norm, formulation, sign, weight),
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"norm_sign": -1}, {"ce_on_probabilities": True}, {"ce_on_probabilities": False}],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [1, 2, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_objective(formulation, n_members, weighted, options):
    step = make_step(n_members, weighted=weighted)
    params = {"formulation": formulation, "lambda_cos": 0.7, "lambda_norm": 0.4, **options}
    expected = naive_ncen(
        step,
        formulation,
        cos=0.7,
        norm=0.4,
        sign=options.get("norm_sign", 1),
        on_probabilities=options.get("ce_on_probabilities", formulation == "released"),
    )
    check(objective(NCEnEnsembleClassifier, step, **params), expected)


def test_defaults():
    step = make_step(3)
    check(objective(NCEnEnsembleClassifier, step), naive_ncen(step))
