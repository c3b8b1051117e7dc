"""Attacks that climb a function of the outputs and of a reference, against its exact maximum."""

import pytest
import torch
from small_models import linear, uniform
from torch.nn.functional import kl_div, one_hot

from robust_ensembles.attacks import (
    APGD,
    BIM,
    FAB,
    FGSM,
    MIM,
    MORA,
    PGD,
    Square,
    TargetedAPGD,
    is_broken,
)
from robust_ensembles.attacks.engine.ascent import InnerObjective, Objective, ReferenceObjective
from robust_ensembles.attacks.engine.balls import LinfBall
from robust_ensembles.modules import Ensemble

EPS = 0.25
WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 3.0], [-1.0, 1.0, 0.25, -0.5], [0.5, 0.25, -2.0, 1.0]])


def model(weight=WEIGHT[:2]):
    """Linear, without a bias."""
    return linear(weight.T.double()).requires_grad_(False)


def samples(n=24):
    return uniform(n, 4) - 0.5


def log_proba(module, x):
    return Ensemble([module])(x)


def favour(log_proba, reference, y):
    """The log-probability of the class that the reference names."""
    return (log_proba * reference).sum(dim=1)


def divergence(log_proba, reference, y):
    """TRADES' inner loss: of the outputs from the clean ones."""
    return kl_div(log_proba, reference, reduction="none", log_target=True).sum(dim=1)


def corner(x, away):
    """The point of the ball that a linear function of two classes is largest at."""
    w = (WEIGHT[1] - WEIGHT[0]).double()
    return x + EPS * away[:, None] * w.sign()


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(eps=EPS),
        BIM(eps=EPS),
        MIM(eps=EPS),
        PGD(eps=EPS),
        APGD(eps=EPS, n_steps=20, n_restarts=3),
        PGD(eps=EPS, loss="dlr"),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_each_sample_climbs_with_its_own_reference(attack):
    """The favoured class is no function of the label, so that rows mixed up would show."""
    x, module = samples(), model()
    favoured = torch.arange(len(x)) % 3 % 2
    y = torch.arange(len(x)) % 2
    given = InnerObjective(favour, one_hot(favoured, 2).double())
    found = attack.craft(module, x, y, box=None, seed=1, objective=given)
    torch.testing.assert_close(found, corner(x, 2.0 * favoured - 1), rtol=0, atol=1e-12)
    # the loss of the attack would have gone elsewhere
    plain = attack.craft(module, x, y, box=None, seed=1)
    assert not torch.allclose(found, plain)


def test_divergence_from_the_clean_output():
    """It grows on both sides of x: a walk ends in the corner on its own start's side."""
    x, module = samples(), model()
    y = log_proba(module, x).argmax(dim=1)
    given = InnerObjective(divergence, log_proba(module, x))
    attack = PGD(eps=EPS)
    found = attack.craft(module, x, y, box=None, seed=3, objective=given)
    start = LinfBall(x, EPS, None).random_point(3)
    side = ((start - x) @ (WEIGHT[1] - WEIGHT[0]).double()).sign()
    assert 0 < (side > 0).sum() < len(x)
    torch.testing.assert_close(found, corner(x, side), rtol=0, atol=1e-12)


def test_labels_reach_the_objective():
    """A function that does what the cross-entropy does ends where the cross-entropy ends."""
    x, module = samples(40), model(WEIGHT)
    # right at first, and after a walk of APGD's some are left for the next
    y = log_proba(module, x).argmax(dim=1)

    def cross_entropy(log_proba, reference, y):
        return -log_proba.gather(1, y[:, None]).squeeze(1)

    for attack in (
        PGD(eps=EPS),
        APGD(eps=EPS, n_steps=9, n_restarts=3),
        Square(eps=EPS, n_queries=100),
    ):
        attack.set_params(loss="cross_entropy")
        given = InnerObjective(cross_entropy, x)
        found = attack.craft(module, x, y, box=None, seed=1, objective=given)
        assert torch.equal(found, attack.craft(module, x, y, box=None, seed=1))


def test_who_is_broken_is_still_decided_by_labels():
    x, module = samples(), model(WEIGHT)
    y = torch.arange(len(x)) % 3
    objective = ReferenceObjective(Objective(module, "margin"), InnerObjective(favour, x), y)
    rows = torch.tensor([5, 3, 3, 8, 20, 11, 6, 7])
    expected = is_broken(module, x[rows], y[rows])
    assert 0 < expected.sum() < len(rows)
    assert torch.equal(objective.broken(x[rows], rows), expected)


def test_ensembles_answer_as_deployed():
    """What is climbed sees the log mean probability, and no gradient reaches the reference."""
    members = [model(WEIGHT), model(-WEIGHT[[1, 2, 0]])]
    ensemble, x = Ensemble(members), samples(5)
    reference = torch.ones(5, 3, dtype=torch.float64, requires_grad=True)
    seen = []

    def climb(log_proba, reference, y):
        seen.append((log_proba.detach(), reference.requires_grad))
        return log_proba[:, 0]

    attack = FGSM(eps=EPS)
    attack.craft(
        ensemble,
        x,
        torch.arange(5) % 3,
        box=None,
        seed=0,
        objective=InnerObjective(climb, reference),
    )
    [(found, differentiated)] = seen
    torch.testing.assert_close(found, ensemble(x))
    assert not differentiated


@pytest.mark.parametrize(
    "attack", [TargetedAPGD(), FAB(), MORA(), PGD(targeted=True)], ids=lambda a: repr(a)
)
def test_attacks_with_a_loss_of_their_own_refuse_another(attack):
    x = samples(2)
    given = InnerObjective(favour, torch.ones(2, 2).double())
    with pytest.raises(ValueError, match="cannot climb an objective that is given"):
        attack.craft(model(), x, torch.tensor([0, 1]), box=None, seed=0, objective=given)
