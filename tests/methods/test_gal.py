"""GAL: against the equation in plain loops, at known cosines, and its whole objective."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch
from naive_equations import FORMULATIONS, MEMBERS, random, with_weights
from naive_steps import check, cross_entropies, loss_gradients, make_step, objective, shorten

from robust_ensembles import GALEnsembleClassifier
from robust_ensembles.losses import gal_regularizer


def simplex(n_members):
    """Edges with cosines of -1 / (n_members - 1), one sample."""
    corners = torch.eye(n_members, dtype=torch.float64)
    return (corners - 1 / n_members)[:, None]


@with_weights
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


def test_lengths_do_not_count():
    g = random(4, 4, 6)
    lengths = torch.tensor([1e-4, 3.0, 50.0, 1.0], dtype=torch.float64).view(4, 1, 1)
    torch.testing.assert_close(gal_regularizer(lengths * g), gal_regularizer(g))


def test_old_torch_takes_short_gradients_for_orthogonal():
    g = 1e-7 * torch.ones(3, 4, 1, dtype=torch.float64)
    assert float(gal_regularizer(g)) == pytest.approx(1 + math.log(3))
    damped = gal_regularizer(g, cos_eps_mode="torch1")
    assert float(damped) == pytest.approx(math.log(3), abs=1e-5)


# --- the objective ---------------------------------------------------------------------------


def naive_gal(step, *, reduce="mean", lam=0.5, mode="torch2"):
    alignment = naive.gal_regularizer(loss_gradients(step), mode, step.sample_weight)
    losses = cross_entropies(step)
    total = sum(losses) if reduce == "sum" else np.mean(losses)
    return {"cross_entropy": total, "gradient_alignment": lam * alignment}


@pytest.mark.parametrize("options", [{}, {"cross_entropy_reduce": "sum"}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [2, 3, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_objective(formulation, n_members, weighted, options):
    step = make_step(n_members, weighted=weighted)
    found = objective(GALEnsembleClassifier, step, formulation=formulation, lam=0.7, **options)
    reduce = options.get("cross_entropy_reduce", "mean")
    check(found, naive_gal(step, reduce=reduce, lam=0.7))


def test_defaults():
    step = make_step(3)
    check(objective(GALEnsembleClassifier, step), naive_gal(step))


@pytest.mark.parametrize("mode", ["torch1", "torch2"])
def test_short_gradients(mode):
    step = shorten(make_step(3, weighted=True))
    found = objective(GALEnsembleClassifier, step, cos_eps_mode=mode)
    check(found, naive_gal(step, mode=mode), 1e-5)
