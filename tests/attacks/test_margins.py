"""Over-confident ensembles: losses that round to zero make them look robust."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from small_models import ensemble, labelled, random
from torch import nn

from robust_ensembles.attacks import CW, PGD, is_broken
from robust_ensembles.attacks.engine.margins import LOSSES
from robust_ensembles.modules import Ensemble


class Scaled(nn.Module):
    """Makes a network sure of itself."""

    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x):
        return self.factor * self.network(x)


def digit_network(x, y, seed):
    """A small network, trained for a moment."""
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(0.15 * random(*parameter.shape, seed=100 * seed + i))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x[:500] / 16, dtype=torch.float32), torch.tensor(y[:500])


@pytest.fixture(scope="module")
def networks(digits):
    return [digit_network(*digits, seed) for seed in range(3)]


def robust_accuracy(module, attack, x, y):
    return float((~is_broken(module, attack(module, x, y), y)).float().mean())


def test_cross_entropy_overestimates_robustness(networks, digits):
    x, y = (part[:200] for part in digits)
    sure = Ensemble([Scaled(network, 30.0) for network in networks])
    found = {}
    for loss in ("margin", "cw_margin", "cross_entropy"):
        attack = PGD(eps=0.08, loss=loss, random_start=False, clip_values=(0, 1))
        found[loss] = robust_accuracy(sure, attack, x, y)
        found[loss, "float64"] = robust_accuracy(sure.double(), attack, x.double(), y)
        sure.float()
    assert 0.2 < found["margin"] < 0.8
    assert found["cross_entropy"] > found["margin"] + 0.05
    assert found["cross_entropy"] > found["cross_entropy", "float64"] + 0.05
    for loss in ("margin", "cw_margin"):
        assert found[loss] == pytest.approx(found[loss, "float64"], abs=0.01)


def test_gradient_signs_at_a_gap_of_200(networks, digits):
    x, _ = (part[:100] for part in digits)
    with torch.no_grad():
        logits = Ensemble(networks)(x).topk(2).values
        factor = float(200 / (logits[:, 0] - logits[:, 1]).median())
        y = Ensemble(networks)(x).argmax(dim=1)
    sure = Ensemble([Scaled(network, factor) for network in networks])

    def signs(loss, dtype):
        leaf = x.to(dtype).requires_grad_()
        losses = LOSSES[loss](sure.to(dtype).member_logits(leaf), y)
        return torch.autograd.grad(losses.sum(), leaf)[0].sign()

    truth = signs("margin", torch.float64)
    right = {loss: (signs(loss, torch.float32) == truth).float().mean() for loss in LOSSES}
    sure.float()
    assert right["margin"] > 0.99
    assert right["cross_entropy"] < 0.7


@pytest.mark.parametrize("gap", [20.0, 110.0, 200.0])
@pytest.mark.parametrize("loss", ["margin", "cw_margin"])
def test_margins_are_exact_at_large_gaps(loss, gap):
    logits = torch.tensor([[[gap, 0.0, -3.0]], [[gap, -2.0, 1.0]], [[gap, 0.5, 0.0]]])
    y = torch.tensor([0])
    leaves = [logits.clone().requires_grad_(), logits.double().requires_grad_()]
    values = [LOSSES[loss](leaf, y) for leaf in leaves]
    assert float(values[0].detach()) == pytest.approx(float(values[1].detach()), rel=1e-6)
    found, expected = (
        torch.autograd.grad(value.sum(), leaf)[0]
        for value, leaf in zip(values, leaves, strict=True)
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    assert float(found[:, 0, 0].sum()) == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("as_log_proba", [False, True])
def test_margins_see_the_runner_up(as_log_proba):
    """At pbar_y = 0.6 the usual "CW" loss on log-probabilities has no gradient."""
    logits = torch.tensor([[[0.6, 0.3, 0.1]]], dtype=torch.float64).log() + 2.0
    logits = logits.log_softmax(dim=-1) if as_log_proba else logits
    y = torch.tensor([0])
    expected = {"margin": 4 / 6, "cw_margin": 3 / 6, "cross_entropy": 1 / 0.6}
    expected["member_cross_entropy"] = 1 / 0.6
    for loss, ratio in expected.items():
        leaf = logits.clone().requires_grad_()
        value = LOSSES[loss](leaf, y)
        assert value.detach().exp() == pytest.approx(ratio)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        assert gradient[0, 0, 0] < -0.3
        assert gradient[0, 0, 1] > 0.2
    # the inert form, which must not come back: a product with the mask leaves a zero to win
    leaf = logits.clone().requires_grad_()
    log_p = leaf[0].log_softmax(dim=-1)
    own = torch.nn.functional.one_hot(y, 3)
    wrong = ((1 - own) * log_p).amax(dim=1)
    inert = -torch.relu((own * log_p).sum(dim=1) - wrong + 0.1)
    assert torch.autograd.grad(inert.sum(), leaf)[0].abs().max() == 0


def dlr_in_numpy(z, y):
    """Sample by sample, as in the paper, here to be made large."""
    values = []
    for row, label in zip(z, y, strict=True):
        ordered = np.sort(row)[::-1]
        wrong = max(np.delete(row, label))
        values.append((wrong - row[label]) / (ordered[0] - ordered[2]))
    return torch.tensor(values)


def test_losses_against_probabilities():
    logits, y = random(3, 7, 4), torch.arange(7) % 4
    p = logits.softmax(dim=-1)
    own = p.mean(dim=0)[torch.arange(7), y]
    others = p.mean(dim=0).scatter(1, y[:, None], 0.0)
    expected = {
        "margin": ((1 - own) / own).log(),
        "cw_margin": (others.amax(dim=1) / own).log(),
        "cross_entropy": -own.log(),
        "member_cross_entropy": -p[:, torch.arange(7), y].log().mean(dim=0),
        "member_margin": (1 / p[:, torch.arange(7), y] - 1).log().mean(dim=0),
        "dlr": dlr_in_numpy(p.mean(dim=0).log().numpy(), y.numpy()),
        "released_cw": -(own.log() + 0.1).clamp_min(0),
        "double_softmax": -p.mean(dim=0).softmax(dim=1).softmax(dim=1)[torch.arange(7), y].log(),
    }
    assert set(expected) == set(LOSSES)
    for loss, values in expected.items():
        torch.testing.assert_close(LOSSES[loss](logits, y), values, rtol=0, atol=1e-10)
    softplus = torch.nn.functional.softplus(LOSSES["margin"](logits, y))
    torch.testing.assert_close(softplus, LOSSES["cross_entropy"](logits, y), rtol=0, atol=1e-12)


def test_cw_is_pgd_on_the_cw_margin():
    module = ensemble()
    x, y = labelled(module)
    expected = PGD(eps=0.1, loss="cw_margin")(module, x, y)
    assert torch.equal(CW(eps=0.1)(module, x, y), expected)


def test_released_losses_that_mislead():
    """For reproducing published numbers: NCEn's floors at 2.17, the CW loss stops at 0.905."""
    sure = torch.tensor([[[200.0] + 9 * [0.0]]], dtype=torch.float64)
    y = torch.tensor([0])
    assert float(LOSSES["double_softmax"](sure, y)) == pytest.approx(2.17, abs=0.01)
    for probability, inert in ((0.90, True), (0.91, False)):
        p = torch.tensor([[[probability, 1 - probability]]], dtype=torch.float64)
        leaf = p.log().requires_grad_()
        (gradient,) = torch.autograd.grad(LOSSES["released_cw"](leaf, y).sum(), leaf)
        assert bool(gradient.abs().max() == 0) == inert
