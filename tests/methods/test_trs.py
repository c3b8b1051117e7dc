"""TRS: against the equations in plain loops, and its whole objective with the inner walk."""

from dataclasses import replace

import naive_equations as naive
import numpy as np
import pytest
import torch
from naive_equations import FORMULATIONS, MEMBERS, random, with_weights
from naive_steps import (
    BOX,
    B,
    check,
    cross_entropies,
    loss_gradients,
    make_step,
    objective,
    shorten,
)

from robust_ensembles import TRSEnsembleClassifier
from robust_ensembles.attacks.engine.balls import LinfBall
from robust_ensembles.losses import cldl_gradient_diversity, trs_similarity, trs_smoothness


@with_weights
@pytest.mark.parametrize("scale", [1.0, 1e-5])
@pytest.mark.parametrize("eps_mode", ["torch2", "torch1"])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_similarity(n_members, eps_mode, scale, weight):
    g = scale * random(n_members, 4, 6)
    found = trs_similarity(g, cos_eps_mode=eps_mode, sample_weight=weight)
    expected = naive.trs_similarity(g.numpy(), eps_mode, weight)
    assert float(found) == pytest.approx(expected, abs=1e-10)


@with_weights
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


# --- the objective ---------------------------------------------------------------------------


def roughest(step, delta, *, n_steps=6, power=2, accumulate=False, clip_values=BOX):
    """The second half of the batch, where the inner maximisation ends: sample by sample."""
    half = len(step.x) // 2
    centres, labels = step.x[half:], step.y[half:].tolist()
    starts = LinfBall(centres, delta, clip_values).random_point(step.seed)
    found = []
    for centre, start, y in zip(centres, starts, labels, strict=True):
        x, total = start.clone(), torch.zeros_like(start)
        for _ in range(n_steps):
            x = x.detach().requires_grad_()
            length = 0.0
            for member in step.module:
                loss = -member(x[None])[0].log_softmax(-1)[y]
                (g,) = torch.autograd.grad(loss, x, create_graph=True)
                length = length + (g @ g if power == 2 else (g @ g).sqrt())
            (uphill,) = torch.autograd.grad(length, x)
            total = total + uphill if accumulate else uphill
            x = x.detach() + delta / 3 * total.sign()
            x = x.clamp(centre - delta, centre + delta)
            if clip_values is not None:
                x = x.clamp(*clip_values)
        found.append(x.numpy())
    return np.concatenate([step.x[:half].numpy(), found])


SETTINGS = {"scale": 1.5, "coeff": 3.0, "lamda": 2.0}
# a large delta, so that the walk shows in the smoothness
WALK = {"delta_init": 0.2, "delta_final": 0.2}


def naive_trs(step, inputs, *, reduce="mean", power=2, factor=1.0, mode="torch2", **settings):
    scale, coeff, lamda = {**SETTINGS, **settings}.values()
    weight, losses = step.sample_weight, cross_entropies(step)
    similarity = naive.trs_similarity(loss_gradients(step), mode, weight)
    rough = factor * loss_gradients(step, inputs)
    return {
        "cross_entropy": sum(losses) if reduce == "sum" else np.mean(losses),
        "similarity": scale * coeff * similarity,
        "smoothness": scale * lamda * naive.trs_smoothness(rough, power, weight),
    }


def trs(step, **params):
    return objective(TRSEnsembleClassifier, step, **{**SETTINGS, **WALK, **params})


