"""A fitted model with its images: who is right, who is broken, and how often the model is asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from robust_ensembles.attacks import FGSM, PGD, Target, WorstCase, is_broken, resolve_target
from robust_ensembles.metrics import robust_mask
from robust_ensembles.modules import Ensemble

ATTACKS = [FGSM(eps=0.05), PGD(eps=0.1, n_steps=5), PGD(eps=0.1, n_steps=5, loss="dlr")]


class Counting(Ensemble):
    """Notes how many samples each call has."""

    def __init__(self, members):
        super().__init__(members)
        self.calls = []

    def member_logits(self, x):
        self.calls.append(len(x))
        return super().member_logits(x)


@pytest.fixture
def module():
    members = [nn.Linear(6, 3, bias=False) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for member in members:
        nn.init.normal_(member.weight, generator=generator)
    return Counting(members)


@pytest.fixture
def images(module):
    """Most labels are the model's own decisions."""
    X = np.random.default_rng(0).random((40, 6), dtype=np.float32) - 0.5
    y = module(torch.from_numpy(X)).argmax(dim=1).numpy()
    y[:7] = (y[:7] + 1) % 3
    module.calls.clear()
    return X, y


@pytest.fixture
def target(module, images):
    target = resolve_target(module, *images)
    module.calls.clear()
    return target


def test_holds_the_images(module, images, target):
    X, y = images
    np.testing.assert_array_equal(target.x.numpy(), X)
    np.testing.assert_array_equal(target.y.numpy(), y)
    bare = resolve_target(module, X)
    assert (len(bare.x), len(bare.y), bare.name) == (0, 0, "")
    assert len(bare.right()) == 0


def test_right_is_asked_once_and_cannot_be_changed(module, target):
    right = target.right()
    assert module.calls == [40]
    expected = ~is_broken(module, target.x, target.y).numpy()
    assert not expected[:7].any()
    assert expected[7:].all()
    right[:] = False
    module.calls.clear()
    np.testing.assert_array_equal(target.right(), expected)
    assert module.calls == []


def test_broken_by_other_versions_of_the_images(target):
    x_adv = ATTACKS[1](target.module, target.x, target.y)
    broken = target.broken(x_adv.double())
    np.testing.assert_array_equal(broken, is_broken(target.module, x_adv, target.y).numpy())
    assert (~target.right()).sum() < broken.sum() < 40


def test_withstood_is_the_intersection(module, images, target):
    X, y = images
    alone = [robust_mask(module, X, y, attack=attack) for attack in ATTACKS]
    found = target.withstood(ATTACKS)
    np.testing.assert_array_equal(found, np.logical_and.reduce(alone))
    assert found.sum() < alone[0].sum() < target.right().sum()
    together = WorstCase(ATTACKS)(module, target.x, target.y)
    np.testing.assert_array_equal(found, target.right() & ~target.broken(together))
    np.testing.assert_array_equal(target.withstood([]), target.right())


def test_each_attack_takes_what_those_before_have_left(target):
    seen = []

    class Looking(FGSM):
        def __call__(self, module, X, y, **kwargs):
            seen.append(len(X))
            return super().__call__(module, X, y, **kwargs)

    left = target.withstood([Looking(eps=0.05)])
    seen.clear()
    target.withstood([Looking(eps=0.05), Looking(eps=0.1)])
    assert seen == [target.right().sum(), left.sum()]
    assert seen[0] > seen[1] > 0


def test_take(target):
    right = target.right()
    wrong = target.take(~right)
    assert len(wrong.x) == len(wrong.y) == 7
    assert not wrong.right().any()
    some = target.take(np.array([39, 0]))
    assert some.right().tolist() == [True, False]
    assert some.module is target.module


def test_last_iterates(target):
    attack = PGD(eps=0.1, n_steps=3)
    expected = attack(target.module, target.x, target.y, stop_when_broken=False)
    assert torch.equal(target.last_iterates(attack), expected)
    assert not torch.equal(target.last_iterates(attack), attack(target.module, target.x, target.y))


def test_unknown_labels_are_refused_or_wrong(module, images):
    X, y = images
    y = y.copy()
    y[39] = 8
    target = resolve_target(module, X)
    with pytest.raises(ValueError, match="not trained on"):
        target.on(X, y)
    held = target.on(X, y, allow_unknown=True)
    np.testing.assert_array_equal(held.known, y < 8)
    assert not held.right()[39]
    assert held.right()[38]


@pytest.mark.parametrize("labels", [np.zeros(39, int), np.zeros((40, 1), int)])
def test_labels_of_another_length(module, images, labels):
    with pytest.raises(ValueError, match=r"y must have shape \(40,\), a label for each sample"):
        resolve_target(module, images[0], labels)


def test_probabilities_are_those_of_the_deployed_rule(module, target):
    logits = target.member_logits()
    assert logits.shape == (2, 40, 3)
    np.testing.assert_allclose(target.proba(), logits.softmax(dim=-1).mean(dim=0), rtol=1e-5)
    assert module.calls == [40, 40]


def test_modes_as_given():
    dropping = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9)).train()
    target = Target(dropping, np.arange(3)).on(np.ones((200, 4), np.float32), np.zeros(200, int))
    assert (target.member_logits() == 0).double().mean() < 0.1
    assert (target.member_logits(as_given=True) == 0).double().mean() > 0.5
    assert dropping.training
