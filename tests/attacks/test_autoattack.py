"""What AutoAttack, and its version for ensembles, are made of."""

import pytest
import torch

from robust_ensembles.attacks import (
    APGD,
    FAB,
    MORA,
    AutoAttack,
    EnsembleAutoAttack,
    Square,
    TargetedAPGD,
    WorstCase,
    is_broken,
)

VERSIONS = [
    *(
        AutoAttack(eps=0.12, version=version, n_queries=5)
        for version in ("standard", "plus", "rand")
    ),
    EnsembleAutoAttack(eps=0.12, n_queries=5),
]


@pytest.mark.parametrize("attack", VERSIONS, ids=repr)
def test_is_the_worst_case_of_its_parts(attack, problem, short_cascades):
    module, x, y = (part[:12] if isinstance(part, torch.Tensor) else part for part in problem)
    expected = WorstCase(attack.attacks(3))(module, x, y)
    assert torch.equal(attack(module, x, y), expected)
    assert 2 < is_broken(module, expected, y).sum() < 12


def test_parts_of_the_standard():
    shared = {"eps": 0.1, "norm": "l2", "random_state": 3, "batch_size": 7}
    apgd, targeted, fab, square = AutoAttack(**shared).attacks()
    assert [type(a) for a in (apgd, targeted, fab, square)] == [APGD, TargetedAPGD, FAB, Square]
    for part in (apgd, targeted, fab, square):
        assert {name: getattr(part, name) for name in shared} == shared
    assert (apgd.n_steps, targeted.n_steps, fab.n_steps) == (100, 100, 100)
    assert (targeted.n_target_classes, fab.n_target_classes) == (9, 9)
    assert (apgd.n_restarts, square.n_queries) == (1, 5000)


def test_parts_of_the_other_versions():
    of = {v: [repr(part) for part in AutoAttack(version=v).attacks()] for v in ("plus", "rand")}
    walks = ["APGD(n_restarts=5)", "APGD(loss='dlr', n_restarts=5)"]
    assert of["plus"] == [*walks, "TargetedAPGD()", "FAB(n_restarts=5)", "Square()"]
    assert of["rand"] == ["APGD(n_gradients=20)", "APGD(loss='dlr', n_gradients=20)"]


def test_ensemble_version_attacks_every_rule():
    parts = EnsembleAutoAttack().attacks(3)
    rules = [(p.loss, p.aggregation) for p in parts if type(p) is APGD]
    assert rules == [
        ("margin", "mean_proba"),
        ("margin", "mean_logits"),
        ("member_margin", "mean_proba"),
        ("margin", 0),
        ("margin", 1),
        ("margin", 2),
    ]
    assert sum(isinstance(p, MORA) for p in parts) == 1
    assert [type(p) for p in parts[-3:]] == [TargetedAPGD, FAB, Square]


def test_ensemble_version_of_a_plain_module(problem, short_cascades):
    module, x, _ = problem
    member, labels = module[0], module[0](x).argmax(dim=1)
    kinds = [type(p) for p in EnsembleAutoAttack().attacks(1)]
    assert kinds == [APGD, TargetedAPGD, FAB, Square]
    found = EnsembleAutoAttack(eps=0.2, n_queries=5)(member, x[:5], labels[:5])
    expected = AutoAttack(eps=0.2, n_queries=5)(member, x[:5], labels[:5])
    assert torch.equal(found, expected)


def test_not_for_training_examples(problem):
    with pytest.raises(ValueError, match="looks at every decision"):
        AutoAttack()(*problem, stop_when_broken=False)
