"""The ensemble's output, cross-entropy, weighted means, norms and cosines."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from naive_equations import random

from robust_ensembles.losses import (
    batch_mean,
    cosine,
    ensemble_log_proba,
    member_cross_entropy,
    pair_cosines,
    safe_norm,
)


@pytest.mark.parametrize("n_members", [1, 2, 3, 5])
def test_log_mean_probability(n_members):
    logits = random(n_members, 6, 4, scale=3)
    found = ensemble_log_proba(logits).numpy()
    np.testing.assert_allclose(found, naive.ensemble_log_proba(logits.numpy()), atol=1e-10)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-12)


def test_cross_entropy_of_log_proba_is_minus_log_pbar():
    logits, y = random(3, 6, 4), torch.arange(6) % 4
    pbar = logits.softmax(dim=-1).mean(dim=0)
    found = F.cross_entropy(ensemble_log_proba(logits), y)
    torch.testing.assert_close(found, -pbar[torch.arange(6), y].log().mean(), atol=1e-12, rtol=0)


def test_permutation_of_members_and_shift_of_logits():
    logits = random(4, 5, 3)
    expected = ensemble_log_proba(logits)
    shifted = logits[[2, 0, 3, 1]] + random(4, 5, 1, seed=1, scale=9)
    torch.testing.assert_close(ensemble_log_proba(shifted), expected, atol=1e-12, rtol=0)
    of_log_proba = ensemble_log_proba(logits.log_softmax(dim=-1))
    torch.testing.assert_close(of_log_proba, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("gap", [20.0, 110.0, 200.0])
def test_float32_keeps_large_logit_gaps(gap):
    """`log(clamp(pbar, 1e-40))` ends at -92."""
    logits = torch.tensor([[[gap, 0.0, -1.0]], [[gap + 1, 0.0, 2.0]]], requires_grad=True)
    found = ensemble_log_proba(logits)
    expected = ensemble_log_proba(logits.detach().double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert found[0, 1] < 1 - gap
    (gradient,) = torch.autograd.grad(found[0, 1], logits)
    assert gradient.isfinite().all()
    assert gradient[0, 0, 1] > 0.5


def test_float32_members_that_contradict_each_other():
    logits = torch.tensor([[[200.0, 0.0]], [[0.0, 200.0]]])
    expected = torch.full((1, 2), -math.log(2))
    torch.testing.assert_close(ensemble_log_proba(logits), expected)


def test_member_cross_entropy():
    logits, y = random(3, 6, 4), torch.arange(6) % 4
    found = member_cross_entropy(logits, y)
    for member, value in zip(logits.numpy(), found, strict=True):
        rows = [-math.log(naive.softmax(row)[label]) for row, label in zip(member, y, strict=True)]
        assert value == pytest.approx(np.mean(rows), abs=1e-12)


def test_batch_mean_divides_by_the_number_of_samples():
    values, weight = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([2.0, 0.0, 0.5])
    assert batch_mean(values) == 3
    assert batch_mean(values, weight) == pytest.approx(5 / 3)


@pytest.mark.parametrize("eps_mode", ["torch2", "torch1"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize("n_members", [1, 2, 3, 5])
def test_pair_cosines(n_members, scale, eps_mode):
    """Both definitions of the guard, down to where they bite."""
    g = random(n_members, 4, 6, scale=scale)
    found = pair_cosines(g, eps_mode=eps_mode)
    expected = [
        [naive.cosine(g[i, b], g[j, b], eps_mode) for b in range(4)]
        for i, j in naive.pairs(n_members)
    ]
    assert found.shape == (len(expected), 4)
    np.testing.assert_allclose(found, np.reshape(expected, (-1, 4)), atol=1e-10)


def test_old_torch_damped_short_gradients():
    """1% of the true cosine at a norm of 1e-5."""
    g = torch.zeros(2, 1, 3, dtype=torch.float64)
    g[:, 0, 0] = 1e-5
    assert pair_cosines(g, eps_mode="torch1") == pytest.approx(0.01)
    assert pair_cosines(g) == pytest.approx(1.0)


def test_cosine_and_norm():
    a, b = random(5, 3), random(5, 3, seed=1)
    expected = [naive.cosine(a[i], b[i]) for i in range(5)]
    np.testing.assert_allclose(cosine(a, b), expected, atol=1e-12)
    np.testing.assert_allclose(cosine(a, b), F.cosine_similarity(a, b), atol=1e-12)
    np.testing.assert_allclose(safe_norm(a), a.norm(dim=1), atol=1e-12)
    assert safe_norm(torch.zeros(3)) == pytest.approx(1e-8)
