"""Adversarial training and calibration beside every method: values, slopes, parameters."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from naive_equations import FORMULATIONS
from naive_steps import (
    check,
    check_backward,
    crafted,
    cross_entropies,
    make_step,
    naive_distances,
    naive_divergence,
    name_of,
    objective,
    parameter_gradients,
    samples,
    soften,
)
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from small_estimators import (
    ADVERSARIAL,
    CLASSES,
    DIVERSE,
    FEATURE_SPACE,
    covered,
    make,
    same_weights,
)

from robust_ensembles import (
    ADPEnsembleClassifier,
    AdversarialEnsembleClassifier,
    CLDLEnsembleClassifier,
    CollaborativeCalibration,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    GALEnsembleClassifier,
    GPMREnsembleClassifier,
    LAFEDEnsembleClassifier,
    TRSEnsembleClassifier,
)
from robust_ensembles.attacks import FGSM, PGD

ATTACK = PGD(eps=0.2, n_steps=2)
CALIBRATION = CollaborativeCalibration(lam=0.5, mu=2.0)
SUMMING = [ADPEnsembleClassifier, *FEATURE_SPACE]
# FASTEN attacks what its members see; test_fasten.py has it
ON_THE_BATCH = [cls for cls in DIVERSE if cls is not FASTENEnsembleClassifier]


def step_for(cls, n_members=3, **params):
    return make_step(n_members, auxiliary=cls is CLDLEnsembleClassifier, **params)


def values(terms):
    return {name: term.item() for name, term in terms.items()}


# --- adversarial training ------------------------------------------------------------------


def naive_adversarial(cls, step, x_adv, formulation):
    """The cross-entropy on the examples, or the divergence from their soft labels."""
    reduce = sum if cls in SUMMING else np.mean
    if (cls, formulation) == (TRSEnsembleClassifier, "released"):
        reduce = sum  # as of its clean cross-entropy
    if cls is not CLDLEnsembleClassifier:
        return {"adversarial_cross_entropy": reduce(cross_entropies(step, x_adv))}
    divergences = [
        w * naive_divergence(step, m, x_adv[i][b], y, gamma=4.0, formulation=formulation)
        for i, m in enumerate(step.module)
        for b, (_, y, w) in enumerate(samples(step))
    ]
    return {"adversarial_divergence": np.mean(divergences)}


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("target", ["ensemble", "member", None])
@pytest.mark.parametrize(("n_members", "weighted"), [(2, False), (3, True)])
@pytest.mark.parametrize("cls", ON_THE_BATCH)
def test_adversarial_training(cls, n_members, weighted, target, formulation):
    """The method's terms stay; the loss on the examples has the method's own reduction."""
    n_members += cls is LAFEDEnsembleClassifier
    step = step_for(cls, n_members, weighted=weighted)
    params = {"formulation": formulation}
    if cls is ADPEnsembleClassifier:
        params["regularize_adversarial"] = False  # test_adp.py has it
    beside = {"attack": ATTACK} | ({"attack_target": target} if target else {})
    default = "member" if cls in FEATURE_SPACE else "ensemble"
    expected = {
        **values(objective(cls, step, **params)),
        **naive_adversarial(cls, step, crafted(step, ATTACK, target or default), formulation),
    }
    check(objective(cls, step, **params, **beside), expected)


@pytest.mark.parametrize("cls", [GALEnsembleClassifier, TRSEnsembleClassifier])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_adversarial_loss_reduces_as_the_clean_one(cls, reduce):
    step = make_step(3)
    x_adv, divisor = crafted(step, ATTACK, "ensemble"), 1 if reduce == "sum" else 3
    params = {"cross_entropy_reduce": reduce, "attack": ATTACK, "calibration": CALIBRATION}
    found = objective(cls, step, **params)
    expected = naive_distances(step, x_adv, lam=0.5, mu=2.0)
    expected["adversarial_cross_entropy"] = sum(cross_entropies(step, x_adv))
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value / divisor)


@pytest.mark.parametrize("cls", DIVERSE)
def test_no_attack_by_default(cls):
    terms = objective(cls, step_for(cls))
    assert not [name for name in terms if "adversarial" in name or "distance" in name]
    assert cls().attack is None
    assert cls().calibration is None


@pytest.mark.parametrize("cls", covered(DIVERSE))
def test_attack_is_used_in_a_fit(digit_rows, cls):
    """A column for what it adds; a wide ball makes it a hard loss."""
    X, _, y, _ = digit_rows
    fits = [make(cls, attack=FGSM(eps=eps), max_epochs=1).fit(X[:64], y[:64]) for eps in (0.0, 0.5)]
    loss = "divergence" if cls is CLDLEnsembleClassifier else "cross_entropy"
    easy, hard = (fit.history_[-1][f"train_adversarial_{loss}"] for fit in fits)
    assert hard > easy + 0.1
    assert not same_weights(*fits)


# --- calibration ---------------------------------------------------------------------------


@pytest.mark.parametrize(("n_members", "weighted"), [(2, True), (3, False), (4, True)])
@pytest.mark.parametrize("cls", ON_THE_BATCH)
def test_calibration(cls, n_members, weighted):
    """CEAT's two terms, summed or averaged as the method's own loss."""
    n_members = max(n_members, 3 if cls is LAFEDEnsembleClassifier else 2)
    step = step_for(cls, n_members, weighted=weighted)
    x_adv = crafted(step, ATTACK, "member" if cls in FEATURE_SPACE else "ensemble")
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


def test_adversarial_training_has_an_attack_to_calibrate(digit_rows):
    """attack=None is PGD there."""
    X, _, y, _ = digit_rows
    estimator = make(
        AdversarialEnsembleClassifier, attack=None, calibration=CALIBRATION, max_epochs=1
    ).fit(X[:64], y[:64])
    assert "train_natural_distance" in estimator.history_[-1]


def test_two_members_have_no_peers(digit_rows):
    X, _, y, _ = digit_rows
    params = {"attack": PGD(eps=0.01, n_steps=1), "calibration": CollaborativeCalibration()}
    estimator = make(GALEnsembleClassifier, n_estimators=2, max_epochs=1, **params)
    with pytest.warns(UserWarning, match="no member has two peers") as caught:
        estimator.fit(X, y)
    assert caught[0].filename == __file__


# --- gradients of whole objectives ---------------------------------------------------------

# with exponents of zero all disparity weights, which pass no gradient, are 1
PLAIN_DISTANCES = CollaborativeCalibration(1.0, 2.0, lam_exp=0.0, mu_exp=0.0)
BESIDE = {"attack": ATTACK, "calibration": PLAIN_DISTANCES}
WITH_SLOPES = [
    *((cls, BESIDE) for cls in DIVERSE),
    (ADPEnsembleClassifier, {"attack": ATTACK, "regularize_adversarial": True}),
    (GALEnsembleClassifier, {"cos_eps_mode": "torch1"}),
    (GPMREnsembleClassifier, {"lambda_div": 1.0}),
    (GPMREnsembleClassifier, {"lambda_div": 1.0, "formulation": "released"}),
    (TRSEnsembleClassifier, {"delta_init": 0.2, "delta_final": 0.2}),
    (TRSEnsembleClassifier, {"inner_max": False}),
    (TRSEnsembleClassifier, {"norm_power": 1, "cos_eps_mode": "torch1"}),
]


@pytest.mark.parametrize(("cls", "params"), WITH_SLOPES, ids=name_of)
def test_slope_of_every_term(cls, params):
    """Beside those that pass no gradient on purpose."""
    skip = {
        LAFEDEnsembleClassifier: ["smoothed_cross_entropy"],  # what is mixed in
        FASTENEnsembleClassifier: ["intra_model", "inter_model"],  # the clean view
    }
    step = step_for(cls, weighted=True)
    check_backward(lambda step: objective(cls, step, **params), step, skip=skip.get(cls, ()))


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("cls", DIVERSE)
def test_every_term_trains_every_member(cls, formulation):
    """A missing create_graph would leave a constant. And no gradient is left behind."""
    step = soften(step_for(cls), 0.3)  # enough for all terms to have slopes
    params = {"attack": ATTACK, "calibration": CALIBRATION, "formulation": formulation}
    if cls is FASTENEnsembleClassifier:
        params["inter_gradient"] = True
    terms = objective(cls, step, **params)
    assert all(p.grad is None and p.requires_grad for p in step.module.parameters())
    assert step.module.training
    assert step.x.grad is None
    assert not step.x.requires_grad
    assert len(terms) >= 4
    for name, term in terms.items():
        for member in step.module:
            # soft labels are made from what goes into the last layer
            trained = member.first if name == "label_diversity" else member
            gradients = parameter_gradients(term, trained)
            assert all(g is not None and g.abs().max() > 1e-9 for g in gradients), name
        if step.auxiliary is not None and "distance" not in name:
            gradients = parameter_gradients(term, step.auxiliary)
            assert any(g is not None and g.abs().max() > 1e-8 for g in gradients), name


# --- parameters ----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", DIVERSE)
def test_parameters_of_what_is_not_there(cls):
    with pytest.raises(ValueError, match=r"attack__eps cannot be set: attack=None.*PGD\("):
        make(cls).set_params(attack__eps=0.1)
    with pytest.raises(ValueError, match=r"calibration__mu cannot be set.*CollaborativeCalib"):
        make(cls, attack=PGD()).set_params(calibration__mu=1.0)


@pytest.mark.parametrize("pretrained", [None, 3])
def test_parameters_of_a_start_that_is_not_there(pretrained):
    estimator = make(DVERGEEnsembleClassifier, pretrained=pretrained)
    with pytest.raises(ValueError, match="pretrained__lr cannot be set"):
        estimator.set_params(pretrained__lr=0.1)


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


class Scaled:
    """A coupling of one's own: an odd sum of both batches' logits."""

    def terms(self, step, clean, adversarial):
        return {"own": 2.0 * clean.sum() + adversarial.sum()}


@pytest.mark.parametrize("cls", [*ADVERSARIAL, *DIVERSE])
def test_a_coupling_gets_the_clean_logits_of_its_host(cls, monkeypatch):
    """All methods by the same hook; only those without clean logits compute them for it."""
    step = step_for(cls)
    passes = []
    step.module[0].register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(cls, "_coupling_terms", lambda *_, **__: {})
    objective(cls, step, attack=ATTACK, attack_target="ensemble")
    without = len(passes)
    monkeypatch.undo()
    monkeypatch.setattr(cls, "_coupling", lambda self: Scaled())
    step = replace(step)  # another one, which remembers nothing
    terms = objective(cls, step, attack=ATTACK, attack_target="ensemble")
    no_clean = (*ADVERSARIAL, DVERGEEnsembleClassifier, LAFEDEnsembleClassifier)
    assert len(passes) - without == without + (cls in no_clean)
    clean = step.module.member_logits(step.x)
    if cls is not FASTENEnsembleClassifier:  # it attacks what its members see
        x_adv = [torch.from_numpy(x) for x in crafted(step, ATTACK, "ensemble")]
        expected = 2.0 * clean.sum() + step.member_logits(x_adv).sum()
        divisor = 1 if cls in (*SUMMING, *ADVERSARIAL) else len(step.module)
        torch.testing.assert_close(terms["own"], expected / divisor)
    bias = step.module[0].last.bias
    both = torch.autograd.grad(terms["own"], bias)[0]
    one = torch.autograd.grad(clean.sum(), bias)[0]
    assert (both / one).unique().numel() == 1  # the clean logits pass gradients, too
    assert (both / one)[0] in (3.0, 1.0)  # of three members: their sum or mean


@pytest.mark.parametrize("cls", [c for c in CLASSES if "calibration" in c().get_params(deep=False)])
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
