"""The transfer matrix, on members whose every decision is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from torch import nn

from robust_ensembles.attacks import (
    FGSM,
    MIM,
    PGD,
    DeepFool,
    External,
    Square,
    UniformNoise,
    WorstCase,
    is_broken,
)
from robust_ensembles.inspection import transferability_matrix
from robust_ensembles.modules import Ensemble

# Class 1 wherever one feature is positive: member i looks at feature i, member 2 at the sum.
WEIGHTS = ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0])
# The first is right for all, the second wrong for member 1 only, the third wrong for member 0 and
# 1 far away from the border, the fourth right for all and too far to be broken by any.
X = np.array([[0.3, 0.4], [0.3, -0.1], [-2.0, -2.0], [3.0, 3.0]])
Y = np.array([1, 1, 0, 1])
EPS = 0.5


def member(weight, scale=1.0):
    """Logits (0, scale * w.x)."""
    layer = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.tensor([[0.0, 0.0], weight], dtype=torch.float64))
    return layer


def ensemble(*weights):
    return Ensemble([member(w) for w in weights or WEIGHTS])


def matrix(estimator=None, x=X, y=Y, *, attack=None, **settings):
    return transferability_matrix(
        ensemble() if estimator is None else estimator,
        x,
        y,
        attack=attack or FGSM(eps=EPS),
        **settings,
    )


def fooled_by_hand(x=X, y=Y, eps=EPS):
    """(n_members, n_members, n_samples): FGSM on a linear member moves by -eps sign(w)."""
    weights = np.array(WEIGHTS)
    side = np.where(y == 1, 1.0, -1.0)[:, None]
    examples = [x - eps * side * np.sign(w) for w in weights]
    return np.array([[((e @ w > 0) != y) for w in weights] for e in examples])


def test_default_is_the_success_rate_where_all_are_right():
    found = matrix()
    # samples 0, 2 and 3 are right for all; only sample 0 lies within reach
    third = 1 / 3
    expected = [
        # x = (-0.2, 0.4): member 0 is fooled, the sum is not
        [third, 0, 0, 0],
        # x = (0.3, -0.1): member 1 is fooled
        [0, third, 0, 0],
        # x = (-0.2, -0.1): all are
        [third, third, third, third],
    ]
    np.testing.assert_allclose(found.values, expected, rtol=1e-15)
    assert (found.n_samples == 3).all()
    assert found.sources == ("member 0", "member 1", "member 2")
    assert found.targets == (*found.sources, "ensemble")
    assert found.settings == {
        "measure": "success_rate",
        "samples": "correct_for_all",
        "require_source_success": False,
        "random_states": (0,),
        "attack": "FGSM(eps=0.5)",
    }


def test_frame():
    found = matrix(include_ensemble=False)
    frame = found.to_frame()
    assert frame.index.name == "source"
    assert frame.columns.name == "target"
    assert frame.loc["member 2", "member 0"] == found.values[2, 0]
    assert list(frame.columns) == ["member 0", "member 1", "member 2"]


@pytest.mark.parametrize("samples", ["correct_for_all", "correct_for_source", "all"])
def test_measures_add_up_to_one(samples):
    success, accuracy = (
        matrix(samples=samples, measure=m).values for m in ("success_rate", "accuracy")
    )
    np.testing.assert_allclose(success + accuracy, 1, rtol=1e-15)


@pytest.mark.parametrize("samples", ["correct_for_source", "correct_for_pair", "all"])
def test_denominators(samples):
    x = np.random.default_rng(0).normal(size=(60, 2))
    y = (x @ [0.8, 1.2] + 0.3 > 0).astype(int)
    found = matrix(x=x, y=y, samples=samples, include_ensemble=False)
    correct = np.array([(x @ w > 0) == y for w in WEIGHTS])
    fooled = fooled_by_hand(x, y)
    for i in range(3):
        for j in range(3):
            counted = {
                "correct_for_source": correct[i],
                "correct_for_pair": correct[i] & correct[j],
                "all": np.ones(60, dtype=bool),
            }[samples]
            assert found.n_samples[i, j] == counted.sum()
            assert found.values[i, j] == fooled[i, j][counted].mean()
    assert len(np.unique(found.n_samples)) > 1 or samples == "all"


def test_definition_3_needs_both_fooled_and_both_right_before():
    x = np.random.default_rng(1).normal(size=(60, 2))
    y = (x @ [0.8, 1.2] + 0.3 > 0).astype(int)
    found = matrix(x=x, y=y, samples="all", require_source_success=True, include_ensemble=False)
    correct = np.array([(x @ w > 0) == y for w in WEIGHTS])
    fooled = fooled_by_hand(x, y)
    for i in range(3):
        for j in range(3):
            joint = correct[i] & correct[j] & fooled[i, i] & fooled[i, j]
            assert found.values[i, j] == joint.mean()
    without = matrix(x=x, y=y, samples="all", include_ensemble=False).values
    assert (found.values <= without).all()
    assert (found.values < without).any()


def one_of_two_ways(module, x, y):
    """To the left or downwards, as torch's global generator, seeded by External, falls."""
    down = torch.rand(()) < 0.5
    return x - EPS * torch.tensor([float(~down), float(down)], dtype=x.dtype)


