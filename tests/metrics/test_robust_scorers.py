"""Robust accuracy of fitted estimators, and the scorers around it."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import accuracy_score
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit

from robust_ensembles import VanillaEnsembleClassifier
from robust_ensembles.attacks import BIM, FGSM, PGD, External, Transfer, UniformNoise, WorstCase
from robust_ensembles.metrics import (
    get_robust_scorer,
    make_robust_scorer,
    make_transfer_scorer,
    robust_accuracy_score,
    robust_mask,
    robust_scoring,
)

EPS = 0.08


def make(**params):
    settings = {
        "module_params": {"hidden_sizes": (16,)},
        "max_epochs": 15,
        "batch_size": 32,
        "lr": 0.01,
        "device": "cpu",
        "random_state": 0,
    }
    return VanillaEnsembleClassifier(**{**settings, **params})


@dataclass(kw_only=True, repr=False, eq=False)
class CountedPGD(PGD):
    """Counts its calls, in the class: scikit-learn may clone attacks."""

    def __call__(self, *args, **kwargs):
        type(self).calls += 1
        return super().__call__(*args, **kwargs)


CountedPGD.calls = 0


@pytest.fixture(autouse=True)
def _count_from_zero():
    CountedPGD.calls = 0


@pytest.fixture(scope="module")
def fitted(digit_rows):
    X, _, y, _ = digit_rows
    return make().fit(X, y)


def test_is_accuracy_on_adversarial_examples(digit_rows, fitted):
    _, X, _, y = digit_rows
    for attack in (FGSM(eps=EPS), PGD(eps=0.5, norm="l2"), UniformNoise(eps=0.3)):
        adversarial = attack.generate(fitted, X, y)
        both = (fitted.predict(X) == y) & (fitted.predict(adversarial) == y)
        np.testing.assert_array_equal(robust_mask(fitted, X, y, attack=attack), both)
        assert robust_accuracy_score(fitted, X, y, attack=attack) == both.mean()
        assert make_robust_scorer(attack)(fitted, X, y) == both.mean()
    assert robust_accuracy_score(fitted, X, y, attack=PGD(eps=0)) == fitted.score(X, y)
    assert robust_accuracy_score(fitted, X, y, attack=PGD(eps=1.0, n_steps=20)) == 0


def test_string_labels(digit_rows, fitted):
    X, X_test, y, y_test = digit_rows
    names = np.array([f"digit {i}" for i in range(10)])
    named = make().fit(X, names[y])
    for scorer in robust_scoring("fgsm", eps=EPS).values():
        assert scorer(named, X_test, names[y_test]) == scorer(fitted, X_test, y_test)
    with pytest.raises(ValueError, match="not trained on: \\['digit 77'\\]"):
        FGSM(eps=EPS).generate(named, X_test[:1], ["digit 77"])


def test_a_label_that_the_training_fold_did_not_hold_counts_as_wrong(digit_rows):
    X, X_test, y, y_test = digit_rows
    nine = make().fit(X[y < 9], y[y < 9])
    for scorer in robust_scoring("fgsm", eps=EPS).values():
        mask = scorer.robust_mask(nine, X_test, y_test)
        assert not mask[y_test == 9].any()
        np.testing.assert_array_equal(
            mask[y_test < 9], scorer.robust_mask(nine, X_test[y_test < 9], y_test[y_test < 9])
        )


def test_worst(digit_rows, fitted):
    _, X, _, y = digit_rows
    attacks = [FGSM(eps=EPS), UniformNoise(eps=0.3), PGD(eps=0.45, norm="l2")]
    scoring = robust_scoring(*attacks)
    masks = {key: scorer.robust_mask(fitted, X, y) for key, scorer in scoring.items()}
    named = [masks[key] for key in scoring if key not in ("clean", "worst")]
    np.testing.assert_array_equal(masks["worst"], np.logical_and.reduce(named))
    np.testing.assert_array_equal(masks["clean"], fitted.predict(X) == y)
    assert all(masks["worst"].mean() < mask.mean() for mask in named)
    assert all(mask.mean() < masks["clean"].mean() for mask in named)
    single = robust_mask(fitted, X, y, attack=WorstCase(attacks))
    assert np.array_equal(masks["worst"], single)


def test_an_attack_runs_once_per_pass(digit_rows, fitted):
    _, X, _, y = digit_rows
    scoring = robust_scoring(CountedPGD(eps=EPS, n_steps=2), FGSM(eps=EPS))
    first = {key: scorer(fitted, X, y) for key, scorer in scoring.items()}
    assert CountedPGD.calls == 1
    assert {key: scorer(fitted, X, y) for key, scorer in scoring.items()} == first
    assert CountedPGD.calls == 1
    separate = robust_scoring(CountedPGD(eps=EPS, n_steps=2))
    assert separate["worst"](fitted, X, y) == first["countedpgd"]
    assert CountedPGD.calls == 2  # nothing is shared between dicts


def test_nothing_is_stale(digit_rows):
    X, X_test, y, y_test = digit_rows
    estimator = make(max_epochs=5).fit(X, y)
    attack = CountedPGD(eps=EPS, n_steps=2)
    scorer = robust_scoring(attack)["worst"]
    seen = [scorer(estimator, X_test, y_test)]

    def check():
        calls = CountedPGD.calls
        seen.append(scorer(estimator, X_test, y_test))
        assert CountedPGD.calls == calls + 1
        assert seen[-1] == robust_accuracy_score(estimator, X_test, y_test, attack=attack)

    for _ in range(5):
        estimator.partial_fit(X, y)
    check()
    estimator.set_params(random_state=1).fit(X, y)
    check()
    attack.set_params(eps=EPS / 4)
    check()
    X_test = X_test.copy()
    X_test[:20] = 0.5
    check()
    X_test[20:40] = 0.5  # in place
    check()
    y_test = np.roll(y_test, 1)
    check()
    estimator.estimators_[0].classifier.weight.data.zero_()
    check()
    assert len(set(seen)) > 4


def test_copies(digit_rows, fitted):
    """Of a mask, which anybody may change, and of scorers in other processes."""
    _, X, _, y = digit_rows
    scoring = robust_scoring("pgd5", eps=EPS)
    again = pickle.loads(pickle.dumps(scoring))
    for name, scorer in scoring.items():
        expected = scorer(fitted, X, y)
        scorer.robust_mask(fitted, X, y)[:] = False
        assert scorer(fitted, X, y) == again[name](fitted, X, y) == expected


def test_sample_weight(digit_rows, fitted):
    _, X, _, y = digit_rows
    attack = FGSM(eps=EPS)
    weight = np.arange(100.0)
    mask = robust_mask(fitted, X, y, attack=attack)
    expected = np.average(mask, weights=weight)
    assert expected != mask.mean()
    assert robust_accuracy_score(
        fitted, X, y, attack=attack, sample_weight=weight
    ) == pytest.approx(expected)
    scoring = robust_scoring(attack)
    for key in ("fgsm", "worst"):
        assert scoring[key](fitted, X, y, sample_weight=weight) == pytest.approx(expected)
    clean = accuracy_score(y, fitted.predict(X), sample_weight=weight)
    assert scoring["clean"](fitted, X, y, sample_weight=weight) == pytest.approx(clean)
    with pytest.raises(ValueError, match="sample_weight"):
        scoring["clean"](fitted, X, y, sample_weight=weight[1:])


@pytest.mark.parametrize(
    ("attack", "match"),
    [
        (PGD(targeted=True), "targeted"),
        (WorstCase([FGSM(targeted=True)]), "targeted"),
        (PGD(eps=-1), "eps must be"),
    ],
)
def test_bad_attacks_are_refused(digit_rows, fitted, attack, match):
    _, X, _, y = digit_rows
    with pytest.raises(ValueError, match=match):
        robust_accuracy_score(fitted, X, y, attack=attack)
    with pytest.raises(ValueError, match=match):
        make_robust_scorer(attack)


def test_estimator_is_left_alone(digit_rows):
    X, X_test, y, y_test = digit_rows
    estimator = make(max_epochs=2, module="resnet20", module_params=None, input_shape=(1, 8, 8))
    estimator.fit(X[:64], y[:64])
    before = pickle.dumps(estimator.module_.state_dict())
    gradients = [p.grad.clone() for p in estimator.module_.parameters()]
    robust_accuracy_score(estimator, X_test[:8], y_test[:8], attack=BIM(eps=0.1, n_steps=2))
    assert pickle.dumps(estimator.module_.state_dict()) == before
    for parameter, gradient in zip(estimator.module_.parameters(), gradients, strict=True):
        assert parameter.requires_grad
        assert torch.equal(parameter.grad, gradient)


def test_epoch_scoring_is_not_fooled_by_a_cache(digit_rows):
    """skorch #394: with cached predictions the robust accuracy is the clean one."""
    X, _, y, _ = digit_rows
    scorer = make_robust_scorer(PGD(eps=EPS, n_steps=5))
    callbacks = [
        EpochScoring(scorer, lower_is_better=False),
        EpochScoring(robust_scoring("pgd5", eps=EPS)["worst"], lower_is_better=False),
        EpochScoring(get_robust_scorer("clean"), lower_is_better=False),
    ]
    split = ValidSplit(2, stratified=True)
    estimator = make(train_split=split, callbacks=callbacks, max_epochs=8).fit(X, y)
    _, valid = split(estimator.net_.get_dataset(X, y), y)
    X_valid, y_valid = X[valid.indices], y[valid.indices]
    last = estimator.history_[-1]
    expected = robust_accuracy_score(estimator, X_valid, y_valid, attack=scorer.attacks[0])
    assert last["pgd"] == last["worst"] == expected
    assert last["clean"] == estimator.score(X_valid, y_valid)
    assert last["clean"] == pytest.approx(last["valid_acc"])
    assert expected < last["valid_acc"] - 0.2
    assert len(set(estimator.history_[:, "pgd"])) > 3
    assert same_weights(estimator, clone(estimator).set_params(callbacks=None).fit(X, y))


