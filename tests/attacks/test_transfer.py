"""Black box attacks: examples made on surrogates, tried on the target."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from small_models import ensemble, linear, random

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.attacks import BIM, MIM, PGD, Transfer, WorstCase, is_broken
from robust_ensembles.metrics import robust_accuracy_score

BLACK = PGD(eps=0.3, n_steps=8)


def test_is_the_union_of_its_sets(problem):
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


def test_weaker_than_white_box(problem):
    module, x, y = problem
    black = is_broken(module, Transfer(ensemble(seed=1), BLACK)(module, x, y), y)
    white = is_broken(module, BLACK(module, x, y), y)
    assert is_broken(module, x, y).sum() < black.sum() < white.sum()


def test_examples_go_on_when_the_surrogate_is_fooled(problem):
    """Examples that only just fool the surrogate transfer badly."""
    _, x, y = problem
    surrogate = ensemble(seed=1)
    (made,) = Transfer(surrogate, BLACK).examples(x, y)
    expected = BLACK(surrogate, x, y, stop_when_broken=False)
    assert torch.equal(made, expected)
    assert not torch.equal(made, BLACK(surrogate, x, y))


@pytest.mark.parametrize("same", ["itself", "copy", "member", "whole", "among others"])
def test_refuses_the_target(problem, same):
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


def test_surrogate_of_other_classes():
    """Its outputs stand for other labels, so its examples would be nonsense."""
    X, y = np.random.default_rng(0).random((40, 5), dtype=np.float32), np.arange(40) % 3
    make = VanillaEnsembleClassifier(max_epochs=1, random_state=0, device="cpu")
    target, other = clone(make).fit(X, y), clone(make).fit(X, y + 1)
    for black_box in (Transfer(other), WorstCase([PGD(), Transfer([other])])):
        with pytest.raises(ValueError, match=r"knows the classes \[1, 2, 3\], the target \[0"):
            robust_accuracy_score(target, X, y, attack=black_box)
        with pytest.raises(ValueError, match="train both on the same labels"):
            black_box.generate(target, X, y)


def test_targeted(problem):
    module, x, y = problem
    target = (y + 1) % 3
    black_box = Transfer(ensemble(seed=1), PGD(eps=0.5, targeted=True))
    assert black_box.targeted
    found = black_box(module, x, target)
    hit = is_broken(module, found, target, targeted=True)
    assert hit.sum() > is_broken(module, x, target, targeted=True).sum()


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
