"""Linear models: the distance to the boundary is the margin over the dual norm."""

import pytest
import torch
from small_models import BOUNDED, DUAL, linear, perturbation_norm, random

from robust_ensembles.attacks import (
    APGD,
    CW,
    FAB,
    FGSM,
    MIM,
    MORA,
    PGD,
    CarliniWagnerL2,
    DeepFool,
    Square,
    TargetedAPGD,
    UniformNoise,
    is_broken,
)
from robust_ensembles.modules import Ensemble

ATTACKS = [attack for attack in BOUNDED if attack not in (Square, UniformNoise)]
few_and_many = pytest.mark.parametrize(("n_features", "n_samples"), [(2, 1), (3, 12), (100, 5)])


def binary_problem(n_features, n_samples, norm, distance):
    """A binary model, with samples on both sides that all have the same distance."""
    w, x = random(n_features, seed=1), random(n_samples, n_features, seed=2)
    module = linear(torch.stack([torch.zeros_like(w), w], dim=1), torch.tensor([0.3, -0.2]))
    y = torch.arange(n_samples) % 2
    wanted = (2 * y - 1) * distance * w.norm(p=DUAL[norm])
    x = x + ((wanted - (x @ w - 0.5)) / w.dot(w))[:, None] * w
    return module, x, y


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@few_and_many
def test_binary(attack, norm, n_features, n_samples):
    module, x, y = binary_problem(n_features, n_samples, norm, distance=0.7)
    assert not is_broken(module, x, y).any()
    for eps, expected in [(0.7 * 0.9999, False), (0.7 * 1.0001, True)]:
        # a fixed step turns towards the gradient by a fifth of the angle
        steps = {"n_steps": 60} if issubclass(attack, (PGD, CW)) else {}
        steps |= {"n_steps": 20} if attack is MORA else {}
        x_adv = attack(eps=eps, norm=norm, **steps)(module, x, y)
        assert (is_broken(module, x_adv, y) == expected).all(), eps


@pytest.mark.parametrize(
    "loss",
    ["margin", "cw_margin", "dlr", "cross_entropy", "member_cross_entropy", "member_margin"],
)
@pytest.mark.parametrize("n_members", [1, 3])
def test_every_loss_on_equal_members(loss, n_members):
    module, x, y = binary_problem(10, 8, "linf", distance=0.3)
    module = Ensemble([module] * n_members)
    for eps, expected in [(0.3 * 0.999, False), (0.3 * 1.001, True)]:
        x_adv = PGD(eps=eps, loss=loss)(module, x, y)
        assert (is_broken(module, x_adv, y) == expected).all()


@pytest.mark.parametrize("attack", [APGD, TargetedAPGD])
@few_and_many
def test_l1(attack, n_features, n_samples):
    """The coordinate of the largest weight should take all; sparse steps come within a third.

    The original implementation comes no nearer on such models.
    """
    module, x, y = binary_problem(n_features, n_samples, "l1", distance=0.7)
    for eps, expected in [(0.7 * 0.9999, False), (0.7 * 1.33, True)]:
        x_adv = attack(eps=eps, norm="l1")(module, x, y)
        assert (is_broken(module, x_adv, y) == expected).all(), eps


NEAREST = {
    "fab": (FAB(eps=0.1, n_steps=20), 1e-4),
    "fab-l2": (FAB(eps=0.1, norm="l2", n_steps=20), 1e-4),
    "deepfool": (DeepFool(eps=0.1), 1e-4),
    "deepfool-l2": (DeepFool(eps=0.1, norm="l2"), 1e-4),
    # Adam only comes near
    "carlini-wagner": (CarliniWagnerL2(eps=0.1, n_steps=100, n_searches=4, lr=0.03), 0.02),
}


@pytest.mark.parametrize("name", NEAREST)
@few_and_many
def test_minimum_norm(name, n_features, n_samples):
    """Whatever eps is, the nearest example on a linear model is at the closed-form distance."""
    attack, tolerance = NEAREST[name]
    module, x, y = binary_problem(n_features, n_samples, attack.norm, distance=0.7)
    x_adv = attack(module, x, y, stop_when_broken=False)
    assert is_broken(module, x_adv, y).all()
    found = perturbation_norm(x_adv, x, attack.norm)
    torch.testing.assert_close(found, torch.full_like(found, 0.7), rtol=tolerance, atol=0)


@pytest.mark.parametrize("attack", [FAB, DeepFool])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_minimum_norm_of_many_classes(attack, norm):
    """The nearest of several boundaries."""
    weight, x = random(20, 10, seed=1), random(8, 20, seed=2)
    y = (x @ weight).argmax(dim=1)
    x_adv = attack(norm=norm, n_steps=20)(linear(weight), x, y, stop_when_broken=False)
    expected = boundary_distances(weight, x, y, norm).amin(dim=1)
    torch.testing.assert_close(perturbation_norm(x_adv, x, norm), expected, rtol=1e-4, atol=0)


def boundary_distances(weight, x, y, norm):
    """To every other class, (n_samples, n_classes); infinite for the own one."""
    logits = x @ weight
    gap = logits.gather(1, y[:, None]) - logits
    difference = weight.T[y][:, None, :] - weight.T[None]
    distance = gap / difference.norm(p=DUAL[norm], dim=2)
    return distance.scatter(1, y[:, None], torch.inf)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("n_features", "n_classes"), [(2, 3), (20, 5)])
def test_multi_class(norm, n_features, n_classes):
    """Nothing reaches below the nearest boundary; a targeted walk reaches just beyond it."""
    weight, x = random(n_features, n_classes, seed=1), random(4, n_features, seed=2)
    module, y = linear(weight), (x @ weight).argmax(dim=1)
    nearest = boundary_distances(weight, x, y, norm).min(dim=1)
    for i in range(len(x)):
        x_i, y_i, distance = x[i : i + 1], y[i : i + 1], float(nearest.values[i])
        below = [attack(eps=0.999 * distance, norm=norm) for attack in (FGSM, MIM, PGD, CW)]
        below += [long(eps=0.999 * distance, norm=norm, n_steps=10) for long in (APGD, FAB, MORA)]
        assert not any(is_broken(module, a(module, x_i, y_i), y_i).any() for a in below)
        target = nearest.indices[i : i + 1]
        beyond = PGD(eps=1.01 * distance, norm=norm, targeted=True, loss="cw_margin", n_steps=100)
        x_adv = beyond(module, x_i, target)
        assert is_broken(module, x_adv, target, targeted=True).all()
        assert is_broken(module, x_adv, y_i).all()
