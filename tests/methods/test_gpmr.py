"""GPMR against the equations in plain loops, in both formulations."""

import naive_equations as naive
import pytest
import torch

from robust_ensembles.losses import gal_regularizer, gpmr_regularizer, trs_similarity

MEMBERS = [2, 3, 4, 5]
FORMULATIONS = ["paper", "released"]
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
DIRECTION = {"lambda_div": 1.0, "lambda_eq": 0.0}
MAGNITUDE = {"lambda_div": 0.0, "lambda_eq": 1.0}


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def simplices(n_members, n_samples):
    """Another regular simplex for each sample, with edges of another length."""
    corners = torch.eye(n_members, dtype=torch.float64) - 1 / n_members
    rotations = torch.linalg.qr(random(n_samples, n_members, n_members)).Q
    lengths = torch.arange(1, n_samples + 1, dtype=torch.float64).view(-1, 1, 1)
    return (lengths * (corners @ rotations)).transpose(0, 1)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
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


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_members_are_interchangeable(formulation):
    g = random(4, 4, 6)
    terms = {"lambda_div": 0.1, "lambda_eq": 1.0, "formulation": formulation}
    found = gpmr_regularizer(g[[2, 0, 3, 1]], **terms)
    torch.testing.assert_close(found, gpmr_regularizer(g, **terms))


@pytest.mark.parametrize("terms", [DIRECTION, MAGNITUDE], ids=["direction", "magnitude"])
def test_weight_zero_removes_a_sample(terms):
    g = random(3, 4, 6)
    changed = g.clone()
    changed[:, 2] = random(3, 6, seed=1)
    values = [gpmr_regularizer(v, sample_weight=WEIGHT, **terms) for v in (g, changed)]
    assert values[0] == values[1]
    assert gpmr_regularizer(g, **terms) != gpmr_regularizer(changed, **terms)


def test_single_member_has_nothing_to_compare():
    g = torch.ones(1, 3, 4)
    assert gpmr_regularizer(g, lambda_div=1.0, lambda_eq=1.0) == 0
    assert gal_regularizer(g) == 0
    assert trs_similarity(g) == 0
