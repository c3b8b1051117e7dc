"""Attacking another rule than the deployed one, and few classes."""

import pytest
import torch
from small_models import ensemble, labelled, mlp, random
from torch import nn

from robust_ensembles.attacks import APGD, FAB, MORA, PGD, Square, TargetedAPGD, is_broken
from robust_ensembles.attacks.engine.margins import aggregate, difference, dlr, targeted_dlr


class Alone(nn.Module):
    """Another rule as a plain module of its own."""

    def __init__(self, module, rule):
        super().__init__()
        self.module, self.rule = module, rule

    def forward(self, x):
        return self.rule(self.module.member_logits(x))


@pytest.mark.parametrize(
    "attack",
    [PGD(eps=0.3, n_steps=5), APGD(eps=0.3, n_steps=8), Square(eps=0.3, n_queries=15)],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize(
    ("aggregation", "rule"),
    [
        ("mean_logits", lambda z: z.mean(dim=0)),
        (0, lambda z: z[0]),
        (2, lambda z: z[2]),
        ("mean_proba", lambda z: z.softmax(dim=-1).mean(dim=0).log()),
    ],
)
def test_the_same_walk_as_on_the_rule_itself(attack, aggregation, rule):
    """With all the steps, when nobody asks who is broken."""
    module = ensemble()
    x, y = labelled(module)
    swapped = type(attack)(**{**attack.get_params(), "aggregation": aggregation})
    found = swapped(module, x, y, stop_when_broken=False)
    alone = attack(Alone(module, rule), x, y, stop_when_broken=False)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "attack", [PGD(), APGD(n_steps=9), TargetedAPGD(n_steps=9), FAB(n_steps=9), Square(n_queries=9)]
)
def test_the_deployed_rule_decides(attack):
    """Member 0 is wrong from the start, yet its attack goes on until the ensemble is."""
    members = [mlp(6, 3, seed=seed) for seed in (0, 10, 20)]
    module = ensemble()
    x, y = labelled(module, 60)
    wrong = members[0](x).argmax(dim=1) != y
    assert 5 < wrong.sum() < 55
    eps = 0.25
    attack = type(attack)(**{**attack.get_params(), "eps": eps, "aggregation": 0})
    found = attack(module, x, y)
    moved = ~(found == x).all(dim=1)
    assert moved[wrong].any()


def test_no_such_member():
    module = ensemble()
    with pytest.raises(ValueError, match=r"aggregation=3 .* the ensemble has 3: 0 to 2"):
        PGD(aggregation=3)(module, *labelled(module))


def test_aggregate():
    logits = random(3, 4, 5)
    assert torch.equal(aggregate(logits, "mean_proba"), logits)
    torch.testing.assert_close(aggregate(logits, "mean_logits"), logits.mean(dim=0)[None])
    assert torch.equal(aggregate(logits, 1), logits[1:2])


@pytest.mark.parametrize("n_classes", [2, 3, 4, 10])
def test_few_classes(n_classes):
    """DLR needs three classes and its targeted form four: fewer fall back, and all attacks run."""
    module = ensemble(n_classes=n_classes, seed=3)
    x, y = labelled(module, 30)
    before = is_broken(module, x, y).sum()
    for attack in (
        APGD(eps=0.3, loss="dlr", n_steps=10),
        TargetedAPGD(eps=0.3, n_steps=10),
        FAB(eps=0.3, n_steps=10),
        MORA(eps=0.3, n_steps=10),
    ):
        assert is_broken(module, attack(module, x, y), y).sum() > before


def test_targeted_dlr_by_hand():
    z = torch.tensor([[3.0, 1.0, 0.0, -2.0, -5.0]], dtype=torch.float64)
    y, target = torch.tensor([1]), torch.tensor([3])
    expected = (-2.0 - 1.0) / (3.0 - (0.0 - 2.0) / 2)
    assert float(targeted_dlr(z[None], y, target)) == pytest.approx(expected)
    for n_classes in (2, 3):
        few = z[None, :, :n_classes]
        found = targeted_dlr(few, torch.tensor([0]), torch.tensor([1]))
        assert float(found) == float(difference(few, torch.tensor([0]), torch.tensor([1])))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_dlr_does_not_see_the_scale(scale):
    """On logits of one member; log-probabilities are logits shifted."""
    z, y = random(1, 8, 5), torch.arange(8) % 5
    torch.testing.assert_close(dlr(scale * z, y), dlr(z, y), rtol=1e-6, atol=1e-6)
