"""Attacks of other libraries, wrapped: checked, seeded, and shown a frozen module."""

import pytest
import torch
from small_models import ensemble, perturbation_norm
from torch import nn

from robust_ensembles.attacks import External, is_broken


def sign_step(module, x, y):
    """FGSM as another library would write it."""
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(module(leaf), y).backward()
    return (leaf + 0.2 * leaf.grad.sign()).detach()


def test_breaks_what_the_function_breaks(problem):
    module, x, y = problem
    found = External(function=sign_step, eps=0.2)(module, x, y)
    expected = sign_step(module, x, y)
    already = is_broken(module, x, y)
    assert torch.equal(found[already], x[already])
    torch.testing.assert_close(found[~already], expected[~already], rtol=0, atol=1e-9)
    assert is_broken(module, found, y).sum() > already.sum()


def test_sees_a_frozen_module_of_log_probabilities(problem):
    module, x, y = problem
    seen = {}

    def spy(model, x, y):
        seen.update(
            training=any(m.training for m in model.modules()),
            frozen=not any(p.requires_grad for p in model.parameters()),
            members=hasattr(model, "member_logits"),
            total=model(x).exp().sum(dim=1),
            n_samples=len(x),
        )
        return x

    module.train()
    External(function=spy, eps=0.1)(module, x, y)
    assert module.training
    module.eval()
    assert (seen["training"], seen["frozen"], seen["members"]) == (False, True, False)
    torch.testing.assert_close(seen["total"], torch.ones_like(seen["total"]))
    assert seen["n_samples"] == int((~is_broken(module, x, y)).sum())


def test_inside_ball_and_box(problem):
    """Rounding is forgiven and mended."""
    module, x, y = problem
    x, module = x.float(), ensemble(dtype=torch.float32)

    def slightly_out(model, x, y):
        return x + 0.3 * (1 + 1e-5)

    found = External(function=slightly_out, eps=0.3, clip_values=(0, 1))(module, x, y)
    assert perturbation_norm(found, x, "linf").max() <= 0.3
    assert found.max() <= 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda model, x, y: x + 0.2, "left the linf ball of eps=0.1 by 0.1"),
        (lambda model, x, y: x[:2], "one example for each sample"),
        (lambda model, x, y: x * float("nan"), "NaN or infinity"),
    ],
)
def test_refuses_what_breaks_the_rules(problem, function, message):
    with pytest.raises(ValueError, match=message):
        External(function=function, eps=0.1)(*problem)


def test_its_random_numbers_repeat(problem):
    module, x, y = problem

    def noise(model, x, y):
        return x + 0.3 * (2 * torch.rand_like(x) - 1)

    attack = External(function=noise, eps=0.3)
    assert torch.equal(attack(module, x, y), attack(module, x, y))
    other = External(function=noise, eps=0.3, random_state=1)
    assert not torch.equal(attack(module, x, y), other(module, x, y))
