"""Each method's whole objective, in float64, against the papers once more in plain loops.

The reference takes one sample and one member at a time, with members that have no BatchNorm:
nothing couples the samples of a batch then.
"""

import math

import numpy as np
import pytest
import torch
from naive_steps import (
    FORMULATIONS,
    B,
    C,
    check,
    cosine,
    crafted,
    cross_entropy,
    gradient,
    logits_of,
    make_step,
    naive_cross_entropies,
    naive_distances,
    naive_divergence,
    naive_soft_label,
    naive_weight,
    pairs,
    parameter_gradients,
    samples,
    softmax,
)
from small_estimators import make
from torch import nn

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    NCEnEnsembleClassifier,
    VanillaEnsembleClassifier,
)
from robust_ensembles.attacks import FGSM, PGD

MEMBERS = [1, 2, 3, 4]


# --- the methods ---------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", MEMBERS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_vanilla(formulation, n_members, weighted):
    step = make_step(n_members, weighted=weighted)
    losses = naive_cross_entropies(step)
    scale = 1 if formulation == "paper" else 1 / n_members
    found = make(VanillaEnsembleClassifier, formulation=formulation)._objective(step)
    check(found, {"cross_entropy": scale * sum(losses)})


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("attack", [PGD(eps=0.2, n_steps=3), FGSM(eps=0.3)])
@pytest.mark.parametrize("target", ["ensemble", "member"])
@pytest.mark.parametrize("n_members", [1, 3])
def test_adversarial(n_members, target, attack, weighted):
    step = make_step(n_members, weighted=weighted)
    x_adv = crafted(step, attack, target)
    assert max(np.abs(x - step.x.numpy()).max() for x in x_adv) == pytest.approx(attack.eps)
    estimator = make(AdversarialEnsembleClassifier, attack=attack, attack_target=target)
    expected = sum(naive_cross_entropies(step, x_adv))
    check(estimator._objective(step), {"adversarial_cross_entropy": expected})
    assert sum(naive_cross_entropies(step)) < expected


def test_adversarial_targets_differ():
    step = make_step(3)
    found = [
        make(AdversarialEnsembleClassifier, attack_target=t, attack=PGD(eps=0.2))._objective(step)
        for t in ("ensemble", "member")
    ]
    ensemble, member = (terms["adversarial_cross_entropy"].item() for terms in found)
    assert member > ensemble + 0.01  # each member's own worst case is worse for it


def naive_ncen(step, *, released, lambda_cos, lambda_norm, norm_sign, on_probabilities):
    k = len(step.module)

    def loss(member, x, y):
        z = logits_of(member, x)
        return cross_entropy(softmax(z) if on_probabilities else z, y)

    terms = {"cross_entropy": 0.0, "direction": 0.0, "magnitude": 0.0}
    for x, y, w in samples(step):
        g = [gradient(lambda v, m=m, y=y: loss(m, v, y), x) for m in step.module]
        mean = sum(g) / k
        c = [cosine(g_i, mean) for g_i in g]
        n = [np.linalg.norm(g_i) for g_i in g]
        u = [(n_i - np.mean(n)) / np.mean(n) for n_i in n]
        others = [[j for j in range(k) if j != i] for i in range(k)]
        if k == 1:
            direction = magnitude = 0.0
        elif released:
            direction = math.log(
                sum(math.exp(c[i]) * sum(math.exp(c[j]) for j in others[i]) for i in range(k))
            )
            magnitude = math.log(
                sum(math.exp(u[i] * sum(u[j] for j in others[i]) / k) for i in range(k))
            )
        else:
            direction = sum(c[i] * c[j] for i in range(k) for j in others[i]) / k
            magnitude = -sum(u_i**2 for u_i in u) / k
        terms["cross_entropy"] += w * sum(loss(m, x, y) for m in step.module) / k / B
        terms["direction"] += w * lambda_cos * direction / B
        terms["magnitude"] += w * norm_sign * lambda_norm * magnitude / B
    return terms


