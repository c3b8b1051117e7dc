"""GAL against the equation in plain loops, and at arrangements with known cosines."""

import math

import naive_equations as naive
import pytest
import torch

from robust_ensembles.losses import gal_regularizer

MEMBERS = [2, 3, 4, 5]
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def simplex(n_members):
    """Edges with cosines of -1 / (n_members - 1), one sample."""
    corners = torch.eye(n_members, dtype=torch.float64)
    return (corners - 1 / n_members)[:, None]


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("scale", [1.0, 1e-5])
@pytest.mark.parametrize("eps_mode", ["torch2", "torch1"])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_regularizer(n_members, eps_mode, scale, weight):
    g = scale * random(n_members, 4, 6)
    found = gal_regularizer(g, cos_eps_mode=eps_mode, sample_weight=weight)
    expected = naive.gal_regularizer(g.numpy(), eps_mode, weight)
    assert float(found) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("n_members", "orthogonal", "regular", "parallel"),
    [(3, 1.0986, 0.5986, 2.0986), (5, 2.3026, 2.0526, 3.3026)],
)
def test_known_cosines(n_members, orthogonal, regular, parallel):
    corners = torch.eye(n_members, dtype=torch.float64)[:, None]
    same = torch.ones(n_members, 1, 4, dtype=torch.float64)
    found = [float(gal_regularizer(g)) for g in (corners, simplex(n_members), same)]
    assert found == pytest.approx([orthogonal, regular, parallel], abs=5e-5)


def test_sign_counts():
    """Opposed gradients are better than orthogonal ones."""
    g = random(1, 4, 6)
    opposed = gal_regularizer(torch.cat([g, -g]))
    assert float(opposed) == pytest.approx(-1)
    assert float(gal_regularizer(torch.cat([g, g]))) == pytest.approx(1)


def test_lengths_do_not_count_and_members_are_interchangeable():
    g = random(4, 4, 6)
    lengths = torch.tensor([1e-4, 3.0, 50.0, 1.0], dtype=torch.float64).view(4, 1, 1)
    torch.testing.assert_close(gal_regularizer(lengths * g), gal_regularizer(g))
    torch.testing.assert_close(gal_regularizer(g[[2, 0, 3, 1]]), gal_regularizer(g))


def test_old_torch_takes_short_gradients_for_orthogonal():
    g = 1e-7 * torch.ones(3, 4, 1, dtype=torch.float64)
    assert float(gal_regularizer(g)) == pytest.approx(1 + math.log(3))
    damped = gal_regularizer(g, cos_eps_mode="torch1")
    assert float(damped) == pytest.approx(math.log(3), abs=1e-5)


def test_weight_zero_removes_a_sample():
    g = random(3, 4, 6)
    changed = g.clone()
    changed[:, 2] = random(3, 6, seed=1)
    assert gal_regularizer(g, sample_weight=WEIGHT) == gal_regularizer(
        changed, sample_weight=WEIGHT
    )
    assert gal_regularizer(g) != gal_regularizer(changed)
