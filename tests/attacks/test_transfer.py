"""Black box attacks and attacks of other libraries."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_models import ensemble, labelled, linear, perturbation_norm, random
from torch import nn

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.attacks import (
    BIM,
    MIM,
    PGD,
    External,
    Transfer,
    WorstCase,
    is_broken,
)
from robust_ensembles.metrics import robust_accuracy_score, robust_mask

BLACK = PGD(eps=0.3, n_steps=8)


@pytest.fixture(scope="module")
def problem():
    module = ensemble()
    x, y = labelled(module, 40)
    y[::7] = (y[::7] + 1) % 3
    return module, x, y


class TestTransfer:
    def test_is_the_union_of_its_sets(self, problem):
        module, x, y = problem
        surrogates = [ensemble(seed=seed) for seed in (1, 2)]
        attacks = [BIM(eps=0.3), MIM(eps=0.3, loss="cw_margin")]
        black_box = Transfer(surrogates, attacks)
        sets = black_box.examples(x, y)
        assert len(sets) == 4
        union = torch.stack([is_broken(module, x, y), *(is_broken(module, s, y) for s in sets)])
        found = is_broken(module, black_box(module, x, y), y)
        assert torch.equal(found, union.any(dim=0))
        alone = max(int(is_broken(module, s, y).sum()) for s in sets)
        assert alone < found.sum() < len(x)

    def test_weaker_than_white_box(self, problem):
        module, x, y = problem
        black = is_broken(module, Transfer(ensemble(seed=1), BLACK)(module, x, y), y)
        white = is_broken(module, BLACK(module, x, y), y)
        assert is_broken(module, x, y).sum() < black.sum() < white.sum()

    def test_examples_go_on_when_the_surrogate_is_fooled(self, problem):
        """Examples that only just fool the surrogate transfer badly."""
        _, x, y = problem
        surrogate = ensemble(seed=1)
        (made,) = Transfer(surrogate, BLACK).examples(x, y)
        expected = BLACK(surrogate, x, y, stop_when_broken=False)
        assert torch.equal(made, expected)
        assert not torch.equal(made, BLACK(surrogate, x, y))

    def test_target_needs_no_gradient(self, problem):
        _, x, y = problem

        class Steps(nn.Module):
            @torch.no_grad()
            def forward(self, x):
                return torch.stack([x[:, 0] > 0.5, x[:, 0] <= 0.5, x[:, 1] < 0], dim=1).double()

        black_box = Transfer(ensemble(seed=1), BLACK)
        assert black_box.gradient_free
        assert is_broken(Steps(), black_box(Steps(), x, y), y).any()

    @pytest.mark.parametrize("same", ["itself", "copy", "member", "whole", "among others"])
    def test_refuses_the_target(self, problem, same):
        module, x, y = problem
        copy = ensemble()
        surrogate, target = {
            "itself": (module, module),
            "copy": (copy, module),
            "member": (copy[1], module),
            "whole": (module, copy[1]),
            "among others": ([ensemble(seed=1), copy], module),
        }[same]
        with pytest.raises(ValueError, match=r"white-box attack\. Train the surrogate separately"):
            Transfer(surrogate, BLACK)(target, x, y)

    def test_estimators(self):
        X, y = np.random.default_rng(0).random((80, 5), dtype=np.float32), np.arange(80) % 2
        X[:, 0] = 0.6 * X[:, 0] + 0.4 * y
        target, surrogate = (
            VanillaEnsembleClassifier(max_epochs=20, lr=0.01, random_state=seed, device="cpu").fit(
                X, y
            )
            for seed in (0, 1)
        )
        black_box = Transfer(surrogate, PGD(eps=0.08))
        black = robust_mask(target, X, y, attack=black_box)
        white = robust_mask(target, X, y, attack=PGD(eps=0.08))
        assert white.sum() <= black.sum() < target.score(X, y) * 80
        with pytest.raises(ValueError, match="white-box"):
            robust_accuracy_score(target, X, y, attack=Transfer(target))

    def test_surrogate_of_other_classes(self):
        """Its outputs stand for other labels, so its examples would be nonsense."""
        X, y = np.random.default_rng(0).random((40, 5), dtype=np.float32), np.arange(40) % 3
        make = VanillaEnsembleClassifier(max_epochs=1, random_state=0, device="cpu")
        target, other = clone(make).fit(X, y), clone(make).fit(X, y + 1)
        for black_box in (Transfer(other), WorstCase([PGD(), Transfer([other])])):
            with pytest.raises(ValueError, match=r"knows the classes \[1, 2, 3\], the target \[0"):
                robust_accuracy_score(target, X, y, attack=black_box)
            with pytest.raises(ValueError, match="train both on the same labels"):
                black_box.generate(target, X, y)

    @pytest.mark.parametrize(
        ("black_box", "error", "message"),
        [
            (Transfer([], BLACK), ValueError, "a surrogate and an attack at least"),
            (Transfer(ensemble(seed=1), []), ValueError, "a surrogate and an attack at least"),
            (Transfer(ensemble(seed=1), "pgd20"), TypeError, "'p' cannot be run"),
            (Transfer(ensemble(seed=1), WorstCase([BLACK])), TypeError, "to its last step"),
            (Transfer(ensemble(seed=1), PGD(eps=-1)), ValueError, "PGD: eps"),
            (
                Transfer(ensemble(seed=1), [PGD(), PGD(targeted=True)]),
                ValueError,
                "all targeted or all untargeted",
            ),
        ],
    )
    def test_bad_input(self, problem, black_box, error, message):
        with pytest.raises(error, match=message):
            black_box(*problem)

    def test_targeted(self, problem):
        module, x, y = problem
        target = (y + 1) % 3
        black_box = Transfer(ensemble(seed=1), PGD(eps=0.5, targeted=True))
        assert black_box.targeted
        found = black_box(module, x, target)
        hit = is_broken(module, found, target, targeted=True)
        assert hit.sum() > is_broken(module, x, target, targeted=True).sum()


def sign_step(module, x, y):
    """FGSM as another library would write it."""
    leaf = x.clone().requires_grad_()
    nn.functional.cross_entropy(module(leaf), y).backward()
    return (leaf + 0.2 * leaf.grad.sign()).detach()


class TestExternal:
    def test_breaks_what_the_function_breaks(self, problem):
        module, x, y = problem
        found = External(function=sign_step, eps=0.2)(module, x, y)
        expected = sign_step(module, x, y)
        already = is_broken(module, x, y)
        assert torch.equal(found[already], x[already])
        torch.testing.assert_close(found[~already], expected[~already], rtol=0, atol=1e-9)
        assert is_broken(module, found, y).sum() > already.sum()

    def test_sees_a_frozen_module_of_log_probabilities(self, problem):
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

    def test_inside_ball_and_box(self, problem):
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
    def test_refuses_what_breaks_the_rules(self, problem, function, message):
        with pytest.raises(ValueError, match=message):
            External(function=function, eps=0.1)(*problem)

    def test_not_callable(self, problem):
        with pytest.raises(TypeError, match="function must be callable"):
            External(function="pgd", eps=0.1)(*problem)

    def test_its_random_numbers_repeat(self, problem):
        module, x, y = problem

        def noise(model, x, y):
            return x + 0.3 * (2 * torch.rand_like(x) - 1)

        attack = External(function=noise, eps=0.3)
        assert torch.equal(attack(module, x, y), attack(module, x, y))
        other = External(function=noise, eps=0.3, random_state=1)
        assert not torch.equal(attack(module, x, y), other(module, x, y))


def test_linear_surrogate_of_another_linear_model():
    """In closed form: a step along the surrogate's signs moves the target by their agreement."""
    w, v = random(30, seed=1), random(30, seed=2)
    zero = torch.zeros(30, dtype=torch.float64)
    target, surrogate = (linear(torch.stack([zero, weight], dim=1)) for weight in (w, v))
    x = random(1, 30, seed=3) * 0
    x = x + 0.5 * w / w.dot(w)  # margin 0.5
    agreement = float((w * v.sign()).sum())
    y = torch.tensor([1])
    for factor, expected in ((0.99, False), (1.01, True)):
        eps = factor * 0.5 / abs(agreement)
        black_box = Transfer(surrogate, PGD(eps=eps, targeted=agreement < 0, random_start=False))
        (made,) = black_box.examples(x, y)
        assert bool(is_broken(target, made, y)) == expected
