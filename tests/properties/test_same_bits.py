"""Every method trains, and every attack makes, what was recorded: see `digests.py`."""

import copy
import inspect

import digests
import pytest

from robust_ensembles import attacks

RECORDED = digests.recorded()
SAME_MACHINE = RECORDED["environment"] == digests.environment()


@pytest.mark.parametrize("name", [*digests.METHOD_CASES, *digests.ATTACK_CASES])
def test_as_recorded(name):
    present = digests.result(name)
    assert not digests.disagreements(RECORDED["cases"][name], present, exact=SAME_MACHINE)


def test_what_is_recorded():
    assert set(RECORDED["cases"]) == {*digests.METHOD_CASES, *digests.ATTACK_CASES}
    assert len(digests.ESTIMATORS) == 12


def test_all_attacks_are_recorded():
    public = [getattr(attacks, name) for name in attacks.__all__]
    kinds = {
        kind.__name__
        for kind in public
        if inspect.isclass(kind) and issubclass(kind, attacks.Attack)
    }
    bases = {"Attack", "BoundedAttack", "GradientAttack", "MinimumNormAttack"}
    assert kinds - bases == {name.partition("-")[0] for name in digests.ATTACK_CASES}


@pytest.fixture
def case():
    return {
        "digests": {"weights": "aa", "predict_proba": "bb"},
        "summary": {
            "proba_first": [0.5, 0.1],
            "squares_of_weights": [100.0],
            "train_loss": [2.0, 1.8],
            "change_stopped": [0.05],
            "fraction_broken": [0.5],
        },
    }


def differences(case, **changes):
    """With exact comparison, and with the other."""
    other = copy.deepcopy(case)
    for key, value in changes.items():
        other["digests" if isinstance(value, str) else "summary"][key] = value
    return [digests.disagreements(case, other, exact=exact) for exact in (True, False)]


def test_no_difference(case):
    assert differences(case) == [[], []]


def test_other_bits_fail_the_exact_comparison_alone(case):
    exact, near = differences(case, weights="ab")
    assert exact == ["weights: other bits than recorded"]
    assert near == []


@pytest.mark.parametrize(
    "changes",
    [
        {"proba_first": [0.5, 0.11]},
        {"train_loss": [2.0, 1.9]},
        {"squares_of_weights": [100.3]},
        {"change_stopped": [0.052]},
        {"proba_first": [0.5]},
        {"proba_first": [0.5, float("nan")]},
        {"fraction_broken": [0.65]},
        {"of_another_kind": [0.0]},
    ],
)
def test_other_numbers_fail_the_near_comparison_alone(case, changes):
    exact, near = differences(case, **changes)
    assert exact == []
    assert [message.partition(":")[0] for message in near] == list(changes)


def test_rounding_passes_the_near_comparison(case):
    assert differences(case, proba_first=[0.5001, 0.1001], fraction_broken=[0.52]) == [[], []]


def test_what_lacks_fails_both_comparisons(case):
    less = {"digests": {}, "summary": {}}
    for exact in (True, False):
        assert len(digests.disagreements(case, less, exact=exact)) == (2 if exact else 5)


def test_digests_know_order_shape_and_type():
    arrays = [[1.0, 2.0], [3.0]]
    others = [arrays[::-1], [[[1.0, 2.0]], [3.0]], [[1, 2], [3]]]
    assert len({digests.digest(x) for x in [arrays, *others]}) == 4