def seeds_of_both_ways():
    """A seed that goes to the left, and one that goes downwards."""
    found = {}
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        found.setdefault(bool(torch.rand((), generator=generator) < 0.5), seed)
    return found[False], found[True]


def test_fooled_by_any_seed_counts():
    left, down = seeds_of_both_ways()
    attack = External(function=one_of_two_ways, eps=EPS)

    def run(*seeds, **settings):
        found = matrix(x=X[:1], y=Y[:1], attack=attack, random_states=seeds, **settings)
        return found.values[:, :2]

    rows = np.ones((3, 1))
    np.testing.assert_array_equal(run(left), rows * [1, 0])
    np.testing.assert_array_equal(run(down), rows * [0, 1])
    np.testing.assert_array_equal(run(left, down), rows * [1, 1])
    np.testing.assert_array_equal(run(left, down, measure="accuracy"), rows * [0, 0])
    # member 0 is fooled by one example and member 1 by the other: never by the same
    joint = run(left, down, require_source_success=True)
    assert attack.random_state == 0
    np.testing.assert_array_equal(joint, [[1, 0], [0, 1], [0, 0]])


def test_own_random_state_is_the_default():
    left, down = seeds_of_both_ways()
    for seed in (left, down):
        attack = External(function=one_of_two_ways, eps=EPS, random_state=seed)
        found = matrix(x=X[:1], y=Y[:1], attack=attack)
        assert found.settings["random_states"] == (seed,)
        assert found.values[0, 0] == (seed == left)
        assert attack.random_state == seed


def test_nothing_to_count_is_nan():
    # member 1 is wrong on the only sample
    found = matrix(x=X[1:2], y=Y[1:2], samples="correct_for_source", include_ensemble=False)
    assert np.isnan(found.values[1]).all()
    assert (found.n_samples == [[1] * 3, [0] * 3, [1] * 3]).all()
    assert found.values[0, 0] == 1


def test_members_are_attacked_alone_whatever_the_ensemble_decides():
    """An attack that looks at decisions must look at the member's, not at the ensemble's."""
    # the second member overrules the first, and is wrong from the start
    module = Ensemble([member([1.0, 0.0]), member([0.0, 1.0], scale=100.0)])
    x, y = np.random.default_rng(0).uniform([0.1, -0.9], [0.2, -0.8], (20, 2)), np.ones(20, int)
    attack = Square(eps=0.3, n_queries=20)
    found = matrix(module, x, y, attack=attack, samples="correct_for_source")
    assert found.values[0, 0] == 1
    # by the ensemble's decisions there would be nothing to do
    examples = replace(attack, aggregation=0)(module, torch.tensor(x), torch.tensor(y))
    assert torch.equal(examples, torch.tensor(x))


def test_equals_a_loop_over_the_public_attack():
    generator = torch.Generator().manual_seed(0)
    members = [
        nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in range(3)
    ]
    for parameter in Ensemble(members).parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    module = Ensemble(members)
    x = torch.rand(40, 2, generator=generator, dtype=torch.float64)
    y = members[0](x).argmax(dim=1)
    attack = PGD(eps=0.3, n_steps=5)
    found = matrix(module, x.numpy(), y.numpy(), attack=attack, samples="all")
    for i, source in enumerate(members):
        examples = attack(source, x, y, stop_when_broken=False)
        for j, target in enumerate([*members, module]):
            assert found.values[i, j] == is_broken(target, examples, y).double().mean()