def same_weights(first, second):
    a, b = first.module_.state_dict(), second.module_.state_dict()
    return all((a[name] == b[name]).all() for name in a)


def test_conditional_on_what_is_correct(digit_rows, fitted):
    _, X, _, y = digit_rows
    y = np.where(np.arange(100) % 4 == 0, (y + 1) % 10, y)  # a quarter is wrong from the start
    attack = FGSM(eps=EPS)
    robust, clean = robust_mask(fitted, X, y, attack=attack), fitted.predict(X) == y
    expected = robust.sum() / clean.sum()
    assert robust.mean() < expected < 1
    found = robust_accuracy_score(fitted, X, y, attack=attack, conditional=True)
    assert found == pytest.approx(expected)
    assert make_robust_scorer(attack, conditional=True)(fitted, X, y) == pytest.approx(expected)
    scoring = robust_scoring(attack, conditional=True)
    assert scoring["fgsm"](fitted, X, y) == pytest.approx(expected)
    assert scoring["worst"](fitted, X, y) == pytest.approx(expected)
    assert scoring["clean"](fitted, X, y) == clean.mean()
    assert "conditional=True" in repr(scoring["fgsm"])
    weight = np.where(clean, 2.0, 7.0)
    assert scoring["fgsm"](fitted, X, y, sample_weight=weight) == pytest.approx(expected)
    wrong = (fitted.predict(X) + 1) % 10
    for conditional in (False, True):
        found = robust_accuracy_score(fitted, X, wrong, attack=attack, conditional=conditional)
        assert found == 0


def test_transfer_scorer(digit_rows, fitted):
    X, X_test, y, y_test = digit_rows
    surrogate = make(random_state=1).fit(X, y)
    attack = PGD(eps=EPS)
    scorer = make_transfer_scorer(surrogate, attack)
    expected = robust_accuracy_score(fitted, X_test, y_test, attack=Transfer(surrogate, attack))
    assert scorer(fitted, X_test, y_test) == expected
    white = robust_accuracy_score(fitted, X_test, y_test, attack=attack)
    assert white < expected < fitted.score(X_test, y_test)
    with pytest.raises(ValueError, match="white-box"):
        scorer(surrogate, X_test, y_test)


def test_attack_that_cannot_be_pickled_is_shared_by_identity(digit_rows, fitted):
    _, X, _, y = digit_rows
    calls = []

    def noise(module, x, y):
        calls.append(len(x))
        return x + EPS * torch.sign(torch.randn_like(x))

    attack = External(function=noise, eps=EPS)
    scoring = robust_scoring(attack)
    assert scoring["external"](fitted, X, y) == scoring["worst"](fitted, X, y)
    assert len(calls) == 1
