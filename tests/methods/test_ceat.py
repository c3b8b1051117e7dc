"""CEAT: its disparity weights and distances, and its whole objective."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch
from naive_equations import WEIGHT
from naive_steps import (
    B,
    C,
    check,
    check_gradients,
    crafted,
    cross_entropies,
    loss_of,
    make_step,
    naive_distances,
    objective,
    probabilities,
)
from small_estimators import make, same_weights
from torch import nn

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    CollaborativeCalibration,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.losses import disparity_weights, squared_distance, weighted_distance

PEERS = ["pair_sum", "pair_mean", "range", "exp_pair_mean"]


def uniform(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("peers", PEERS)
@pytest.mark.parametrize("n_members", [1, 2, 3, 4, 5])
def test_weights(n_members, peers, tau):
    h = uniform(n_members, 6)
    found = disparity_weights(h, tau, peers=peers)
    expected = naive.disparity_weights(h.numpy(), tau, peers)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert (found >= 1).all()


def test_default_is_pair_sum():
    h = uniform(4, 6)
    assert torch.equal(disparity_weights(h, 5.0), disparity_weights(h, 5.0, peers="pair_sum"))


@pytest.mark.parametrize("peers", PEERS)
def test_three_members_are_the_paper(peers):
    """exp(tau |h_b - h_c|), whatever the generalisation."""
    h = uniform(3, 6)
    found = disparity_weights(h, 5.0, peers=peers)
    for a, b, c in [(0, 1, 2), (1, 0, 2), (2, 0, 1)]:
        torch.testing.assert_close(found[a], (5 * (h[b] - h[c]).abs()).exp())


@pytest.mark.parametrize("peers", PEERS)
@pytest.mark.parametrize("n_members", [1, 2, 3, 4, 5])
def test_one_when_peers_agree(n_members, peers):
    h = torch.full((n_members, 3), 0.3, dtype=torch.float64)
    h[0] = 0.9  # the trained member's own probability does not count
    found = disparity_weights(h, 5.0, peers=peers)
    torch.testing.assert_close(found[0], torch.ones(3, dtype=torch.float64))
    if n_members > 2:
        assert (found[1:] > 1.5).all()


def test_lone_dissenter_of_four():
    """Two of three pairs disagree: 2 e^tau - 1, stronger than e^tau for three members."""
    h = torch.tensor([[0.5], [0.0], [1.0], [1.0]], dtype=torch.float64)
    e = math.exp(2.0)
    expected = {"pair_sum": 2 * e - 1, "pair_mean": (2 * e + 1) / 3, "range": e}
    expected["exp_pair_mean"] = math.exp(4 / 3)
    for peers, value in expected.items():
        assert float(disparity_weights(h, 2.0, peers=peers)[0, 0]) == pytest.approx(value)


@pytest.mark.parametrize("peers", PEERS)
def test_permutation_of_members(peers):
    h, order = uniform(5, 6), [4, 2, 0, 1, 3]
    found = disparity_weights(h[order], 3.0, peers=peers)
    torch.testing.assert_close(found, disparity_weights(h, 3.0, peers=peers)[order])


@pytest.mark.parametrize("n_members", [2, 3, 4])
def test_no_gradient_reaches_the_peers(n_members):
    """d L_m / d theta_j = 0 for j != m, and none through m's own weight."""
    p = uniform(n_members, 6, 3).requires_grad_()
    weights = disparity_weights(p[..., 0], 5.0)
    assert not weights.requires_grad
    distances = squared_distance(p, torch.zeros(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad((weights[0] * distances[0]).sum(), p)
    expected = torch.zeros_like(p)
    expected[0] = 2 * weights[0][:, None] * p[0].detach()
    torch.testing.assert_close(gradient, expected)


def test_squared_distance():
    a, b = uniform(3, 6, 4), uniform(3, 6, 4, seed=1)
    expected = sum((a[..., c] - b[..., c]) ** 2 for c in range(4))
    torch.testing.assert_close(squared_distance(a, b), expected)
    torch.testing.assert_close(squared_distance(a, b, reduce="mean"), expected / 4)


def test_distance_flows_into_both_sides():
    p = uniform(2, 6, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(squared_distance(p[0], p[1]).sum(), p)
    torch.testing.assert_close(gradient[0], -gradient[1])
    torch.testing.assert_close(gradient[0], 2 * (p[0] - p[1]).detach())


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_weighted_distance(weighted, normalize):
    weights, distances = 1 + uniform(3, 4), uniform(3, 4, seed=1)
    sample_weight = WEIGHT if weighted else None
    found = weighted_distance(weights, distances, sample_weight, normalize=normalize)
    expected = 0.0
    for w, d in zip(weights.numpy(), distances.numpy(), strict=True):
        w = w / np.mean(w) if normalize else w
        expected += naive.batch_mean(list(w * d), sample_weight)
    assert float(found) == pytest.approx(expected, abs=1e-10)


# --- the objective ---------------------------------------------------------------------------

ATTACK = PGD(eps=0.2, n_steps=3)
CEAT_OPTIONS = [
    {},
    {"lam_exp": 0.5, "mu_exp": 4.0},
    {"peers": "pair_mean"},
    {"peers": "range"},
    {"peers": "exp_pair_mean"},
    {"distance_on": "logits"},
    {"distance_reduce": "mean"},
    {"stop_gradient_clean": True},
    {"normalize_weights": True},
    {"clean_cross_entropy": True},
    {"attack_target": "member"},
]


def naive_ceat(step, x_adv, options, *, lam=2.0, mu=3.0):
    expected = {
        "adversarial_cross_entropy": sum(cross_entropies(step, x_adv)),
        **naive_distances(step, x_adv, lam=lam, mu=mu, **options),
    }
    if options.get("clean_cross_entropy"):
        expected["clean_cross_entropy"] = sum(cross_entropies(step))
    return expected


@pytest.mark.parametrize("options", CEAT_OPTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [1, 3, 4])
def test_objective(n_members, weighted, options):
    step = make_step(n_members, weighted=weighted)
    x_adv = crafted(step, ATTACK, options.get("attack_target", "ensemble"))
    found = objective(CEATEnsembleClassifier, step, attack=ATTACK, lam=2.0, mu=3.0, **options)
    check(found, naive_ceat(step, x_adv, options))


def test_defaults():
    """lam and mu of 1 and 5, the exponents tied to them; the calibration has the same."""
    step = make_step(3)
    found = objective(CEATEnsembleClassifier, step, attack=ATTACK)
    check(found, naive_ceat(step, crafted(step, ATTACK, "ensemble"), {}, lam=1.0, mu=5.0))
    ceat, own = CEATEnsembleClassifier().get_params(), CollaborativeCalibration().get_params()
    assert own == {name: ceat[name] for name in own}


@pytest.mark.parametrize("options", CEAT_OPTIONS, ids=str)
def test_trains_members_by_their_own_losses(options):
    """d L_m / d theta_j = 0: a member is not taught to agree with its peers."""
    step = make_step(4, weighted=True)
    x_adv = crafted(step, ATTACK, options.get("attack_target", "ensemble"))
    on_logits = options.get("distance_on") == "logits"
    reduce = torch.mean if options.get("distance_reduce") == "mean" else torch.sum
    found = objective(CEATEnsembleClassifier, step, attack=ATTACK, lam=2.0, mu=3.0, **options)
    total, y, one_hot = loss_of(found), step.y, nn.functional.one_hot(step.y, C).double()

    def weights(inputs, tau):
        h = probabilities(step, inputs)[:, range(B), y]
        found = naive.disparity_weights(h, tau, options.get("peers", "pair_sum"))
        if options.get("normalize_weights"):
            found = found / found.mean(axis=1, keepdims=True)
        return torch.from_numpy(found)

    def distance(a, b):
        return reduce((a - b) ** 2, dim=-1)

    clean, hostile = (
        weights(None, options.get("lam_exp", 2.0)),
        weights(x_adv, options.get("mu_exp", 3.0)),
    )
    for m, member in enumerate(step.module):
        z, z_adv = member(step.x), member(torch.from_numpy(x_adv[m]))
        p, p_adv = (z, z_adv) if on_logits else (z.softmax(-1), z_adv.softmax(-1))
        anchor = p.detach() if options.get("stop_gradient_clean") else p
        per_sample = -z_adv.log_softmax(-1)[range(B), y]
        per_sample = per_sample + 2.0 * clean[m] * distance(p, one_hot)
        per_sample = per_sample + 3.0 * hostile[m] * distance(p_adv, anchor)
        if options.get("clean_cross_entropy"):
            per_sample = per_sample - z.log_softmax(-1)[range(B), y]
        own = (per_sample * step.sample_weight).mean()
        check_gradients(total, own, member)


# --- the same by other means -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_estimators", "lam", "mu"), [(3, 1.0, 5.0), (4, 5.0, 1.0), (3, 0.3, 0.0)]
)
def test_calibrated_adversarial_training_is_ceat(digit_rows, n_estimators, lam, mu):
    """To the bit."""
    X, _, y, _ = digit_rows
    params = {"attack": PGD(eps=0.05, n_steps=2), "n_estimators": n_estimators, "max_epochs": 1}
    calibration = CollaborativeCalibration(lam, mu)
    plugged_in = make(AdversarialEnsembleClassifier, calibration=calibration, **params).fit(X, y)
    ceat = make(CEATEnsembleClassifier, lam=lam, mu=mu, **params).fit(X, y)
    assert same_weights(plugged_in, ceat)


@pytest.mark.parametrize("craft_bn", [None, "train", "eval"])
def test_without_its_terms_it_is_adversarial_training(digit_images, craft_bn):
    """BatchNorm's running statistics included."""
    X, _, y, _ = digit_images
    X, y = X[:32], y[:32]
    settings = {
        "module": "resnet20",
        "module_params": {"width": 4},
        "max_epochs": 1,
        "batch_size": 16,
        "craft_bn": craft_bn,
    }
    plain = make(AdversarialEnsembleClassifier, **settings).fit(X, y)
    ceat = make(CEATEnsembleClassifier, lam=0, mu=0, **settings).fit(X, y)
    assert same_weights(plain, ceat)
    assert not same_weights(plain, make(CEATEnsembleClassifier, mu=0, **settings).fit(X, y))


# --- refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_estimators", [1, 2])
def test_without_peers_warns(untrained, digit_rows, n_estimators):
    X, _, y, _ = digit_rows
    for method in ("fit", "partial_fit"):
        estimator = make(CEATEnsembleClassifier, n_estimators=n_estimators)
        with pytest.warns(UserWarning, match="no member has two peers.*Use 3 or more") as seen:
            getattr(estimator, method)(X, y)
        assert seen[0].filename == __file__


def test_no_released_code(rejects, digit_rows):
    X, _, y, _ = digit_rows
    rejects(make(CEATEnsembleClassifier, formulation="released"), X, y, "no code was released")
