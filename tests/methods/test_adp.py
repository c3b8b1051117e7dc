"""ADP: against the equations in plain loops, at its two extremes, and its whole objective."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch
from naive_equations import FORMULATIONS, MEMBERS, with_weights
from naive_steps import (
    check,
    crafted,
    cross_entropies,
    make_step,
    objective,
)
from naive_steps import (
    probabilities as probabilities_of,
)
from small_estimators import make

from robust_ensembles import ADPEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.losses import adp_regularizer, non_true_log_determinant, without_true_class

Y = torch.tensor([0, 6, 3, 3])


def probabilities(n_members, n_samples=4, n_classes=7):
    return naive.random(n_members, n_samples, n_classes).softmax(dim=-1)


@with_weights
@pytest.mark.parametrize("n_members", MEMBERS)
def test_regularizer(n_members, weight):
    p = probabilities(n_members)
    for alpha, beta in [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)]:
        found = adp_regularizer(p, Y, alpha=alpha, beta=beta, sample_weight=weight)
        expected = naive.adp_regularizer(p.numpy(), Y, alpha, beta, weight)
        assert float(found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n_members", MEMBERS)
def test_log_determinant(n_members):
    p = probabilities(n_members)
    found = non_true_log_determinant(p, Y)
    np.testing.assert_allclose(found, naive.adp_log_determinant(p.numpy(), Y), atol=1e-9)
    short = p * 1e-4  # where the 1e-12 under the root is seen, hence an equal part of it
    found_short = non_true_log_determinant(short, Y)
    np.testing.assert_allclose(found_short, naive.adp_log_determinant(short.numpy(), Y), atol=1e-9)
    assert (found - found_short).abs().min() > 1e-6


@pytest.mark.parametrize("n_members", MEMBERS)
def test_orthogonal_columns(n_members):
    """Each member gives its doubts to a class of its own: N log(1 + 1e-6)."""
    p = torch.zeros(n_members, 1, n_members + 1, dtype=torch.float64)
    p[:, 0, 0] = 0.6
    p[torch.arange(n_members), 0, torch.arange(1, n_members + 1)] = 0.4
    found = float(non_true_log_determinant(p, torch.tensor([0])))
    assert found == pytest.approx(n_members * math.log1p(1e-6), abs=1e-10)


@pytest.mark.parametrize("n_members", MEMBERS)
def test_identical_columns(n_members):
    """log(N + 1e-6) + (N - 1) log 1e-6, whatever they are."""
    p = probabilities(1).expand(n_members, 4, 7)
    expected = math.log(n_members + 1e-6) + (n_members - 1) * math.log(1e-6)
    found = non_true_log_determinant(p, Y)
    np.testing.assert_allclose(found, np.full(4, expected), atol=1e-5)


def test_more_members_than_other_classes():
    """Five columns of three entries span no volume."""
    p = probabilities(5, n_classes=4)
    found = non_true_log_determinant(p, torch.tensor([0, 1, 2, 3]))
    assert (found < math.log(1e-6)).all()


def test_uniform_prediction_has_the_largest_entropy():
    p = torch.full((3, 4, 7), 1 / 7, dtype=torch.float64)
    found = adp_regularizer(p, Y, alpha=2.0, beta=0.0)
    assert float(found) == pytest.approx(-2 * math.log(7))
    assert found < adp_regularizer(probabilities(3), Y, alpha=2.0, beta=0.0)


def test_entropy_is_the_ensembles():
    """Sure members that contradict each other: log 2, not 0."""
    p = torch.eye(3, dtype=torch.float64)[:2, None]
    found = adp_regularizer(p, torch.tensor([0]), alpha=1.0, beta=0.0)
    assert float(found) == pytest.approx(-math.log(2))


def test_true_class_is_not_compared():
    p = probabilities(3)
    moved = p.scatter(2, Y.expand(3, 4)[..., None], 0.123)
    torch.testing.assert_close(non_true_log_determinant(moved, Y), non_true_log_determinant(p, Y))
    other = non_true_log_determinant(p, (Y + 1) % 7)
    assert (other - non_true_log_determinant(p, Y)).abs().min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sure", [1, 3])
def test_certain_members(sure, dtype):
    """Nothing but the true class is left in float32: columns of length zero."""
    logits = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:sure] = 1000 * torch.nn.functional.one_hot(Y, 7).to(dtype)
    logits.requires_grad_()
    p = logits.softmax(dim=-1)
    assert without_true_class(p, Y)[0].abs().max() == 0
    value = adp_regularizer(p, Y, alpha=2.0, beta=0.5)
    (first,) = torch.autograd.grad(value, logits, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), logits)
    for tensor in (value, first, second):
        assert tensor.isfinite().all()


def test_without_true_class():
    p = probabilities(3)
    found = without_true_class(p, Y)
    expected = [[naive.without_label(row, y) for row, y in zip(m, Y, strict=True)] for m in p]
    np.testing.assert_array_equal(found, expected)
    p.requires_grad_()
    (gradient,) = torch.autograd.grad(without_true_class(p, Y).sum(), p)
    assert torch.equal(gradient, 1.0 - torch.nn.functional.one_hot(Y, 7).expand(3, 4, 7))


# --- the objective ---------------------------------------------------------------------------

ATTACK = PGD(eps=0.2, n_steps=2)


def naive_adp(step, prefix="", x_adv=None, *, alpha=0.7, beta=0.3):
    p, weight = probabilities_of(step, x_adv), step.sample_weight
    return {
        f"{prefix}cross_entropy": sum(cross_entropies(step, x_adv)),
        f"{prefix}entropy": naive.adp_regularizer(p, step.y, alpha, 0.0, weight),
        f"{prefix}log_determinant": naive.adp_regularizer(p, step.y, 0.0, beta, weight),
    }


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [2, 3, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_objective(formulation, n_members, weighted):
    step = make_step(n_members, weighted=weighted)
    params = {"formulation": formulation, "alpha": 0.7, "beta": 0.3}
    check(objective(ADPEnsembleClassifier, step, **params), naive_adp(step), 1e-8)


@pytest.mark.parametrize("target", ["ensemble", "member"])
@pytest.mark.parametrize(
    ("formulation", "regularize", "on_both"),
    [
        ("paper", None, False),
        ("released", None, True),
        ("paper", True, True),
        ("released", False, False),
    ],
)
def test_adversarial_predictions(formulation, regularize, on_both, target):
    step = make_step(3, weighted=True)
    adversarial = naive_adp(step, "adversarial_", crafted(step, ATTACK, target))
    names = list(adversarial) if on_both else ["adversarial_cross_entropy"]
    params = {"formulation": formulation, "regularize_adversarial": regularize}
    params |= {"alpha": 0.7, "beta": 0.3, "attack": ATTACK, "attack_target": target}
    expected = {**naive_adp(step), **{name: adversarial[name] for name in names}}
    check(objective(ADPEnsembleClassifier, step, **params), expected, 1e-8)


def test_defaults():
    """2 and 0.5, of the original code."""
    step = make_step(3)
    check(objective(ADPEnsembleClassifier, step), naive_adp(step, alpha=2.0, beta=0.5), 1e-8)


# --- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_estimators", "classes", "most"), [(3, 3, 2), (2, 2, 1), (10, 10, 9), (4, 3, 2)]
)
def test_more_members_than_classes_allow(rejects, digit_rows, n_estimators, classes, most):
    X, _, y, _ = digit_rows
    match = f"n_estimators={n_estimators} .*{classes} classes.*n_estimators={most} or fewer"
    rejects(make(ADPEnsembleClassifier, n_estimators=n_estimators), X, y % classes, match)


def test_just_enough_classes(untrained, digit_rows):
    X, _, y, _ = digit_rows
    for n in (1, 2, 3):
        make(ADPEnsembleClassifier, n_estimators=n).fit(X, y % (n + 1))
