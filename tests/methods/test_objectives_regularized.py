"""ADP, GAL, GPMR and TRS: whole objectives against plain loops, and their slopes."""

import math

import numpy as np
import pytest
import torch
from naive_steps import (
    BOX,
    FORMULATIONS,
    B,
    check,
    check_backward,
    cosine,
    crafted,
    logits_of,
    loss_gradients,
    make_step,
    naive_cross_entropies,
    name_of,
    pairs,
    samples,
    softmax,
)
from small_estimators import make

from robust_ensembles import (
    ADPEnsembleClassifier,
    GALEnsembleClassifier,
    GPMREnsembleClassifier,
    TRSEnsembleClassifier,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.attacks.engine.balls import LinfBall

MEMBERS = [2, 3, 4]
ATTACK = PGD(eps=0.2, n_steps=2)


def shorten(step):
    """Members with input gradients of about 1e-6, where the two kinds of cosine differ."""
    with torch.no_grad():
        for member in step.module:
            member.first.weight.mul_(1e-5)
    return step


def weighted_mean(step, values):
    return sum(w * value for value, (*_, w) in zip(values, samples(step), strict=True)) / len(
        values
    )


def pair_cosine(a, b, mode):
    """Before torch 1.12 the floor was on the product of the two lengths."""
    if mode == "torch2":
        return cosine(a, b)
    return a @ b / math.sqrt(max((a @ a) * (b @ b), 1e-16))


# --- ADP -----------------------------------------------------------------------------------


def naive_adp(step, inputs=None):
    """Entropies, and log-determinants: batch means."""
    entropies, determinants = [], []
    n = len(step.module)
    for b, (x, y, _) in enumerate(samples(step)):
        p = [
            softmax(logits_of(m, x if inputs is None else inputs[i][b]))
            for i, m in enumerate(step.module)
        ]
        mean = sum(p) / n
        entropies.append(-sum(q * math.log(q + 1e-20) for q in mean))
        columns = [np.delete(q, y) for q in p]
        columns = [v / math.sqrt(sum(v**2) + 1e-12) for v in columns]
        gram = np.array([[columns[i] @ columns[j] for j in range(n)] for i in range(n)])
        # the product of the eigenvalues, of which rounding makes none negative
        values = np.linalg.eigvalsh(gram + 1e-6 * np.eye(n))
        determinants.append(sum(math.log(value) for value in values))
    return weighted_mean(step, entropies), weighted_mean(step, determinants)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", MEMBERS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_adp(formulation, n_members, weighted):
    step = make_step(n_members, weighted=weighted)
    entropy, determinant = naive_adp(step)
    expected = {
        "cross_entropy": sum(naive_cross_entropies(step)),
        "entropy": -0.7 * entropy,
        "log_determinant": -0.3 * determinant,
    }
    estimator = make(ADPEnsembleClassifier, formulation=formulation, alpha=0.7, beta=0.3)
    check(estimator._objective(step), expected, 1e-8)


@pytest.mark.parametrize("target", ["ensemble", "member"])
@pytest.mark.parametrize(
    ("formulation", "regularize", "on_both"),
    [
        ("paper", None, False),
        ("released", None, True),
        ("paper", True, True),
        ("released", False, False),
    ],
)
def test_adp_on_adversarial_predictions(formulation, regularize, on_both, target):
    step = make_step(3, weighted=True)
    x_adv = crafted(step, ATTACK, target)
    entropy, determinant = naive_adp(step)
    expected = {
        "cross_entropy": sum(naive_cross_entropies(step)),
        "entropy": -0.7 * entropy,
        "log_determinant": -0.3 * determinant,
        "adversarial_cross_entropy": sum(naive_cross_entropies(step, x_adv)),
    }
    if on_both:
        entropy, determinant = naive_adp(step, x_adv)
        expected["adversarial_entropy"] = -0.7 * entropy
        expected["adversarial_log_determinant"] = -0.3 * determinant
    estimator = make(
        ADPEnsembleClassifier,
        formulation=formulation,
        regularize_adversarial=regularize,
        alpha=0.7,
        beta=0.3,
        attack=ATTACK,
        attack_target=target,
    )
    check(estimator._objective(step), expected, 1e-8)


def test_adp_defaults():
    """2 and 0.5, of the original code."""
    step = make_step(3)
    entropy, determinant = naive_adp(step)
    found = make(ADPEnsembleClassifier)._objective(step)
    assert found["entropy"].item() == pytest.approx(-2 * entropy)
    assert found["log_determinant"].item() == pytest.approx(-0.5 * determinant)


# --- GAL -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["mean", "sum", None])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", MEMBERS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gal(formulation, n_members, weighted, reduce):
    step = make_step(n_members, weighted=weighted)
    options = {"cross_entropy_reduce": reduce} if reduce else {}
    g = loss_gradients(step)
    coherence = [
        math.log(sum(math.exp(cosine(g[i, b], g[j, b])) for i, j in pairs(n_members)))
        for b in range(B)
    ]
    expected = {
        "cross_entropy": sum(naive_cross_entropies(step)) / (1 if reduce == "sum" else n_members),
        "gradient_alignment": 0.7 * weighted_mean(step, coherence),
    }
    estimator = make(GALEnsembleClassifier, formulation=formulation, lam=0.7, **options)
    check(estimator._objective(step), expected)


def test_gal_default():
    step = make_step(3)
    one, default = (
        make(GALEnsembleClassifier, **params)._objective(step)["gradient_alignment"].item()
        for params in ({"lam": 1.0}, {})
    )
    assert default == pytest.approx(one / 2)


@pytest.mark.parametrize("mode", ["torch1", "torch2"])
def test_cosines_of_short_gradients(mode):
    step = shorten(make_step(3, weighted=True))
    g = loss_gradients(step)
    assert np.linalg.norm(g, axis=-1).max() < 1e-4
    cosines = [[pair_cosine(g[i, b], g[j, b], mode) for i, j in pairs(3)] for b in range(B)]
    coherence = [math.log(sum(math.exp(c) for c in row)) for row in cosines]
    found = make(GALEnsembleClassifier, lam=1.0, cos_eps_mode=mode)._objective(step)
    expected = weighted_mean(step, coherence)
    assert found["gradient_alignment"].item() == pytest.approx(expected, rel=1e-5)
    found = make(
        TRSEnsembleClassifier, scale=1.0, coeff=1.0, cos_eps_mode=mode, inner_max=False
    )._objective(step)
    expected = weighted_mean(step, [sum(abs(c) for c in row) / 3 for row in cosines])
    assert found["similarity"].item() == pytest.approx(expected, rel=1e-5)


# --- GPMR ----------------------------------------------------------------------------------


def variance(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", MEMBERS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gpmr(formulation, n_members, weighted):
    step = make_step(n_members, weighted=weighted)
    g = loss_gradients(step)
    n = n_members
    deviations = [
        sum((cosine(g[i, b], g[j, b]) + 1 / (n - 1)) ** 2 for i, j in pairs(n)) / len(pairs(n))
        for b in range(B)
    ]
    if formulation == "paper":
        # the lengths of each sample's own gradients, which carry no 1 / B
        per_sample = [variance([B * math.sqrt(sum(v**2)) for v in g[:, b]]) for b in range(B)]
        spread = weighted_mean(step, per_sample) / (n**2 * B)
    else:
        # one length for each member over the batch, of its weighted loss
        w = np.array([w for *_, w in samples(step)])[:, None]
        spread = variance([math.sqrt(((w * g[i]) ** 2).sum()) / n for i in range(n)])
    expected = {
        "cross_entropy": sum(naive_cross_entropies(step)) / n,
        "direction": 0.7 * weighted_mean(step, deviations),
        "magnitude": 5.0 * spread,
    }
    estimator = make(GPMREnsembleClassifier, formulation=formulation, lambda_div=0.7, lambda_eq=5.0)
    check(estimator._objective(step), expected)


def test_gpmr_defaults():
    step = make_step(3)
    default = make(GPMREnsembleClassifier)._objective(step)
    one = make(GPMREnsembleClassifier, lambda_div=1.0, lambda_eq=1.0)._objective(step)
    assert default["direction"].item() == pytest.approx(0.04 * one["direction"].item())
    assert default["magnitude"].item() == pytest.approx(10 * one["magnitude"].item())


# --- TRS -----------------------------------------------------------------------------------


def roughest(step, delta, *, n_steps=6, power=2, accumulate=False, clip_values=BOX):
    """The second half of the batch, where the inner maximisation ends: sample by sample."""
    half = len(step.x) // 2
    centres, labels = step.x[half:], step.y[half:].tolist()
    starts = LinfBall(centres, delta, clip_values).random_point(step.seed)
    found = []
    for centre, start, y in zip(centres, starts, labels, strict=True):
        x, total = start.clone(), torch.zeros_like(start)
        for _ in range(n_steps):
            x = x.detach().requires_grad_()
            length = 0.0
            for member in step.module:
                loss = -member(x[None])[0].log_softmax(-1)[y]
                (g,) = torch.autograd.grad(loss, x, create_graph=True)
                length = length + (g @ g if power == 2 else (g @ g).sqrt())
            (uphill,) = torch.autograd.grad(length, x)
            total = total + uphill if accumulate else uphill
            x = x.detach() + delta / 3 * total.sign()
            x = x.clamp(centre - delta, centre + delta)
            if clip_values is not None:
                x = x.clamp(*clip_values)
        found.append(x.numpy())
    return np.concatenate([step.x[:half].numpy(), found])


def smoothness(step, g, power=2, factor=1.0):
    lengths = [
        2 * sum(math.sqrt(sum((factor * v) ** 2)) ** power for v in g[:, b]) / len(g)
        for b in range(g.shape[1])
    ]
    return weighted_mean(step, lengths)


def naive_trs(step, g_rough, *, reduce, power=2, factor=1.0):
    g, n = loss_gradients(step), len(step.module)
    similarity = [
        sum(abs(cosine(g[i, b], g[j, b])) for i, j in pairs(n)) / len(pairs(n))
        for b in range(g.shape[1])
    ]
    return {
        "cross_entropy": sum(naive_cross_entropies(step)) / (1 if reduce == "sum" else n),
        "similarity": 1.5 * 3.0 * weighted_mean(step, similarity),
        "smoothness": 1.5 * 2.0 * smoothness(step, g_rough, power, factor),
    }


def make_trs(**params):
    """A large delta, so that the walk shows in the smoothness."""
    settings = {"scale": 1.5, "coeff": 3.0, "lamda": 2.0, "delta_init": 0.2, "delta_final": 0.2}
    return make(TRSEnsembleClassifier, **{**settings, **params})


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", MEMBERS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_trs(formulation, n_members, weighted):
    step = make_step(n_members, weighted=weighted)
    x = roughest(step, 0.2, accumulate=formulation == "released")
    reduce = "mean" if formulation == "paper" else "sum"
    expected = naive_trs(step, loss_gradients(step, x), reduce=reduce)
    check(make_trs(formulation=formulation)._objective(step), expected)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_trs_inner_momentum(formulation, momentum):
    """The two walks end at different points."""
    step = make_step(3, seed=1)
    walked = [roughest(step, 0.2, accumulate=accumulate) for accumulate in (False, True)]
    assert np.abs(walked[0] - walked[1]).max() > 0.01
    found = make_trs(formulation=formulation, inner_momentum=momentum)._objective(step)
    reduce = "mean" if formulation == "paper" else "sum"
    check(found, naive_trs(step, loss_gradients(step, walked[momentum]), reduce=reduce))


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_trs_cross_entropy_reduce(formulation, reduce):
    step = make_step(3)
    x = roughest(step, 0.2, accumulate=formulation == "released")
    found = make_trs(formulation=formulation, cross_entropy_reduce=reduce)._objective(step)
    check(found, naive_trs(step, loss_gradients(step, x), reduce=reduce))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("inner_max", [True, False])
@pytest.mark.parametrize("scale", ["mean", "sum"])
@pytest.mark.parametrize("power", [1, 2])
def test_trs_lengths(power, scale, inner_max, weighted):
    """The similarity knows no scale; the lengths carry 1 / B, or not."""
    step = make_step(3, weighted=weighted)
    x = roughest(step, 0.2, power=power) if inner_max else None
    found = make_trs(norm_power=power, gradient_scale=scale, inner_max=inner_max)
    factor = 1 if scale == "mean" else B
    expected = naive_trs(step, loss_gradients(step, x), reduce="mean", power=power, factor=factor)
    check(found._objective(step), expected)


@pytest.mark.parametrize("n_steps", [1, 2])
def test_trs_inner_steps_without_a_box(n_steps):
    step = make_step(3)
    x = roughest(step, 0.9, n_steps=n_steps, clip_values=None)
    assert x.min() < -0.05 or x.max() > 1.05
    step = step.__class__(step.module, None, step.batch, None, step.seed)
    found = make_trs(delta_init=0.9, delta_final=0.9, n_inner_steps=n_steps)._objective(step)
    check(found, naive_trs(step, loss_gradients(step, x), reduce="mean"))


@pytest.mark.parametrize(
    ("formulation", "max_epochs", "epoch", "delta"),
    [
        ("paper", 5, 0, 0.1),
        ("paper", 5, 1, 0.15),
        ("paper", 5, 4, 0.3),
        ("paper", 5, 9, 0.3),  # partial_fit and warm starts go on beyond
        ("paper", 1, 0, 0.3),
        ("released", 5, 0, 0.1),
        ("released", 5, 1, 0.14),
        ("released", 5, 4, 0.26),
        ("released", 5, 5, 0.3),
        ("released", 5, 9, 0.3),
    ],
)
def test_trs_delta_grows(formulation, max_epochs, epoch, delta):
    step = make_step(2, epoch=epoch)
    x = roughest(step, delta, accumulate=formulation == "released")
    found = make_trs(
        formulation=formulation, delta_init=0.1, delta_final=0.3, max_epochs=max_epochs
    )._objective(step)
    reduce = "mean" if formulation == "paper" else "sum"
    check(found, naive_trs(step, loss_gradients(step, x), reduce=reduce))


@pytest.mark.parametrize("power", [1, 2])
def test_trs_climbs(power):
    """From the random start to longer gradients; the first half stays where it was."""
    step = make_step(3)
    start = step.x.numpy().copy()
    half = len(start) // 2
    ball = LinfBall(step.x[half:], 0.2, BOX)
    start[half:] = ball.random_point(step.seed).numpy()
    at_start = smoothness(step, loss_gradients(step, start), power)
    found = make_trs(scale=1.0, lamda=1.0, norm_power=power)._objective(step)["smoothness"].item()
    assert found > 1.05 * at_start
    at_clean = smoothness(step, loss_gradients(step), power)
    assert found > 1.05 * at_clean


def test_trs_batch_too_small_to_halve():
    """One sample alone would be no batch for BatchNorm: both count as clean."""
    step = make_step(3)
    fields = [None if field is None else field[:2] for field in step.batch]
    step = step.__class__(step.module, None, step.batch._make(fields), BOX, 7)
    found = make_trs()._objective(step)
    check(found, naive_trs(step, loss_gradients(step), reduce="mean"))


def test_trs_defaults():
    step = make_step(3)
    default = make(TRSEnsembleClassifier, coeff=20.0, inner_max=False)._objective(step)
    one = make(TRSEnsembleClassifier, coeff=1.0, lamda=1.0, inner_max=False)._objective(step)
    assert TRSEnsembleClassifier().coeff == 20
    assert default["similarity"].item() == pytest.approx(20 * one["similarity"].item())
    assert default["smoothness"].item() == pytest.approx(2.5 * one["smoothness"].item())
    assert default["cross_entropy"].item() == one["cross_entropy"].item()


# --- slopes --------------------------------------------------------------------------------

OBJECTIVES = [
    (ADPEnsembleClassifier, {}),
    (ADPEnsembleClassifier, {"attack": ATTACK, "regularize_adversarial": True}),
    (GALEnsembleClassifier, {}),
    (GALEnsembleClassifier, {"cos_eps_mode": "torch1"}),
    (GPMREnsembleClassifier, {"lambda_div": 1.0}),
    (GPMREnsembleClassifier, {"lambda_div": 1.0, "formulation": "released"}),
    (TRSEnsembleClassifier, {"delta_init": 0.2, "delta_final": 0.2}),
    (TRSEnsembleClassifier, {"inner_max": False}),
    (TRSEnsembleClassifier, {"norm_power": 1, "cos_eps_mode": "torch1"}),
]


@pytest.mark.parametrize(("cls", "params"), OBJECTIVES, ids=name_of)
def test_slope_of_every_term(cls, params):
    step = make_step(3, weighted=True)
    check_backward(make(cls, **params)._objective, step)


@pytest.mark.parametrize("n_members", MEMBERS)
@pytest.mark.parametrize(("cls", "params"), OBJECTIVES, ids=name_of)
def test_every_term_trains_every_member(cls, params, n_members):
    step = make_step(n_members)
    for name, term in make(cls, **params)._objective(step).items():
        for member in step.module:
            parameters = [member.first.weight, member.first.bias, member.last.weight]
            gradients = torch.autograd.grad(term, parameters, allow_unused=True, retain_graph=True)
            assert all(g is not None and g.abs().max() > 1e-9 for g in gradients), name


@pytest.mark.parametrize(("cls", "params"), OBJECTIVES, ids=name_of)
def test_objective_leaves_no_gradient(cls, params):
    step = make_step(3)
    make(cls, **params)._objective(step)
    assert all(p.grad is None and p.requires_grad for p in step.module.parameters())
    assert step.module.training
    assert step.x.grad is None
    assert not step.x.requires_grad
