"""Adversarial training and calibration beside every method, and mixed ensembles."""

import numpy as np
import pytest
import torch
from naive_steps import (
    FORMULATIONS,
    build,
    check,
    check_backward,
    crafted,
    make_step,
    naive_cross_entropies,
    naive_distances,
    naive_divergence,
    samples,
)
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from small_estimators import ADVERSARIAL, CLASSES, DIVERSE, make, same_weights, weights
from torch import nn

from robust_ensembles import (
    ADPEnsembleClassifier,
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    CollaborativeCalibration,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    GALEnsembleClassifier,
    LAFEDEnsembleClassifier,
    TRSEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import FGSM, PGD
from robust_ensembles.training import EnsembleNet

ATTACK = PGD(eps=0.2, n_steps=2)
# each member has its own examples, by default
PER_MEMBER = [DVERGEEnsembleClassifier, LAFEDEnsembleClassifier, FASTENEnsembleClassifier]
SUMMING = [ADPEnsembleClassifier, *PER_MEMBER]
# FASTEN attacks what its members see; test_objectives_distilled.py has it
ON_THE_BATCH = [cls for cls in DIVERSE if cls is not FASTENEnsembleClassifier]
CALIBRATION = CollaborativeCalibration(lam=0.5, mu=2.0)


def objective(cls, step, **params):
    return build(cls, len(step.module), **params)._objective(step)


def step_for(cls, n_members=3, **params):
    return make_step(n_members, auxiliary=cls is CLDLEnsembleClassifier, **params)


def values(terms):
    return {name: term.item() for name, term in terms.items()}


# --- adversarial training ------------------------------------------------------------------


def naive_adversarial(cls, step, x_adv, formulation):
    """The cross-entropy on the examples, or the divergence from their soft labels."""
    n = len(step.module)
    if cls is CLDLEnsembleClassifier:
        divergences = [
            w * naive_divergence(step, m, x_adv[i][b], y, gamma=4.0, released=released)
            for released in [formulation == "released"]
            for i, m in enumerate(step.module)
            for b, (_, y, w) in enumerate(samples(step))
        ]
        return {"adversarial_divergence": sum(divergences) / len(step.x) / n}
    losses = naive_cross_entropies(step, x_adv)
    return {"adversarial_cross_entropy": sum(losses) / (1 if cls in SUMMING else n)}


@pytest.mark.parametrize("n_members", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("target", ["ensemble", "member", None])
@pytest.mark.parametrize("cls", ON_THE_BATCH)
def test_adversarial_training(cls, target, weighted, n_members):
    """The method's terms stay; the loss on the examples has the method's own reduction."""
    n_members += cls is LAFEDEnsembleClassifier
    step = step_for(cls, n_members, weighted=weighted)
    target_params = {"attack_target": target} if target else {}
    default = "member" if cls in PER_MEMBER else "ensemble"
    x_adv = crafted(step, ATTACK, target or default)
    expected = {
        **values(objective(cls, step)),
        **naive_adversarial(cls, step, x_adv, "paper"),
    }
    check(objective(cls, step, attack=ATTACK, **target_params), expected)


@pytest.mark.parametrize("cls", [c for c in ON_THE_BATCH if c is not ADPEnsembleClassifier])
def test_adversarial_training_released(cls):
    """TRS sums its cross-entropy there, both of them; ADP adds terms, see its own test."""
    step = step_for(cls, weighted=True)
    x_adv = crafted(step, ATTACK, "ensemble")
    expected = {
        **values(objective(cls, step, formulation="released")),
        **naive_adversarial(cls, step, x_adv, "released"),
    }
    if cls is TRSEnsembleClassifier:
        expected["adversarial_cross_entropy"] *= 3
    params = {"formulation": "released", "attack_target": "ensemble"}
    check(objective(cls, step, attack=ATTACK, **params), expected)


@pytest.mark.parametrize("cls", [GALEnsembleClassifier, TRSEnsembleClassifier])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_adversarial_loss_reduces_as_the_clean_one(cls, reduce):
    step = make_step(3)
    losses = sum(naive_cross_entropies(step, crafted(step, ATTACK, "ensemble")))
    found = objective(
        cls, step, attack=ATTACK, calibration=CALIBRATION, cross_entropy_reduce=reduce
    )
    divisor = 1 if reduce == "sum" else 3
    assert found["adversarial_cross_entropy"].item() == pytest.approx(losses / divisor)
    distances = naive_distances(step, crafted(step, ATTACK, "ensemble"), lam=0.5, mu=2.0)
    for name, distance in distances.items():
        assert found[name].item() == pytest.approx(distance / divisor)


@pytest.mark.parametrize("cls", DIVERSE)
def test_no_attack_by_default(cls):
    terms = objective(cls, step_for(cls))
    assert not [name for name in terms if "adversarial" in name or "distance" in name]
    assert cls().attack is None
    assert cls().calibration is None


@pytest.mark.parametrize("cls", DIVERSE)
def test_attack_is_used_in_a_fit(digit_rows, cls):
    """A column for what it adds; a wide ball makes it a hard loss."""
    X, _, y, _ = digit_rows
    fits = [make(cls, attack=FGSM(eps=eps), max_epochs=1).fit(X[:64], y[:64]) for eps in (0.0, 0.5)]
    loss = "divergence" if cls is CLDLEnsembleClassifier else "cross_entropy"
    easy, hard = (fit.history_[-1][f"train_adversarial_{loss}"] for fit in fits)
    assert hard > easy + 0.1
    assert not same_weights(*fits)


# --- calibration ---------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("cls", "n_members"),
    [
        (cls, n)
        for cls in ON_THE_BATCH
        for n in (2, 3, 4)
        if n > 2 or cls is not LAFEDEnsembleClassifier
    ],
)
def test_calibration(cls, n_members, weighted):
    """CEAT's two terms, summed or averaged as the method's own loss."""
    step = step_for(cls, n_members, weighted=weighted)
    x_adv = crafted(step, ATTACK, "member" if cls in PER_MEMBER else "ensemble")
    distances = naive_distances(step, x_adv, lam=0.5, mu=2.0)
    divisor = 1 if cls in SUMMING else n_members
    expected = {
        **values(objective(cls, step, attack=ATTACK)),
        **{name: distance / divisor for name, distance in distances.items()},
    }
    check(objective(cls, step, attack=ATTACK, calibration=CALIBRATION), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lam_exp": 0.5, "mu_exp": 4.0},
        {"peers": "pair_mean"},
        {"peers": "range"},
        {"distance_on": "logits"},
        {"distance_reduce": "mean"},
        {"normalize_weights": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("cls", [AdversarialEnsembleClassifier, GALEnsembleClassifier])
def test_options_of_the_calibration(cls, options):
    step = make_step(4, weighted=True)
    x_adv = crafted(step, ATTACK, "ensemble")
    calibration = CollaborativeCalibration(2.0, 3.0, **options)
    found = objective(cls, step, attack=ATTACK, calibration=calibration)
    divisor = 1 if cls is AdversarialEnsembleClassifier else 4
    for name, distance in naive_distances(step, x_adv, lam=2.0, mu=3.0, **options).items():
        assert found[name].item() == pytest.approx(distance / divisor)


def test_stop_gradient_clean():
    """Changes no value, but leaves the adversarial distance to the adversarial output."""
    step = make_step(3)
    found = []
    for stop in (False, True):
        calibration = CollaborativeCalibration(0.0, 2.0, mu_exp=0.0, stop_gradient_clean=stop)
        params = {"attack": ATTACK, "calibration": calibration}
        found.append(objective(AdversarialEnsembleClassifier, step, **params))
    terms = [f["adversarial_distance"] for f in found]
    assert terms[0].item() == terms[1].item()
    slopes = [torch.autograd.grad(t, step.module[0].last.bias)[0] for t in terms]
    assert (slopes[0] - slopes[1]).abs().max() > 1e-3


@pytest.mark.parametrize("n_estimators", [3, 4])
@pytest.mark.parametrize("lam_mu", [(1.0, 5.0), (5.0, 1.0), (0.3, 0.0)])
def test_calibrated_adversarial_training_is_ceat(digit_rows, lam_mu, n_estimators):
    """To the bit."""
    X, _, y, _ = digit_rows
    lam, mu = lam_mu
    params = {"attack": PGD(eps=0.05, n_steps=2), "n_estimators": n_estimators}
    plugged_in = make(
        AdversarialEnsembleClassifier, calibration=CollaborativeCalibration(lam, mu), **params
    ).fit(X, y)
    ceat = make(CEATEnsembleClassifier, lam=lam, mu=mu, **params).fit(X, y)
    assert same_weights(plugged_in, ceat)
    plain = make(AdversarialEnsembleClassifier, **params).fit(X, y)
    assert not same_weights(plain, ceat)


def test_defaults_of_the_calibration():
    """CEAT's own: (1, 5), tied to the exponents."""
    ceat, own = CEATEnsembleClassifier().get_params(), CollaborativeCalibration().get_params()
    assert own["lam"] == 1.0
    assert own["mu"] == 5.0
    assert own == {name: ceat[name] for name in own}


def test_adversarial_training_has_an_attack_to_calibrate(digit_rows):
    """attack=None is PGD there."""
    X, _, y, _ = digit_rows
    estimator = make(
        AdversarialEnsembleClassifier, attack=None, calibration=CALIBRATION, max_epochs=1
    ).fit(X[:64], y[:64])
    assert "train_natural_distance" in estimator.history_[-1]


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("cls", DIVERSE)
def test_calibration_without_an_attack(digit_rows, monkeypatch, cls, method):
    X, _, y, _ = digit_rows
    monkeypatch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: pytest.fail("began"))
    estimator = make(cls, calibration=CALIBRATION)
    with pytest.raises(ValueError, match=r"attack=None; give an attack, such as attack=PGD"):
        getattr(estimator, method)(X, y)
    with pytest.raises(NotFittedError):
        estimator.predict(X)


# --- parameters ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", DIVERSE)
def test_parameters_of_what_is_not_there(cls):
    with pytest.raises(ValueError, match=r"attack__eps cannot be set: attack=None.*PGD\("):
        make(cls).set_params(attack__eps=0.1)
    with pytest.raises(ValueError, match=r"calibration__mu cannot be set.*CollaborativeCalib"):
        make(cls, attack=PGD()).set_params(calibration__mu=1.0)


def test_parameters_of_a_start_that_is_not_there():
    for pretrained in (None, 3):
        estimator = make(DVERGEEnsembleClassifier, pretrained=pretrained)
        with pytest.raises(ValueError, match="pretrained__lr cannot be set"):
            estimator.set_params(pretrained__lr=0.1)


def test_two_members_have_no_peers(digit_rows):
    X, _, y, _ = digit_rows
    params = {"attack": PGD(eps=0.01, n_steps=1), "calibration": CollaborativeCalibration()}
    estimator = make(GALEnsembleClassifier, n_estimators=2, max_epochs=1, **params)
    with pytest.warns(UserWarning, match="no member has two peers") as caught:
        estimator.fit(X, y)
    assert caught[0].filename == __file__


def test_parameters_of_what_is_there():
    attack, calibration = PGD(eps=0.1), CollaborativeCalibration(mu=2.0)
    estimator = make(GALEnsembleClassifier, attack=attack, calibration=calibration)
    estimator.set_params(attack__eps=0.3, calibration__mu=3.0)
    assert (estimator.attack.eps, estimator.calibration.mu) == (0.3, 3.0)
    estimator = make(GALEnsembleClassifier)
    estimator.set_params(attack=PGD(), attack__eps=0.2, calibration=CALIBRATION)
    assert estimator.attack.eps == 0.2
    assert estimator.get_params()["calibration__lam"] == 0.5
    estimator = make(AdversarialEnsembleClassifier, attack=None).set_params(attack__eps=0.2)
    assert estimator.attack.n_steps == 10  # its own default, of another radius


@pytest.mark.parametrize("cls", [c for c in CLASSES if hasattr(c, "calibration")])
def test_clones_share_nothing(cls):
    estimator = make(cls, attack=PGD(eps=0.1), calibration=CollaborativeCalibration(mu=2.0))
    copy = clone(estimator).set_params(attack__eps=0.3, calibration__mu=7.0)
    assert (estimator.attack.eps, estimator.calibration.mu) == (0.1, 2.0)
    assert (copy.attack.eps, copy.calibration.mu) == (0.3, 7.0)
    assert "calibration=CollaborativeCalibration(mu=2.0)" in repr(estimator).replace("\n", "")


def test_search_over_the_calibration(digit_rows):
    """Each candidate is fitted with its own."""
    X, _, y, _ = digit_rows
    attack = PGD(eps=0.05, n_steps=1)
    estimator = make(GALEnsembleClassifier, attack=attack, calibration=CollaborativeCalibration())
    grid = {"calibration__mu": [0.0, 50.0], "calibration__lam": [1.0]}
    search = GridSearchCV(estimator, grid, cv=2, scoring="accuracy", error_score="raise").fit(X, y)
    best = search.best_params_["calibration__mu"]
    assert search.best_estimator_.calibration.mu == best
    assert estimator.calibration.mu == 5.0
    expected = make(
        GALEnsembleClassifier, attack=attack, calibration=CollaborativeCalibration(1.0, best)
    ).fit(X, y)
    assert same_weights(search.best_estimator_, expected)
    assert len(set(search.cv_results_["mean_test_score"])) == 2


# --- gradients -----------------------------------------------------------------------------

# with exponents of zero all disparity weights, which pass no gradient, are 1
PLAIN_DISTANCES = CollaborativeCalibration(1.0, 2.0, lam_exp=0.0, mu_exp=0.0)


@pytest.mark.parametrize("cls", DIVERSE)
def test_slope_of_every_term(cls):
    """Beside those that pass no gradient on purpose."""
    skip = {
        LAFEDEnsembleClassifier: ["smoothed_cross_entropy"],  # what is mixed in
        FASTENEnsembleClassifier: ["intra_model", "inter_model"],  # the clean view
    }
    step = step_for(cls, weighted=True)
    params = {"attack": ATTACK, "calibration": PLAIN_DISTANCES}
    check_backward(lambda step: objective(cls, step, **params), step, skip=skip.get(cls, ()))


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("cls", DIVERSE)
def test_each_term_alone_trains_all_members(cls, formulation):
    """A missing create_graph would leave a constant."""
    step = step_for(cls)
    params = {"attack": ATTACK, "calibration": CALIBRATION, "formulation": formulation}
    if cls is FASTENEnsembleClassifier:
        params["inter_gradient"] = True
    names = objective(cls, step, **params)
    assert len(names) >= 4
    for name in names:
        step = step_for(cls)
        with torch.no_grad():  # soft enough for all terms to have slopes
            for member in step.module:
                member.last.weight.mul_(0.3)
        before = [[p.clone() for p in member.parameters()] for member in step.module]
        optimizer = torch.optim.SGD(step.module.parameters(), lr=1.0)
        objective(cls, step, **params)[name].backward()
        optimizer.step()
        for old, member in zip(before, step.module, strict=True):
            new = [p.detach() for p in member.parameters()]
            moved = [not torch.equal(a, b) for a, b in zip(old, new, strict=True)]
            # soft labels are made from what goes into the last layer
            assert all(moved[:2] if name == "label_diversity" else moved), name


# --- mixed ensembles -----------------------------------------------------------------------

MIXED_SIZES = [(8,), (16, 8), (12, 12, 8)]  # CLDL's members have embeddings of one size


@pytest.mark.parametrize("attack", [None, PGD(eps=0.05, n_steps=1)], ids=["clean", "adversarial"])
@pytest.mark.parametrize("cls", CLASSES)
def test_mixed_widths(digit_rows, cls, attack):
    X, X_test, y, _ = digit_rows
    params = {"attack": attack} if cls is not VanillaEnsembleClassifier else {}
    estimator = make(
        cls,
        module=["mlp"] * 3,
        module_params=[{"hidden_sizes": sizes} for sizes in MIXED_SIZES],
        max_epochs=1,
        **params,
    )
    before = weights(fresh(estimator, X, y))
    estimator.fit(X, y)
    widths = [
        tuple(m.out_features for m in member.modules() if isinstance(m, nn.Linear))
        for member in estimator.estimators_
    ]
    assert widths == [(*sizes, 10) for sizes in MIXED_SIZES]
    after = weights(estimator)
    assert all(not torch.equal(before[name], after[name]) for name in after)
    assert np.isfinite(estimator.predict_proba(X_test)).all()


def fresh(estimator, X, y):
    """The same ensemble before its first step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EnsembleNet, "train_epochs", lambda *args, **kwargs: None)
        return clone(estimator).fit(X, y)


@pytest.mark.parametrize("cls", CLASSES)
def test_mixed_depths(digit_images, cls):
    """Residual networks, whose layers for features lie at different places."""
    X, X_test, y, _ = digit_images
    params = {"attack": FGSM(eps=0.05)} if cls in ADVERSARIAL else {}
    if cls in PER_MEMBER:
        params["n_steps"] = 1
    if cls is TRSEnsembleClassifier:
        params["n_inner_steps"] = 1
    estimator = make(
        cls,
        module=["resnet20", "resnet26", "resnet32"],
        module_params={"width": 2},
        max_epochs=1,
        batch_size=16,
        **params,
    ).fit(X[:32], y[:32])
    convolutions = [
        sum(isinstance(m, nn.Conv2d) for m in e.modules()) for e in estimator.estimators_
    ]
    assert convolutions == [19, 25, 31]
    assert np.isfinite(estimator.history_[-1]["train_loss"])
    assert np.isfinite(estimator.predict_proba(X_test)).all()