def test_whole_models_of_unlike_dtypes():
    models = {"first": member(WEIGHTS[0]).float(), "second": ensemble(WEIGHTS[1], WEIGHTS[1])}
    found = matrix(models)
    assert found.sources == found.targets == ("first", "second")
    # samples 0, 2 and 3 are right for both
    np.testing.assert_allclose(found.values, np.eye(2) / 3, rtol=1e-15)


def test_estimators_and_pipelines(digit_rows, lettered):
    _, x, _, y = digit_rows
    y = np.array(list("abcdefghij"))[y]
    before = {name: value.clone() for name, value in lettered.module_.state_dict().items()}
    # a Pipeline does not know the box of raw X
    attack = PGD(eps=0.1, n_steps=3, clip_values=(0, 1))
    direct = matrix(lettered, x, y, attack=attack)
    scaler = MinMaxScaler().fit(np.array([[0.0] * 64, [1.0] * 64]))
    piped = matrix(make_pipeline(scaler, lettered), x, y, attack=attack)
    np.testing.assert_array_equal(direct.values, piped.values)
    assert (np.diag(direct.values) > direct.values[[0, 1], [1, 0]]).all()
    assert all(torch.equal(before[k], v) for k, v in lettered.module_.state_dict().items())
    right = lettered.member_predict_proba(x).argmax(axis=2) == np.searchsorted(lettered.classes_, y)
    assert (direct.n_samples == right.all(axis=0).sum()).all()


def test_uint8_that_means_two_things(digit_rows, lettered):
    _, x, _, y = digit_rows
    y = np.array(list("abcdefghij"))[y]
    images = (255 * x).astype(np.uint8)
    scaler = MinMaxScaler().fit(np.array([[0.0] * 64, [255.0] * 64]))
    models = {"direct": lettered, "piped": make_pipeline(scaler, lettered)}
    with pytest.raises(ValueError, match="two units"):
        matrix(models, images, y, attack=FGSM(eps=0.1))


@pytest.mark.parametrize(
    ("error", "match", "settings"),
    [
        (ValueError, "Did you mean 'accuracy'", {"measure": "acuracy"}),
        (ValueError, "samples must be one of", {"samples": "some"}),
        (ValueError, "take measure='success_rate'",
         {"measure": "accuracy", "require_source_success": True}),
        (ValueError, r"such as \(0, 1, 2\)", {"random_states": 3}),
        (ValueError, r"such as \(0, 1, 2\)", {"random_states": ()}),
        (TypeError, "within eps", {"attack": WorstCase([FGSM()])}),
        (TypeError, "within eps", {"attack": DeepFool()}),
        (TypeError, "within eps", {"attack": "pgd"}),
        (ValueError, "targeted", {"attack": PGD(targeted=True)}),
        (ValueError, "eps", {"attack": MIM(eps=-1)}),
        (ValueError, "leave aggregation", {"attack": PGD(aggregation=1)}),
        (ValueError, "inconsistent", {"y": Y[:2]}),
        (ValueError, "not trained on", {"y": Y + 5}),
        (ValueError, "by all models", {"x": X[1:2], "y": Y[1:2]}),
        (ValueError, "no members", {"estimator": member([1.0, 0.0])}),
        (ValueError, "no members", {"estimator": ensemble([1.0, 0.0])}),
        (ValueError, "two fitted models", {"estimator": {"one": member([1.0, 0.0])}}),
    ],
)  # fmt: skip
def test_bad_input(error, match, settings):
    with pytest.raises(error, match=match):
        matrix(**settings)


def test_attack_without_gradients_and_no_trace_on_the_global_generator():
    module, state = ensemble(), torch.get_rng_state()
    found = matrix(module, attack=UniformNoise(eps=EPS), samples="all")
    assert torch.equal(state, torch.get_rng_state())
    assert found.values.shape == (3, 4)
