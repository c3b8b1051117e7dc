"""What DVERGE, LAFED and FASTEN share: the layer that is drawn, modes of BatchNorm, refusals."""

from dataclasses import replace

import pytest
import torch
from naive_steps import BOX, C, D, build, make_step
from small_estimators import FEATURE_SPACE, make
from torch import nn

from robust_ensembles import (
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    LAFEDEnsembleClassifier,
)
from robust_ensembles.estimators import fasten
from robust_ensembles.estimators import feature_space as module_of_feature_space
from robust_ensembles.modules import Ensemble
from robust_ensembles.training import TrainingStep

feature_space = pytest.mark.parametrize("cls", FEATURE_SPACE)

# --- the layer -----------------------------------------------------------------------------


def record_layers(monkeypatch, cls, X, y, **params):
    """For each step of a fit its epoch and the layers, of all members or of FASTEN's makers."""
    drawn = []

    def spy(original):
        def wrapped(step, member, layer, **kwargs):
            index = list(step.module).index(member)
            if not drawn or drawn[-1][1] != step.seed:
                drawn.append((step.epoch, step.seed, {}))
            drawn[-1][2][index] = layer
            return original(step, member, layer, **kwargs)

        return wrapped

    monkeypatch.setattr(module_of_feature_space, "distill", spy(module_of_feature_space.distill))
    monkeypatch.setattr(fasten, "repel", spy(fasten.repel))
    # lets four steps pass in an epoch
    make(cls, batch_size=50, **params).fit(X, y)
    return [(epoch, layers) for epoch, _, layers in drawn]


@feature_space
@pytest.mark.parametrize("schedule", ["epoch", "step"])
def test_layer_schedule(digit_rows, monkeypatch, cls, schedule):
    """One layer for all members, for as long as the schedule says."""
    X, _, y, _ = digit_rows
    params = {"module_params": {"hidden_sizes": (8, 8, 8)}, "max_epochs": 8, "n_steps": 1}
    drawn = record_layers(monkeypatch, cls, X, y, layer_schedule=schedule, **params)
    assert len(drawn) == 8 * 4
    of_epoch = {epoch: set() for epoch, _ in drawn}
    for epoch, layers in drawn:
        assert len(layers) == (2 if cls is FASTENEnsembleClassifier else 3)
        assert len(set(layers.values())) == 1
        of_epoch[epoch].update(layers.values())
    counts = [len(layers) for layers in of_epoch.values()]
    if schedule == "epoch":
        assert set(counts) == {1}
    else:
        assert max(counts) > 1
    assert len(set().union(*of_epoch.values())) == 4  # hidden layers and logits all have turns


@feature_space
def test_layers_at_the_same_relative_depth(digit_rows, monkeypatch, cls):
    """Mixed ensembles have lists of different lengths."""
    X, _, y, _ = digit_rows
    sizes = [(8,), (8, 8, 8), (8,) * 5]  # and the logits: 2, 4 and 6 layers
    drawn = record_layers(
        monkeypatch,
        cls,
        X,
        y,
        module=["mlp"] * 3,
        module_params=[{"hidden_sizes": size} for size in sizes],
        max_epochs=4,
        layer_schedule="step",
        n_steps=1,
    )
    members = [[f"features.{2 * k}" for k in range(len(size))] for size in sizes]
    pairs = set()
    for _, layers in drawn:
        places = {}
        for index, name in layers.items():
            names = [*members[index], "classifier"]
            # half-open parts of [0, 1) that the common draw must lie in
            place = names.index(name)
            places[index] = (place / len(names), (place + 1) / len(names))
        lows, highs = zip(*places.values(), strict=True)
        assert max(lows) < min(highs)
        pairs.add(tuple(sorted(layers.items())))
    assert len(pairs) > 3


@feature_space
def test_layers_of_ones_choice(digit_rows, monkeypatch, cls):
    X, _, y, _ = digit_rows
    lists = [["classifier"], ["features.0"], ["features.0", "classifier"]]
    drawn = record_layers(monkeypatch, cls, X, y, layers=lists, n_steps=1)
    for _, layers in drawn:
        assert all(name in lists[index] for index, name in layers.items())
    estimator = make(cls, layers=["classifier"], max_epochs=1).fit(X, y)
    assert estimator.layers_ == [["classifier"]] * 3


# --- BatchNorm and traces ------------------------------------------------------------------


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(D, 3), nn.BatchNorm1d(3)
        self.last = nn.Linear(3, C)
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return self.last(torch.tanh(self.norm(self.first(x))))


@pytest.mark.parametrize(
    ("params", "mode", "moves"),
    [
        ({}, "train", False),
        ({"formulation": "released"}, "train", True),
        ({"craft_bn": "train"}, "train", True),
        ({"formulation": "released", "craft_bn": "train_frozen_stats"}, "train", False),
        ({"craft_bn": "eval"}, "eval", False),
    ],
    ids=str,
)
@feature_space
def test_craft_bn(cls, params, mode, moves):
    """Whether distillation moves the running statistics; training forwards always do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        members = [Normalized().double() for _ in range(3)]
    step = TrainingStep(Ensemble(members), None, make_step(3).batch, BOX, 7)
    estimator = build(cls, member=Normalized, layers=["norm", "last"], **params)

    def count():
        return sum(int(m.norm.num_batches_tracked) for m in members)

    estimator._perturbed(step) if cls is FASTENEnsembleClassifier else estimator._distill(step)
    assert (count() > 0) == moves
    assert {training for m in members for training in m.modes} == {mode == "train"}
    assert all(m.training and m.norm.training for m in members)
    before = count()
    estimator._objective(replace(step))  # another step, which remembers nothing
    # on the images of two others; on the donor's; on the clean and the perturbed batch
    trained = {DVERGEEnsembleClassifier: 2, LAFEDEnsembleClassifier: 1}.get(cls, 2)
    assert count() - before > 3 * trained if moves else count() - before == 3 * trained
    assert all(p.grad is None and p.requires_grad for p in step.module.parameters())


# --- refused ---------------------------------------------------------------------------------


@feature_space
@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (["clasifier"], "member 0 .MLP.*Did you mean 'classifier'"),
        (["features.0", "feature.0"], "Did you mean 'features.0'"),
        ([["classifier"], ["classifier"], ["classifer"]], "member 2 .*Did you mean 'classifier'"),
        ([["classifier"]] * 2, "lists for 2 members, the ensemble has 3"),
        ([["classifier"], ["classifier"], []], "member 2 .* has no layer"),
        ([], "no layer"),
    ],
)
def test_layers(rejects, digit_rows, cls, layers, match):
    X, _, y, _ = digit_rows
    rejects(make(cls, layers=layers), X, y, match)


@feature_space
def test_layers_that_give_no_features(rejects, digit_rows, cls):
    X, _, y, _ = digit_rows

    class Spare(nn.Module):
        def __init__(self, n_classes):
            super().__init__()
            self.used, self.unused = nn.Linear(64, n_classes), nn.Linear(64, 3)

        def forward(self, x):
            return self.used(x)

    match = r"does not call 'unused'.*usable are \['used'\]"
    rejects(make(cls, module=Spare, layers=["used", "unused"]), X, y, match)


@feature_space
def test_network_without_layers_to_distil_from(rejects, digit_rows, cls):
    X, _, y, _ = digit_rows

    class Bare(nn.Module):
        def __init__(self, n_classes):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, n_classes))

        def forward(self, x):
            return x @ self.weight

    rejects(make(cls, module=Bare), X, y, r"member 0 \(Bare\) has no layer.*name one or more")
