"""FASTEN against the equations in plain loops."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch

from robust_ensembles.losses import inter_model_divergence, intra_model_divergence, log_mean

VIEWS = [1, 2, 3, 5]
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.5], dtype=torch.float64)
weights = pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])


def log_proba(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(*shape, generator=generator, dtype=torch.float64)
    return logits.log_softmax(dim=-1)


@weights
@pytest.mark.parametrize("n_views", VIEWS)
def test_intra(n_views, weight):
    log_q = log_proba(n_views, 4, 5)
    found = intra_model_divergence(log_q, weight)
    expected = naive.intra_model_divergence(log_q.exp().numpy(), weight)
    assert float(found) == pytest.approx(expected, abs=1e-12)


@weights
@pytest.mark.parametrize("cap", [None, 1.0, 100.0])
@pytest.mark.parametrize("n_views", VIEWS)
def test_inter(n_views, cap, weight):
    log_q, peer = log_proba(n_views, 4, 5), log_proba(3, 4, 5, seed=1)
    found = inter_model_divergence(log_q, log_mean(peer), weight, cap=cap)
    q, q_of_peer = log_q.exp().numpy(), peer.exp().numpy()
    expected = naive.inter_model_divergence(q, q_of_peer, weight, math.inf if cap is None else cap)
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_cap_is_on_each_sample():
    log_q, peer = log_proba(2, 4, 5, scale=3), log_mean(log_proba(2, 4, 5, seed=1))
    each = torch.stack(
        [inter_model_divergence(log_q[:, b : b + 1], peer[b : b + 1]) for b in range(4)]
    )
    cap = float(each.median())
    expected = each.clamp_max(cap).mean()
    torch.testing.assert_close(inter_model_divergence(log_q, peer, cap=cap), expected)
    assert expected < min(cap, each.mean())


@pytest.mark.parametrize("n_views", VIEWS)
def test_equal_views_do_not_diverge(n_views):
    log_q = log_proba(1, 4, 5).expand(n_views, 4, 5)
    assert intra_model_divergence(log_q).abs() < 1e-14
    assert inter_model_divergence(log_q, log_q[0]).abs() < 1e-14


def test_divergences_are_not_negative():
    for seed in range(20):
        log_q = log_proba(2, 4, 5, seed=seed)
        assert intra_model_divergence(log_q) > 0
        assert inter_model_divergence(log_q, log_proba(4, 5, seed=seed + 100)) > 0


def test_inter_with_oneself_is_intra():
    log_q = log_proba(3, 4, 5)
    torch.testing.assert_close(
        inter_model_divergence(log_q, log_mean(log_q)), intra_model_divergence(log_q)
    )


def test_gradient_reaches_both_sides():
    """Through every view and through their mean."""
    log_q = log_proba(3, 4, 5).requires_grad_()
    peer = log_proba(4, 5, seed=1).requires_grad_()
    for value in (intra_model_divergence(log_q), inter_model_divergence(log_q, peer)):
        (gradient,) = torch.autograd.grad(value, log_q)
        assert (gradient.abs().sum(dim=(1, 2)) > 1e-3).all()
    (gradient,) = torch.autograd.grad(inter_model_divergence(log_q, peer), peer)
    assert (gradient.abs().sum(dim=1) > 1e-3).all()


def test_intra_gradient_of_one_view():
    """d/dq_v of a loss whose other view is fixed, as the released code uses it."""
    fixed, log_q = log_proba(1, 4, 5), log_proba(1, 4, 5, seed=1).requires_grad_()

    def loss(log_q):
        return intra_model_divergence(torch.cat([fixed, log_q]))

    assert torch.autograd.gradcheck(loss, (log_q,))


def test_detached_inter_has_no_gradient():
    """As released: both sides detached, nothing to learn from."""
    logits = torch.zeros(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    log_q = logits.log_softmax(dim=-1).detach()
    assert not inter_model_divergence(log_q[0], log_mean(log_q[1])).requires_grad
    one_side = logits.log_softmax(dim=-1)
    value = inter_model_divergence(one_side[0] * 2, log_mean(one_side[1]).detach())
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[1].abs().max() == 0


def test_cap_stops_the_gradient():
    log_q = log_proba(2, 4, 5, scale=20).requires_grad_()
    value = inter_model_divergence(log_q, log_proba(4, 5, seed=1), cap=1e-3)
    assert value.item() == pytest.approx(1e-3)
    assert torch.autograd.grad(value, log_q)[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_members(dtype):
    """One-hot predictions: probabilities underflow, their logarithms must not."""
    logits = torch.zeros(2, 3, 5, dtype=dtype)
    logits[0, :, 0] = logits[1, :, 1] = 1000.0
    logits.requires_grad_()
    log_q = logits.log_softmax(dim=-1)
    assert log_q.exp()[0, 0].min() == 0
    intra = intra_model_divergence(log_q)
    # the mean is half and half, each view gives the other's class exp(-1000)
    assert intra.item() == pytest.approx(500 - math.log(2), rel=1e-6)
    inter = inter_model_divergence(log_q[:1], log_q[1])
    assert inter.item() == pytest.approx(1000, rel=1e-6)
    for value in (intra, inter):
        (first,) = torch.autograd.grad(value, logits, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), logits, retain_graph=True)
        assert first.isfinite().all()
        assert second.isfinite().all()


def test_weight_zero_removes_a_sample():
    log_q, peer = log_proba(2, 4, 5), log_proba(4, 5, seed=1)
    changed = log_q.clone()
    changed[:, 2] = log_proba(2, 5, seed=2)
    for function in (
        lambda q, w: intra_model_divergence(q, w),
        lambda q, w: inter_model_divergence(q, peer, w),
        lambda q, w: inter_model_divergence(q, peer, w, cap=0.5),
    ):
        assert function(log_q, WEIGHT) == function(changed, WEIGHT)
    assert intra_model_divergence(log_q) != intra_model_divergence(changed)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_log_mean(n):
    log_q = log_proba(n, 4, 5)
    np.testing.assert_allclose(log_mean(log_q), np.log(log_q.exp().numpy().mean(axis=0)))
    far = log_q.float() - 1000
    torch.testing.assert_close(log_mean(far), (log_mean(log_q) - 1000).float())
