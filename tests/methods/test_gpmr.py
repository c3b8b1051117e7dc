"""GPMR: against the equations in plain loops, in both formulations, and its whole objective."""

import naive_equations as naive
import numpy as np
import pytest
import torch
from naive_equations import FORMULATIONS, MEMBERS, random, with_weights
from naive_steps import check, cross_entropies, loss_gradients, make_step, objective

from robust_ensembles import GPMREnsembleClassifier
from robust_ensembles.losses import gpmr_regularizer

DIRECTION = {"lambda_div": 1.0, "lambda_eq": 0.0}
MAGNITUDE = {"lambda_div": 0.0, "lambda_eq": 1.0}


def simplices(n_members, n_samples):
    """Another regular simplex for each sample, with edges of another length."""
    corners = torch.eye(n_members, dtype=torch.float64) - 1 / n_members
    rotations = torch.linalg.qr(random(n_samples, n_members, n_members)).Q
    lengths = torch.arange(1, n_samples + 1, dtype=torch.float64).view(-1, 1, 1)
    return (lengths * (corners @ rotations)).transpose(0, 1)


@with_weights
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("n_members", MEMBERS)
def test_regularizer(n_members, formulation, weight):
    g = random(n_members, 4, 6)
    for div, eq in [(1.0, 0.0), (0.0, 1.0), (0.04, 10.0)]:
        found = gpmr_regularizer(
            g, lambda_div=div, lambda_eq=eq, formulation=formulation, sample_weight=weight
        )
        expected = naive.gpmr_regularizer(g.numpy(), div, eq, formulation, weight)
        assert float(found) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("n_members", MEMBERS)
def test_regular_simplex_is_the_minimum(n_members, formulation):
    g = simplices(n_members, 4)
    for terms in (DIRECTION, MAGNITUDE):
        assert gpmr_regularizer(g, formulation=formulation, **terms).abs() < 1e-12
        bent = g + random(*g.shape, seed=1)
        assert gpmr_regularizer(bent, formulation=formulation, **terms) > 1e-3


def test_equal_lengths():
    """On each sample for the paper; over the whole batch in the released code."""
    g = random(3, 2, 6)
    g = g / g.norm(dim=-1, keepdim=True)
    assert gpmr_regularizer(g, **MAGNITUDE) < 1e-15
    assert gpmr_regularizer(g, formulation="released", **MAGNITUDE) < 1e-15
    swapped = g * torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]])[..., None]
    assert gpmr_regularizer(swapped, formulation="released", **MAGNITUDE) < 1e-15
    assert gpmr_regularizer(swapped, **MAGNITUDE) > 1e-3


@pytest.mark.parametrize("n_members", [2, 3, 5])
@pytest.mark.parametrize("n_samples", [1, 8, 64])
def test_formulations_have_one_scale(n_members, n_samples):
    """Exactly so where a member's gradients are equally long on all samples."""
    directions = random(n_members, n_samples, 6)
    lengths = torch.arange(1.0, n_members + 1, dtype=torch.float64).view(-1, 1, 1)
    g = lengths * directions / directions.norm(dim=-1, keepdim=True) / n_samples
    paper = gpmr_regularizer(g, **MAGNITUDE)
    released = gpmr_regularizer(g, formulation="released", **MAGNITUDE)
    assert float(paper) == pytest.approx(float(released), rel=1e-9)
    variance = (n_members**2 - 1) / 12  # of the lengths 1 to N
    assert float(released) == pytest.approx(variance / (n_members**2 * n_samples), rel=1e-9)


def test_formulations_share_the_direction():
    g = random(4, 4, 6)
    paper = gpmr_regularizer(g, **DIRECTION)
    assert gpmr_regularizer(g, formulation="released", **DIRECTION) == paper
    torch.testing.assert_close(gpmr_regularizer(100 * g, **DIRECTION), paper)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_known_values(formulation):
    """Parallel gradients of two members, of lengths 3 and 1, on one sample."""
    g = torch.tensor([[[3.0, 0.0]], [[1.0, 0.0]]], dtype=torch.float64)
    assert float(gpmr_regularizer(g, formulation=formulation, **DIRECTION)) == pytest.approx(4)
    found = gpmr_regularizer(g, formulation=formulation, **MAGNITUDE)
    assert float(found) == pytest.approx(1 / 4)


# --- the objective ---------------------------------------------------------------------------


def naive_gpmr(step, formulation="paper", *, div=0.04, eq=10.0):
    g, weight = loss_gradients(step), step.sample_weight
    return {
        "cross_entropy": np.mean(cross_entropies(step)),
        "direction": naive.gpmr_regularizer(g, div, 0.0, formulation, weight),
        "magnitude": naive.gpmr_regularizer(g, 0.0, eq, formulation, weight),
    }


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [2, 3, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_objective(formulation, n_members, weighted):
    step = make_step(n_members, weighted=weighted)
    params = {"formulation": formulation, "lambda_div": 0.7, "lambda_eq": 5.0}
    found = objective(GPMREnsembleClassifier, step, **params)
    check(found, naive_gpmr(step, formulation, div=0.7, eq=5.0))


def test_defaults():
    step = make_step(3)
    check(objective(GPMREnsembleClassifier, step), naive_gpmr(step))
