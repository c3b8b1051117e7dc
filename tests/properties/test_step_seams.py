"""One training step, asked for its terms more than once: for what perturbs or averages weights."""

import pytest
import torch
from small_estimators import make
from torch import nn

import robust_ensembles
from robust_ensembles import FASTENEnsembleClassifier, LAFEDEnsembleClassifier
from robust_ensembles.attacks import FGSM, PGD, BoundedAttack
from robust_ensembles.modules import Ensemble
from robust_ensembles.training import Batch, EnsembleNet, TrainingStep

ALL = [
    getattr(robust_ensembles, name)
    for name in robust_ensembles.__all__
    if name.endswith("EnsembleClassifier")
]


def convolutional(n_classes):
    """BatchNorm tells crafting in one mode from crafting in another."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 3, 3, stride=2),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, n_classes),
    )


def fit(cls, data, **params):
    X, y = data
    settings = {"module": convolutional, "attack": PGD(eps=0.05, n_steps=2), **params}
    if cls is robust_ensembles.VanillaEnsembleClassifier:
        del settings["attack"]
    return make(cls, **settings).fit(X[:70], y[:70])


@pytest.fixture
def crafted(monkeypatch):
    """Attacks that were run, in this order."""
    calls, craft = [], BoundedAttack.craft

    def counted(attack, *args, **kwargs):
        calls.append(type(attack))
        return craft(attack, *args, **kwargs)

    monkeypatch.setattr(BoundedAttack, "craft", counted)
    return calls


def parameters(estimator):
    net = estimator.net_
    return [p for module in net.trained_modules for p in module.parameters()]


@pytest.mark.parametrize("cls", ALL)
def test_an_objective_gives_the_same_terms_twice(cls, data, crafted, monkeypatch):
    """Asking twice leaves the fit as it was, to the bit, and crafts nothing again."""
    expected = fit(cls, data)
    n_crafted = len(crafted)
    losses, asked = EnsembleNet.losses, []

    def twice(net, step):
        first, second = losses(net, step), losses(net, step)
        assert list(first) == list(second)
        assert all(torch.equal(first[name], second[name]) for name in first)
        asked.append(step)
        return second

    monkeypatch.setattr(EnsembleNet, "losses", twice)
    found = fit(cls, data)
    assert len(asked) == 6
    assert len(crafted) == 2 * n_crafted
    for own, other in zip(parameters(found), parameters(expected), strict=True):
        assert torch.equal(own, other)


# LAFED also mixes in features, which are no inputs and follow the running statistics
CRAFTING = [c for c in ALL if "craft_bn" in c().get_params() and c is not LAFEDEnsembleClassifier]


@pytest.mark.parametrize("cls", CRAFTING)
def test_inputs_stay_where_running_statistics_move_between_the_calls(cls, data, monkeypatch):
    """They depend on them, and the terms on the inputs alone."""
    losses, asked = EnsembleNet.losses, []

    def twice(net, step):
        first, second = losses(net, step), losses(net, step)
        assert all(torch.equal(first[name], second[name]) for name in first)
        asked.append(step)
        return second

    monkeypatch.setattr(EnsembleNet, "losses", twice)
    fit(cls, data, craft_bn="eval", max_epochs=1)
    assert len(asked) == 3


def test_a_memory_is_written_when_the_weights_have_moved(data, monkeypatch):
    """Not by the objective, and only once in a step."""
    losses, kept = EnsembleNet.losses, []

    def watched(net, step):
        memory = net.objective_.__self__._memory[1]
        before = None if memory.kept is None else memory.kept.clone()
        result = losses(net, step)
        assert (memory.kept is None) == (before is None)
        assert before is None or torch.equal(memory.kept.nan_to_num(9), before.nan_to_num(9))
        kept.append(0 if before is None else int((~before.isnan().any(dim=1)).sum()))
        return result

    monkeypatch.setattr(EnsembleNet, "losses", watched)
    fit(FASTENEnsembleClassifier, data)
    assert kept == [0, 32, 64, 70, 70, 70]


@pytest.fixture
def step():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        members = Ensemble([nn.Linear(4, 3) for _ in range(2)])
        x = torch.rand(5, 4)
    return TrainingStep(
        members, None, Batch(x, torch.arange(5) % 3, None, torch.arange(5)), (0.0, 1.0), 3
    )


def test_a_step_crafts_once_for_the_same_arguments(step, crafted):
    first = step.craft(PGD(eps=0.1, n_steps=2), mode="eval")
    for same in (
        step.craft(PGD(eps=0.1, n_steps=2), mode="eval"),
        step.craft(PGD(eps=0.1, n_steps=2), mode="eval", target=step.module, x=step.x),
    ):
        assert same is first
    assert len(crafted) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda step: step.craft(PGD(eps=0.2, n_steps=2), mode="eval"),
        lambda step: step.craft(PGD(eps=0.1, n_steps=2, loss="dlr"), mode="eval"),
        lambda step: step.craft(FGSM(eps=0.1), mode="eval"),
        lambda step: step.craft(PGD(eps=0.1, n_steps=2), mode="train"),
        lambda step: step.craft(PGD(eps=0.1, n_steps=2), mode="eval", target=step.module[0]),
        lambda step: step.craft(PGD(eps=0.1, n_steps=2), mode="eval", x=step.x.clone()),
    ],
)
def test_a_step_crafts_anew_for_other_arguments(step, crafted, other):
    step.craft(PGD(eps=0.1, n_steps=2), mode="eval")
    other(step)
    assert len(crafted) == 2


def test_inputs_that_are_gone_lend_their_identity_to_none(step, crafted):
    """Copies of the batch may come to lie where one lay that nobody needs any more."""
    for _ in range(20):
        step.craft(FGSM(eps=0.1), mode="eval", x=step.x.clone())
    assert len(crafted) == 20


def test_commit_does_what_was_asked_for_last(step):
    done = []
    for number in (1, 2):
        step.on_commit("memory", lambda number=number: done.append(number))
    step.on_commit("average", lambda: done.append("average"))
    assert not done
    step.commit()
    assert done == [2, "average"]
