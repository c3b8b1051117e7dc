"""WorstCase is the per-sample AND of its parts; noise is a control, not an attack."""

import numpy as np
import pytest
import torch
from small_models import ensemble, random
from torch import nn

from robust_ensembles.attacks import FGSM, PGD, UniformNoise, WorstCase, is_broken

PARTS = {
    "linf": [UniformNoise(eps=0.35, n_draws=1, random_state=seed) for seed in range(4)],
    "mixed-norms": [UniformNoise(eps=0.55, norm="l2"), UniformNoise(eps=0.25)],
    "one": [PGD(eps=0.15)],
}


@pytest.mark.parametrize("name", PARTS)
def test_worst_case_is_the_union(name, problem):
    module, x, y = problem
    masks = [is_broken(module, part(module, x, y), y) for part in PARTS[name]]
    union = torch.stack(masks).any(dim=0)
    found = WorstCase(PARTS[name])(module, x, y)
    assert torch.equal(is_broken(module, found, y), union)
    assert 0 < union.sum() < len(x)
    if len(masks) > 1:
        assert max(int(mask.sum()) for mask in masks) < union.sum()


def test_worst_case_keeps_the_first_hit(problem):
    module, x, y = problem
    parts = PARTS["mixed-norms"]
    first = parts[0](module, x, y)
    broken = is_broken(module, first, y)
    assert torch.equal(WorstCase(parts)(module, x, y)[broken], first[broken])


def test_nested_and_targeted(problem):
    module, x, y = problem
    target = (y + 1) % 3
    parts = [PGD(eps=eps, targeted=True) for eps in (0.1, 0.3)]
    nested = WorstCase([WorstCase(parts[:1]), parts[1]])
    assert nested.targeted
    assert not WorstCase([FGSM()]).targeted
    masks = [is_broken(module, p(module, x, target), target, targeted=True) for p in parts]
    found = is_broken(module, nested(module, x, target), target, targeted=True)
    assert torch.equal(found, masks[0] | masks[1])


def test_gradient_free():
    assert UniformNoise().gradient_free
    assert not PGD().gradient_free
    assert WorstCase([UniformNoise(), UniformNoise()]).gradient_free
    assert not WorstCase([UniformNoise(), PGD()]).gradient_free


@pytest.mark.parametrize("targeted", [False, True])
def test_is_broken_agrees_with_a_prediction_from_probabilities(problem, targeted):
    module, x, y = problem
    x_adv = PGD(eps=0.15, targeted=targeted)(module, x, y)
    rows = []
    for sample in x_adv:  # one by one, in numpy
        z = np.array([member(sample[None]).detach().numpy()[0] for member in module])
        p = np.exp(z - z.max(axis=1, keepdims=True))
        rows.append((p / p.sum(axis=1, keepdims=True)).mean(axis=0).argmax())
    hit = torch.tensor(rows) == y
    found = is_broken(module, x_adv, y, targeted=targeted)
    assert torch.equal(found, hit if targeted else ~hit)


def test_is_broken_uses_the_mean_probability_not_the_mean_logit():
    """One loud member against two that agree."""

    class Loud(nn.Module):
        def member_logits(self, x):
            z = torch.tensor([[30.0, 0.0], [0.0, 2.0], [0.0, 2.0]], dtype=x.dtype)
            return z[:, None, :].expand(3, len(x), 2) + 0 * x.sum()

        def forward(self, x):
            return self.member_logits(x).mean(dim=0)

    x = random(2, 3)
    assert is_broken(Loud(), x, torch.tensor([0, 1])).tolist() == [True, False]


def test_plain_module_of_logits(problem):
    _, x, y = problem
    member = ensemble(n_members=1)[0]
    found = PGD(eps=0.15)(member, x, y)
    assert torch.equal(is_broken(member, found, y), member(found).argmax(dim=1) != y)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_is_weaker_than_gradients(problem, norm):
    module, x, y = problem
    eps = 0.15 if norm == "linf" else 0.35
    clean = is_broken(module, x, y)
    noise = is_broken(module, UniformNoise(eps=eps, norm=norm)(module, x, y), y)
    gradient = is_broken(module, PGD(eps=eps, norm=norm)(module, x, y), y)
    assert clean.sum() < noise.sum() < gradient.sum()
