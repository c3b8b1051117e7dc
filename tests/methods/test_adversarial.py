"""The vanilla ensemble, and adversarial training: their whole objectives."""

import numpy as np
import pytest
from naive_equations import FORMULATIONS
from naive_steps import check, crafted, cross_entropies, make_step, objective
from small_estimators import make

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import FGSM, PGD


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [1, 2, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_vanilla(formulation, n_members, weighted):
    step = make_step(n_members, weighted=weighted)
    reduce = sum if formulation == "paper" else np.mean
    found = objective(VanillaEnsembleClassifier, step, formulation=formulation)
    check(found, {"cross_entropy": reduce(cross_entropies(step))})


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("attack", [PGD(eps=0.2, n_steps=3), FGSM(eps=0.3)])
@pytest.mark.parametrize("target", ["ensemble", "member"])
@pytest.mark.parametrize("n_members", [1, 3])
def test_adversarial(n_members, target, attack, weighted):
    step = make_step(n_members, weighted=weighted)
    x_adv = crafted(step, attack, target)
    assert max(np.abs(x - step.x.numpy()).max() for x in x_adv) == pytest.approx(attack.eps)
    params = {"attack": attack, "attack_target": target}
    expected = sum(cross_entropies(step, x_adv))
    found = objective(AdversarialEnsembleClassifier, step, **params)
    check(found, {"adversarial_cross_entropy": expected})
    assert sum(cross_entropies(step)) < expected


def test_targets_differ():
    step, attack = make_step(3), PGD(eps=0.2)
    ensemble, member = (
        objective(AdversarialEnsembleClassifier, step, attack=attack, attack_target=target)
        for target in ("ensemble", "member")
    )
    # each member's own worst case is worse for it
    name = "adversarial_cross_entropy"
    assert member[name].item() > ensemble[name].item() + 0.01


# --- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [AdversarialEnsembleClassifier, CEATEnsembleClassifier])
@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"attack__eps": -0.1}, "PGD: eps must be .* >= 0.*-0.1"),
        ({"attack__targeted": True}, "targeted=False"),
        ({"attack__norm": "linff"}, "Did you mean 'linf'"),
        ({"attack__n_steps": 0}, "n_steps must be at least 1"),
        ({"attack": "pgd"}, "attack"),
        ({"attack_target": "members"}, "attack_target"),
    ],
    ids=str,
)
def test_bad_attacks(rejects, digit_rows, cls, params, match):
    X, _, y, _ = digit_rows
    rejects(make(cls).set_params(**params), X, y, match)


@pytest.mark.parametrize("cls", [AdversarialEnsembleClassifier, CEATEnsembleClassifier])
@pytest.mark.parametrize("again", ["partial_fit", "warm_start"])
def test_attack_that_is_changed_later(untrained, digit_rows, cls, again):
    X, _, y, _ = digit_rows
    estimator = make(cls, attack=PGD(), warm_start=True).fit(X, y)
    estimator.set_params(attack__eps=-1.0)
    with pytest.raises(ValueError, match="eps must be"):
        estimator.fit(X, y) if again == "warm_start" else estimator.partial_fit(X, y)
