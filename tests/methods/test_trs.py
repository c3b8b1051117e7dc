"""TRS against the equations in plain loops."""

import naive_equations as naive
import pytest
import torch

from robust_ensembles.losses import cldl_gradient_diversity, trs_similarity, trs_smoothness

MEMBERS = [2, 3, 4, 5]
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
weights = pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@weights
@pytest.mark.parametrize("scale", [1.0, 1e-5])
@pytest.mark.parametrize("eps_mode", ["torch2", "torch1"])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_similarity(n_members, eps_mode, scale, weight):
    g = scale * random(n_members, 4, 6)
    found = trs_similarity(g, cos_eps_mode=eps_mode, sample_weight=weight)
    expected = naive.trs_similarity(g.numpy(), eps_mode, weight)
    assert float(found) == pytest.approx(expected, abs=1e-10)


@weights
@pytest.mark.parametrize("norm_power", [2, 1])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_smoothness(n_members, norm_power, weight):
    g = random(n_members, 4, 6)
    found = trs_smoothness(g, norm_power=norm_power, sample_weight=weight)
    expected = naive.trs_smoothness(g.numpy(), norm_power, weight)
    assert float(found) == pytest.approx(expected, abs=1e-10)


def test_default_is_squared():
    g = random(3, 4, 6)
    assert trs_smoothness(g) == trs_smoothness(g, norm_power=2)
    torch.testing.assert_close(trs_smoothness(5 * g), 25 * trs_smoothness(g))
    linear = trs_smoothness(g, norm_power=1)
    torch.testing.assert_close(trs_smoothness(5 * g, norm_power=1), 5 * linear)


@pytest.mark.parametrize(("norm_power", "expected"), [(2, 50.0), (1, 10.0)])
def test_smoothness_of_known_lengths(norm_power, expected):
    """Twice the mean over members, not the sum."""
    g = torch.tensor([3.0, 4.0], dtype=torch.float64).expand(3, 4, 2)
    assert float(trs_smoothness(g, norm_power=norm_power)) == pytest.approx(expected)


def test_similarity_of_known_angles():
    g = random(1, 4, 6)
    for factors, expected in [((1, 1), 1.0), ((1, -1), 1.0), ((1, -1, 5), 1.0)]:
        found = trs_similarity(torch.cat([factor * g for factor in factors]))
        assert float(found) == pytest.approx(expected)
    orthogonal = torch.eye(3, dtype=torch.float64)[:, None]
    assert trs_similarity(orthogonal) == 0


@pytest.mark.parametrize("n_members", MEMBERS)
def test_similarity_is_cldls(n_members):
    g = random(n_members, 4, 6)
    torch.testing.assert_close(trs_similarity(g), cldl_gradient_diversity(g))


@pytest.mark.parametrize("function", [trs_similarity, trs_smoothness])
def test_members_are_interchangeable(function):
    g = random(4, 4, 6)
    torch.testing.assert_close(function(g[[2, 0, 3, 1]]), function(g))


@pytest.mark.parametrize("function", [trs_similarity, trs_smoothness])
def test_weight_zero_removes_a_sample(function):
    g = random(3, 4, 6)
    changed = g.clone()
    changed[:, 2] = random(3, 6, seed=1)
    assert function(g, sample_weight=WEIGHT) == function(changed, sample_weight=WEIGHT)
    assert function(g) != function(changed)
