"""CEAT's disparity weights and distances."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch

from robust_ensembles.losses import disparity_weights, squared_distance, weighted_distance

PEERS = ["pair_sum", "pair_mean", "range", "exp_pair_mean"]


def uniform(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("peers", PEERS)
@pytest.mark.parametrize("n_members", [1, 2, 3, 4, 5])
def test_weights(n_members, peers, tau):
    h = uniform(n_members, 6)
    found = disparity_weights(h, tau, peers=peers)
    expected = naive.disparity_weights(h.numpy(), tau, peers)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert (found >= 1).all()


def test_default_is_pair_sum():
    h = uniform(4, 6)
    assert torch.equal(disparity_weights(h, 5.0), disparity_weights(h, 5.0, peers="pair_sum"))


@pytest.mark.parametrize("peers", PEERS)
def test_three_members_are_the_paper(peers):
    """exp(tau |h_b - h_c|), whatever the generalisation."""
    h = uniform(3, 6)
    found = disparity_weights(h, 5.0, peers=peers)
    for a, b, c in [(0, 1, 2), (1, 0, 2), (2, 0, 1)]:
        torch.testing.assert_close(found[a], (5 * (h[b] - h[c]).abs()).exp())


@pytest.mark.parametrize("peers", PEERS)
@pytest.mark.parametrize("n_members", [1, 2, 3, 4, 5])
def test_one_when_peers_agree(n_members, peers):
    h = torch.full((n_members, 3), 0.3, dtype=torch.float64)
    h[0] = 0.9  # the trained member's own probability does not count
    found = disparity_weights(h, 5.0, peers=peers)
    torch.testing.assert_close(found[0], torch.ones(3, dtype=torch.float64))
    if n_members > 2:
        assert (found[1:] > 1.5).all()


def test_lone_dissenter_of_four():
    """Two of three pairs disagree: 2 e^tau - 1, stronger than e^tau for three members."""
    h = torch.tensor([[0.5], [0.0], [1.0], [1.0]], dtype=torch.float64)
    e = math.exp(2.0)
    expected = {"pair_sum": 2 * e - 1, "pair_mean": (2 * e + 1) / 3, "range": e}
    expected["exp_pair_mean"] = math.exp(4 / 3)
    for peers, value in expected.items():
        assert float(disparity_weights(h, 2.0, peers=peers)[0, 0]) == pytest.approx(value)


@pytest.mark.parametrize("peers", PEERS)
def test_permutation_of_members(peers):
    h, order = uniform(5, 6), [4, 2, 0, 1, 3]
    found = disparity_weights(h[order], 3.0, peers=peers)
    torch.testing.assert_close(found, disparity_weights(h, 3.0, peers=peers)[order])


@pytest.mark.parametrize("n_members", [2, 3, 4])
def test_no_gradient_reaches_the_peers(n_members):
    """d L_m / d theta_j = 0 for j != m, and none through m's own weight."""
    p = uniform(n_members, 6, 3).requires_grad_()
    weights = disparity_weights(p[..., 0], 5.0)
    assert not weights.requires_grad
    distances = squared_distance(p, torch.zeros(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad((weights[0] * distances[0]).sum(), p)
    expected = torch.zeros_like(p)
    expected[0] = 2 * weights[0][:, None] * p[0].detach()
    torch.testing.assert_close(gradient, expected)


def test_squared_distance():
    a, b = uniform(3, 6, 4), uniform(3, 6, 4, seed=1)
    expected = sum((a[..., c] - b[..., c]) ** 2 for c in range(4))
    torch.testing.assert_close(squared_distance(a, b), expected)
    torch.testing.assert_close(squared_distance(a, b, reduce="mean"), expected / 4)


def test_distance_flows_into_both_sides():
    p = uniform(2, 6, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(squared_distance(p[0], p[1]).sum(), p)
    torch.testing.assert_close(gradient[0], -gradient[1])
    torch.testing.assert_close(gradient[0], 2 * (p[0] - p[1]).detach())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_weighted_distance(weighted, normalize):
    weights, distances = 1 + uniform(3, 5), uniform(3, 5, seed=1)
    sample_weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 1.5]) if weighted else None
    found = weighted_distance(weights, distances, sample_weight, normalize=normalize)
    expected = 0.0
    for w, d in zip(weights.numpy(), distances.numpy(), strict=True):
        w = w / np.mean(w) if normalize else w
        expected += naive.batch_mean(list(w * d), sample_weight)
    assert float(found) == pytest.approx(expected, abs=1e-10)