def reduction(formulation):
    return "mean" if formulation == "paper" else "sum"


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [2, 3, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_objective(formulation, n_members, weighted):
    step = make_step(n_members, weighted=weighted)
    x = roughest(step, 0.2, accumulate=formulation == "released")
    expected = naive_trs(step, x, reduce=reduction(formulation))
    check(trs(step, formulation=formulation), expected)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_inner_momentum(formulation, momentum):
    """The two walks end at different points."""
    step = make_step(3, seed=1)
    walked = [roughest(step, 0.2, accumulate=accumulate) for accumulate in (False, True)]
    assert np.abs(walked[0] - walked[1]).max() > 0.01
    found = trs(step, formulation=formulation, inner_momentum=momentum)
    check(found, naive_trs(step, walked[momentum], reduce=reduction(formulation)))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_cross_entropy_reduce(formulation, reduce):
    step = make_step(3)
    x = roughest(step, 0.2, accumulate=formulation == "released")
    found = trs(step, formulation=formulation, cross_entropy_reduce=reduce)
    check(found, naive_trs(step, x, reduce=reduce))


@pytest.mark.parametrize("inner_max", [True, False])
@pytest.mark.parametrize("scale", ["mean", "sum"])
@pytest.mark.parametrize("power", [1, 2])
def test_lengths(power, scale, inner_max):
    """The similarity knows no scale; the lengths carry 1 / B, or not."""
    step = make_step(3, weighted=True)
    x = roughest(step, 0.2, power=power) if inner_max else None
    found = trs(step, norm_power=power, gradient_scale=scale, inner_max=inner_max)
    check(found, naive_trs(step, x, power=power, factor=1 if scale == "mean" else B))


@pytest.mark.parametrize("n_steps", [1, 2])
def test_inner_steps_without_a_box(n_steps):
    step = make_step(3)
    x = roughest(step, 0.9, n_steps=n_steps, clip_values=None)
    assert x.min() < -0.05 or x.max() > 1.05
    step = replace(step, clip_values=None)
    found = trs(step, delta_init=0.9, delta_final=0.9, n_inner_steps=n_steps)
    check(found, naive_trs(step, x))


@pytest.mark.parametrize(
    ("formulation", "max_epochs", "epoch", "delta"),
    [
        ("paper", 5, 0, 0.1),
        ("paper", 5, 1, 0.15),
        ("paper", 5, 4, 0.3),
        ("paper", 5, 9, 0.3),  # partial_fit and warm starts continue beyond
        ("paper", 1, 0, 0.3),
        ("released", 5, 0, 0.1),
        ("released", 5, 1, 0.14),
        ("released", 5, 4, 0.26),
        ("released", 5, 5, 0.3),
        ("released", 5, 9, 0.3),
    ],
)
def test_delta_grows(formulation, max_epochs, epoch, delta):
    step = make_step(2, epoch=epoch)
    x = roughest(step, delta, accumulate=formulation == "released")
    params = {"delta_init": 0.1, "delta_final": 0.3, "max_epochs": max_epochs}
    found = trs(step, formulation=formulation, **params)
    check(found, naive_trs(step, x, reduce=reduction(formulation)))


@pytest.mark.parametrize("power", [1, 2])
def test_climbs(power):
    """From the random start to longer gradients; the first half stays where it was."""
    step = make_step(3)
    half, start = len(step.x) // 2, step.x.clone()
    start[half:] = LinfBall(step.x[half:], 0.2, BOX).random_point(step.seed)
    found = trs(step, scale=1.0, lamda=1.0, norm_power=power)["smoothness"].item()
    for x in (start.numpy(), None):
        assert found > 1.05 * naive.trs_smoothness(loss_gradients(step, x), power)


def test_batch_too_small_to_halve():
    """One sample alone would be no batch for BatchNorm: both count as clean."""
    step = make_step(3)
    fields = [None if field is None else field[:2] for field in step.batch]
    step = replace(step, batch=step.batch._make(fields))
    check(trs(step), naive_trs(step, None))


def test_defaults():
    step = make_step(3)
    assert TRSEnsembleClassifier().coeff == 20
    found = objective(TRSEnsembleClassifier, step, coeff=20.0, inner_max=False)
    check(found, naive_trs(step, None, scale=1.0, coeff=20.0, lamda=2.5))


@pytest.mark.parametrize("mode", ["torch1", "torch2"])
def test_short_gradients(mode):
    step = shorten(make_step(3, weighted=True))
    found = trs(step, cos_eps_mode=mode, inner_max=False)["similarity"].item()
    assert found == pytest.approx(naive_trs(step, None, mode=mode)["similarity"], rel=1e-5)