@pytest.mark.parametrize(
    "options",
    [{}, {"norm_sign": -1}, {"ce_on_probabilities": True}, {"ce_on_probabilities": False}],
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", MEMBERS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_ncen(formulation, n_members, weighted, options):
    step = make_step(n_members, weighted=weighted)
    estimator = make(
        NCEnEnsembleClassifier, formulation=formulation, lambda_cos=0.7, lambda_norm=0.4, **options
    )
    released = formulation == "released"
    expected = naive_ncen(
        step,
        released=released,
        lambda_cos=0.7,
        lambda_norm=0.4,
        norm_sign=options.get("norm_sign", 1),
        on_probabilities=options.get("ce_on_probabilities", released),
    )
    check(estimator._objective(step), expected)


def jensen_shannon(p, q):
    """In bits."""
    middle = (p + q) / 2
    return float(np.sum(p * np.log2(p / middle) + q * np.log2(q / middle)) / 2)


def naive_cldl(step, *, gamma, released, on, reduction, norm):
    n = len(step.module)

    def soft_label(member, x, y):
        return naive_soft_label(step, member, x, y, gamma)

    def divergence(member, x, y):
        return naive_divergence(step, member, x, y, gamma=gamma, released=released)

    l_kl = l_gd = 0.0
    jsd = np.zeros((len(pairs(n)), B))
    for b, (x, y, w) in enumerate(samples(step)):
        l_kl += w * sum(divergence(m, x, y) for m in step.module) / n / B
        g = [gradient(lambda v, m=m, y=y: divergence(m, v, y), x) for m in step.module]
        cosines = [abs(cosine(g[i], g[j])) for i, j in pairs(n)]
        l_gd += w * sum(cosines) / (len(cosines) if norm == "pairs" else n) / B if cosines else 0
        compared = [soft_label(m, x, y)[on == "confusion_vectors"] for m in step.module]
        compared = [np.delete(vector, y) for vector in compared]
        jsd[:, b] = [jensen_shannon(compared[i], compared[j]) for i, j in pairs(n)]
    weight = np.array([w for *_, w in samples(step)])
    if n == 1:
        return l_kl, 0.0, 0.0
    if reduction == "element_mean":
        elements = (jsd * weight).sum(axis=1) / B / (C - 1)
        return l_kl, math.log(np.mean(np.exp(elements)) + 1e-6), l_gd
    return l_kl, float(np.mean(weight * np.log(np.exp(jsd).mean(axis=0)))), l_gd


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_diversity_on": "confusion_vectors"},
        {"label_diversity_on": "soft_labels"},
        {"jsd_reduction": "element_mean"},
        {"jsd_reduction": "sample"},
        {"gradient_norm": "members"},
        {"gradient_norm": "pairs"},
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [1, 2, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_cldl(formulation, n_members, weighted, options):
    step = make_step(n_members, weighted=weighted, auxiliary=True)
    estimator = make(
        CLDLEnsembleClassifier, formulation=formulation, gamma=3.0, alpha=5.0, beta=0.5, **options
    )
    released = formulation == "released"
    kl, diversity, alignment = naive_cldl(
        step,
        gamma=3.0,
        released=released,
        on=options.get("label_diversity_on", "confusion_vectors" if released else "soft_labels"),
        reduction=options.get("jsd_reduction", "element_mean" if released else "sample"),
        norm=options.get("gradient_norm", "members" if released else "pairs"),
    )
    expected = {
        "soft_label_divergence": kl,
        "label_diversity": -5.0 * diversity,
        "gradient_diversity": 0.5 * alignment,
    }
    check(estimator._objective(step), expected)


def naive_ceat(step, x_adv, options):
    expected = {
        "adversarial_cross_entropy": sum(naive_cross_entropies(step, x_adv)),
        **naive_distances(step, x_adv, lam=2.0, mu=3.0, **options),
    }
    if options.get("clean_cross_entropy"):
        expected["clean_cross_entropy"] = sum(naive_cross_entropies(step))
    return expected


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


@pytest.mark.parametrize("options", CEAT_OPTIONS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_ceat(n_members, weighted, options):
    step = make_step(n_members, weighted=weighted)
    attack = PGD(eps=0.2, n_steps=3)
    x_adv = crafted(step, attack, options.get("attack_target", "ensemble"))
    estimator = make(CEATEnsembleClassifier, attack=attack, lam=2.0, mu=3.0, **options)
    check(estimator._objective(step), naive_ceat(step, x_adv, options))


# --- gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("cls", [CLDLEnsembleClassifier, NCEnEnsembleClassifier])
def test_every_term_trains_every_member(cls, formulation):
    """A missing create_graph leaves a regulariser a constant."""
    step = make_step(3, auxiliary=cls is CLDLEnsembleClassifier)
    terms = make(cls, formulation=formulation)._objective(step)
    for name, term in terms.items():
        for member in step.module:
            gradients = parameter_gradients(term, member.first)
            assert all(g is not None and g.abs().max() > 1e-8 for g in gradients), name
    if step.auxiliary is not None:
        for term in terms.values():
            gradients = parameter_gradients(term, step.auxiliary)
            assert any(g is not None and g.abs().max() > 1e-8 for g in gradients)


@pytest.mark.parametrize("options", CEAT_OPTIONS, ids=str)
def test_ceat_trains_members_by_their_own_losses(options):
    """d L_m / d theta_j = 0: a member is not taught to agree with its peers."""
    step = make_step(4, weighted=True)
    attack = PGD(eps=0.2, n_steps=3)
    estimator = make(CEATEnsembleClassifier, attack=attack, lam=2.0, mu=3.0, **options)
    x_adv = [torch.from_numpy(x) for x in crafted(step, attack, estimator.attack_target)]
    y, one_hot = step.y, nn.functional.one_hot(step.y, C).double()
    with torch.no_grad():
        clean = [m(step.x).softmax(-1)[range(B), y] for m in step.module]
        hostile = [m(x).softmax(-1)[range(B), y] for m, x in zip(step.module, x_adv, strict=True)]
    output = (lambda z: z) if options.get("distance_on") == "logits" else (lambda z: z.softmax(-1))
    reduce = torch.mean if options.get("distance_reduce") == "mean" else torch.sum
    total = torch.stack(list(estimator._objective(step).values())).sum()
    peers = options.get("peers", "pair_sum")

    def constants(h, m, tau):
        weight = [naive_weight([float(p[b]) for p in h], m, tau, peers) for b in range(B)]
        weight = torch.tensor(weight, dtype=torch.float64)
        return weight / weight.mean() if options.get("normalize_weights") else weight

    for m, member in enumerate(step.module):
        z, z_adv = member(step.x), member(x_adv[m])
        anchor = output(z).detach() if options.get("stop_gradient_clean") else output(z)
        natural = constants(clean, m, options.get("lam_exp", 2.0)) * reduce(
            (output(z) - one_hot) ** 2, dim=-1
        )
        adversarial = constants(hostile, m, options.get("mu_exp", 3.0)) * reduce(
            (output(z_adv) - anchor) ** 2, dim=-1
        )
        per_sample = -z_adv.log_softmax(-1)[range(B), y] + 2.0 * natural + 3.0 * adversarial
        if options.get("clean_cross_entropy"):
            per_sample = per_sample - z.log_softmax(-1)[range(B), y]
        own_loss = (per_sample * step.sample_weight).mean()
        found, expected = (parameter_gradients(loss, member) for loss in (total, own_loss))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("cls", [AdversarialEnsembleClassifier, CEATEnsembleClassifier])
def test_crafting_leaves_no_gradient(cls):
    step = make_step(3)
    make(cls, attack=PGD(eps=0.2, n_steps=3))._objective(step)
    assert all(p.grad is None and p.requires_grad for p in step.module.parameters())
    assert step.module.training
