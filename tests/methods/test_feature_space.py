"""DVERGE, LAFED and FASTEN: whole objectives against plain loops, with derivatives by hand.

A `Member` has two layers to take features from, both linear: ``first`` and ``last``.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from naive_steps import (
    BOX,
    FORMULATIONS,
    B,
    C,
    D,
    build,
    check,
    check_backward,
    crafted,
    cross_entropy,
    embed,
    logits_of,
    loss_of,
    make_step,
    member_arrays,
    naive_cross_entropies,
    naive_distances,
    parameter_gradients,
    samples,
    softmax,
)
from small_estimators import make
from torch import nn

from robust_ensembles import (
    CollaborativeCalibration,
    DVERGEEnsembleClassifier,
    FASTENEnsembleClassifier,
    LAFEDEnsembleClassifier,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.estimators import fasten
from robust_ensembles.estimators import feature_space as _distilling
from robust_ensembles.modules import Ensemble
from robust_ensembles.training import PerturbationMemory, TrainingStep, derive_seed

DISTILLING = [DVERGEEnsembleClassifier, LAFEDEnsembleClassifier, FASTENEnsembleClassifier]
PAIRED = [DVERGEEnsembleClassifier, LAFEDEnsembleClassifier]
LAYERS = ["first", "last"]
ATTACK = PGD(eps=0.15, n_steps=2)


# --- features and images -------------------------------------------------------------------


def feature(member, layer, x):
    weight, bias, *_ = member_arrays(member)
    return weight @ x + bias if layer == "first" else logits_of(member, x)


def distance_gradient(member, layer, x, target):
    """Of the mean squared distance of the features from others, by the chain rule."""
    first, _, last, _ = member_arrays(member)
    difference = feature(member, layer, x) - target
    by_feature = 2 * difference / len(difference)
    if layer == "first":
        return first.T @ by_feature
    return first.T @ ((1 - embed(member, x) ** 2) * (last.T @ by_feature))


def clip(x, centre, eps):
    return np.clip(np.clip(x, centre - eps, centre + eps), *BOX)


def naive_distilled(step, layers, *, eps, step_size, n_steps):
    """The distilled image of each member for each sample."""
    result = np.zeros((len(step.module), B, D))
    for j, member in enumerate(step.module):
        for b, (x_source, _, _) in enumerate(samples(step)):
            target = feature(member, layers[j], step.batch.x_target[b].numpy())
            x, momentum = x_source.copy(), np.zeros(D)
            for _ in range(n_steps):
                g = distance_gradient(member, layers[j], x, target)
                momentum = momentum + g / np.abs(g).sum()
                x = clip(x - step_size * np.sign(momentum), x_source, eps)
            result[j, b] = x
    return result


def drawn_layer(step, schedule="epoch"):
    """One for all members, since all have the same two."""
    seed = step.epoch_seed if schedule == "epoch" else step.seed
    return LAYERS[int(2 * np.random.default_rng(derive_seed(seed, "layer")).random())]


def common(step):
    return [drawn_layer(step)] * len(step.module)


def epoch_seeds():
    """One for each layer."""
    by_layer = {drawn_layer(make_step(2, epoch_seed=seed)): seed for seed in range(8)}
    return [by_layer[layer] for layer in LAYERS]


EPOCH_SEEDS = epoch_seeds()


# --- DVERGE --------------------------------------------------------------------------------

WALKS = [
    {"eps": 0.07, "step_size": 0.007, "n_steps": 10},
    {"eps": 0.2, "step_size": 0.06, "n_steps": 7},  # reaches the faces of the ball and the box
    {"eps": 0.5, "step_size": 0.1, "n_steps": 1},
]


def naive_dverge(step, images):
    n = len(step.module)
    total = 0.0
    for i, member in enumerate(step.module):
        for b, (_, y, w) in enumerate(samples(step)):
            for j in range(n):
                if j != i:
                    total += w * cross_entropy(logits_of(member, images[j, b]), y) / B
    return total


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("epoch_seed", EPOCH_SEEDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [2, 3, 4])
def test_dverge(n_members, weighted, epoch_seed, walk):
    step = make_step(n_members, weighted=weighted, epoch_seed=epoch_seed)
    images = naive_distilled(step, common(step), **walk)
    assert np.abs(images - step.x.numpy()).max() <= walk["eps"] + 1e-12
    found = build(DVERGEEnsembleClassifier, n_members, **walk)._objective(step)
    check(found, {"distilled_cross_entropy": naive_dverge(step, images)})


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_dverge_defaults(formulation):
    """0.07, 10 steps of 0.007; code and formula agree."""
    step = make_step(3)
    images = naive_distilled(step, common(step), **WALKS[0])
    found = build(DVERGEEnsembleClassifier, formulation=formulation)._objective(step)
    check(found, {"distilled_cross_entropy": naive_dverge(step, images)})


def test_dverge_layers_of_each_member():
    step = make_step(3)
    layers = ["last", "first", "last"]
    images = naive_distilled(step, layers, **WALKS[1])
    lists = [[layer] for layer in layers]
    found = build(DVERGEEnsembleClassifier, layers=lists, **WALKS[1])._objective(step)
    check(found, {"distilled_cross_entropy": naive_dverge(step, images)})


@pytest.mark.parametrize("layer", LAYERS)
def test_distilled_images_have_the_features_of_others(layer):
    """What they are for."""
    step = make_step(3)
    images = naive_distilled(step, [layer] * 3, eps=0.4, step_size=0.02, n_steps=20)
    found = build(DVERGEEnsembleClassifier, eps=0.4, step_size=0.02, n_steps=20, layers=[layer])
    for image, expected in zip(found._distill(step), images, strict=True):
        np.testing.assert_allclose(image.numpy(), expected, atol=1e-12)
        assert not image.requires_grad
    for j, member in enumerate(step.module):
        wanted = [feature(member, layer, x) for x in step.batch.x_target.numpy()]
        before, after = (
            sum(
                np.sum((feature(member, layer, x) - w) ** 2)
                for x, w in zip(rows, wanted, strict=True)
            )
            for rows in (step.x.numpy(), images[j])
        )
        assert after < before / 2


@pytest.mark.parametrize("target", ["member", "ensemble", None])
@pytest.mark.parametrize("cls", PAIRED)
def test_adversarial_beside(cls, target):
    """Around the clean batch, on each member by default."""
    step = make_step(3, weighted=True)
    plain = build(cls)._objective(step)
    options = {"attack_target": target} if target else {}
    found = build(cls, attack=ATTACK, **options)._objective(step)
    x_adv = crafted(step, ATTACK, target or "member")
    expected = {name: term.item() for name, term in plain.items()}
    expected["adversarial_cross_entropy"] = sum(naive_cross_entropies(step, x_adv))
    check(found, expected)


@pytest.mark.parametrize("n_members", [2, 3])
def test_dverge_slope(n_members):
    """The images are constants, found by signs."""
    step = make_step(n_members, weighted=True)
    check_backward(build(DVERGEEnsembleClassifier, n_members)._objective, step)


# --- LAFED ---------------------------------------------------------------------------------


def lafed_draws(step):
    """The donor of each member, and the mixing share of each sample in each member."""
    n = len(step.module)
    draw = np.random.default_rng(derive_seed(step.seed, "donors"))
    donors = [int(draw.choice([j for j in range(n) if j != i])) for i in range(n)]
    shares = []
    for i in range(n):
        noise = torch.Generator().manual_seed(derive_seed(step.seed, "mixing", i))
        shares.append(torch.rand(B, generator=noise, dtype=torch.float64).numpy())
    return donors, shares


def smoothed_label(y, i, n, smoothing, formulation):
    label = np.eye(C)[y]
    if formulation == "released":
        return np.clip(label, smoothing * i / (C - 1), 1 - smoothing)
    s = smoothing * i / (n - 1)
    return np.where(label == 1, 1 - s, s / (C - 1))


def rest_of(member, layer, images, i, donor, b):
    """Mean features of the images that come from neither the member nor its donor."""
    rest = [images[j, b] for j in range(len(images)) if j not in (i, donor)]
    return sum(feature(member, layer, x) for x in rest) / len(rest)


def naive_lafed(step, layers, images, *, smoothing, formulation):
    n, (donors, shares) = len(step.module), lafed_draws(step)
    total = 0.0
    for i, (member, donor) in enumerate(zip(step.module, donors, strict=True)):
        _, _, last, bias = member_arrays(member)
        layer = layers[i]
        for b, (_, y, w) in enumerate(samples(step)):
            h = feature(member, layer, images[donor, b])
            if formulation == "paper":
                A = shares[i][b]
                h = A * h + (1 - A) * rest_of(member, layer, images, i, donor, b)
            z = last @ np.tanh(h) + bias if layer == "first" else h
            label = smoothed_label(y, i, n, smoothing, formulation)
            total -= w * sum(label * np.log(softmax(z))) / B
    return total


@pytest.mark.parametrize("seed", [7, 8])
@pytest.mark.parametrize("epoch_seed", EPOCH_SEEDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [3, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_lafed(formulation, n_members, weighted, epoch_seed, seed):
    step = make_step(n_members, weighted=weighted, epoch_seed=epoch_seed)
    step = TrainingStep(step.module, None, step.batch, BOX, seed, 0, epoch_seed)
    layers = common(step)
    images = naive_distilled(step, layers, **WALKS[1])
    expected = naive_lafed(step, layers, images, smoothing=0.2, formulation=formulation)
    found = build(
        LAFEDEnsembleClassifier, n_members, formulation=formulation, smoothing=0.2, **WALKS[1]
    )._objective(step)
    check(found, {"smoothed_cross_entropy": expected})


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_lafed_layers_of_each_member(formulation):
    """The donor's image comes from the donor's layer, and is mixed at one's own."""
    step = make_step(4)
    layers = ["first", "last", "last", "first"]
    images = naive_distilled(step, layers, **WALKS[1])
    expected = naive_lafed(step, layers, images, smoothing=0.05, formulation=formulation)
    lists = [[layer] for layer in layers]
    found = build(
        LAFEDEnsembleClassifier, 4, formulation=formulation, layers=lists, **WALKS[1]
    )._objective(step)
    check(found, {"smoothed_cross_entropy": expected})


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_lafed_defaults(formulation):
    """As DVERGE, and s = 0.05."""
    step = make_step(3)
    layers = common(step)
    images = naive_distilled(step, layers, **WALKS[0])
    expected = naive_lafed(step, layers, images, smoothing=0.05, formulation=formulation)
    found = build(LAFEDEnsembleClassifier, formulation=formulation)._objective(step)
    check(found, {"smoothed_cross_entropy": expected})


def test_lafed_draws_anew_in_each_step():
    """Donors and shares; nobody is its own donor, and all others are some time."""
    base, seen = make_step(4), set()
    for seed in range(40):
        donors, shares = lafed_draws(replace(base, seed=seed))
        seen.update(enumerate(donors))
        assert len({tuple(share) for share in shares}) == 4
    assert seen == {(i, j) for i in range(4) for j in range(4) if i != j}


@pytest.mark.parametrize("epoch_seed", EPOCH_SEEDS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_lafed_gradient(formulation, epoch_seed):
    """Of what each member makes of its donor's image; what is mixed in is a constant."""
    step = make_step(4, weighted=True, epoch_seed=epoch_seed)
    layer = drawn_layer(step)
    images = naive_distilled(step, [layer] * 4, **WALKS[1])
    estimator = build(LAFEDEnsembleClassifier, 4, formulation=formulation, **WALKS[1])
    total = loss_of(estimator._objective(step))
    donors, shares = lafed_draws(step)
    for i, (member, donor) in enumerate(zip(step.module, donors, strict=True)):
        x = torch.from_numpy(images[donor])
        A = torch.from_numpy(shares[i] if formulation == "paper" else np.ones(B))[:, None]
        rest = [rest_of(member, layer, images, i, donor, b) for b in range(B)]
        rest = torch.from_numpy(np.array(rest))
        h = member.first(x)
        h = A * h + (1 - A) * rest if layer == "first" else h
        z = member.last(torch.tanh(h))
        z = A * z + (1 - A) * rest if layer == "last" else z
        labels = [smoothed_label(y, i, 4, 0.05, formulation) for y in step.y.tolist()]
        labels = torch.from_numpy(np.array(labels))
        own = -(step.sample_weight * (labels * z.log_softmax(-1)).sum(-1)).mean()
        found, expected = (parameter_gradients(loss, member) for loss in (total, own))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


# --- FASTEN --------------------------------------------------------------------------------


def uniform(shape, seed, stream, *position):
    noise = torch.Generator().manual_seed(derive_seed(seed, stream, *position))
    return 2 * torch.rand(shape, generator=noise, dtype=torch.float64).numpy() - 1


def fasten_views(step, layers, memory, *, eps, step_size, n_steps, eps_init):
    """What each member sees, and who made it; `memory` maps samples to perturbations."""
    n = len(step.module)
    draw = np.random.default_rng(derive_seed(step.seed, "makers"))
    a, b = (int(m) for m in draw.choice(n, size=2, replace=False))
    shared = eps_init * uniform((B, D), step.seed, "shared start")
    made = {}
    for m in (a, b):
        member, own = step.module[m], eps * uniform((B, D), step.seed, "own start", m)
        layer = layers[m]
        share, made[m] = draw.random(), np.zeros((B, D))
        for row, (x, _, _) in enumerate(samples(step)):
            x_new = np.clip(x + shared[row] + own[row], *BOX)
            target = feature(member, layer, x)
            for _ in range(n_steps):
                g = distance_gradient(member, layer, x_new, target)
                x_new = clip(x_new + step_size * np.sign(g), x, eps)
            delta, index = x_new - x, int(step.batch.sample_index[row])
            if index in memory:
                delta = share * delta + (1 - share) * memory[index]
            made[m][row] = clip(x + delta, x, eps)
        if m == a:  # what a has left is what b builds on, but for samples that are new
            known = [i for i in step.batch.sample_index.tolist() if i in memory]
        for row, index in enumerate(step.batch.sample_index.tolist()):
            if m == b or index in known:
                memory[index] = made[m][row] - step.x[row].numpy()
    makers = []
    for i in range(n):
        other = a if draw.random() < 0.5 else b
        makers.append({a: b, b: a}.get(i, other))
    return [made[m] for m in makers], makers, (a, b)


def kl(p, q):
    return float(np.sum(p * (np.log(p) - np.log(q))))


def divergences(step, views, cap=10.0):
    """Sums over the members of intra and inter; `views` are lists of inputs of each member."""
    n, intra, inter = len(step.module), 0.0, 0.0
    for b, (_, _, w) in enumerate(samples(step)):
        q = [[softmax(logits_of(m, x[b])) for x in views[i]] for i, m in enumerate(step.module)]
        mean = [sum(of_member) / len(of_member) for of_member in q]
        for i in range(n):
            intra += w * sum(kl(mean[i], v) for v in q[i]) / len(q[i]) / B
            for j in range(n):
                if j != i:
                    of_j = sum(kl(mean[j], v) for v in q[i]) / len(q[i])
                    inter += w * min(of_j, cap) / (n - 1) / B
    return intra, inter


FASTEN_WALKS = [
    {"eps": 0.06, "step_size": 0.06, "n_steps": 1, "eps_init": 8 / 255},
    {"eps": 0.3, "step_size": 0.2, "n_steps": 2, "eps_init": 0.1},
]


def seen_to_the_bit(step, walk):
    """The same from the estimator itself: random starts of attacks depend on every bit of it."""
    found = build(FASTENEnsembleClassifier, len(step.module), **walk)._perturbed(step)
    expected, *_ = fasten_views(step, common(step), {}, **walk)
    np.testing.assert_allclose(torch.stack(found).numpy(), np.array(expected), atol=1e-12)
    return [x.numpy() for x in found]


def naive_fasten(step, layers, memory, walk, *, clean=False, attack=None, target="member"):
    seen, *_ = fasten_views(step, layers, memory, **walk)
    x = step.x.numpy()
    views = [[x, perturbed] for perturbed in seen]
    expected = {"perturbed_cross_entropy": sum(naive_cross_entropies(step, seen))}
    if clean:
        expected["clean_cross_entropy"] = sum(naive_cross_entropies(step))
    if attack:
        x_adv = crafted(step, attack, target, centres=seen_to_the_bit(step, walk))
        views = [[*pair, adversarial] for pair, adversarial in zip(views, x_adv, strict=True)]
        expected["adversarial_cross_entropy"] = sum(naive_cross_entropies(step, x_adv))
    intra, inter = divergences(step, views)
    return {**expected, "intra_model": 2.0 * intra, "inter_model": -0.05 * 2.0 * inter}


def later(step, seed, index=None):
    """A further step, with the samples in another order or others among them.

    What augmentation makes of a sample is new each time: its perturbation is that of another
    image, and may lead out of the box.
    """
    order = torch.arange(B) if index is None else torch.tensor(index)
    x = torch.rand(12, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = torch.arange(12) % C
    weight = step.sample_weight
    batch = step.batch._replace(x=x[order], y=y[order], sample_weight=weight, sample_index=order)
    return TrainingStep(step.module, None, batch, BOX, seed, 1, step.epoch_seed)


@pytest.mark.parametrize("walk", FASTEN_WALKS, ids=str)
@pytest.mark.parametrize("epoch_seed", EPOCH_SEEDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [2, 3, 4])
def test_fasten(n_members, weighted, epoch_seed, walk):
    """Perturbations are new at first, b's are kept; later ones are blended, a's goes into b's."""
    base = make_step(n_members, weighted=weighted, epoch_seed=epoch_seed)
    estimator = build(FASTENEnsembleClassifier, n_members, 12, beta=2.0, **walk)
    memory = {}
    batches = [[0, 1, 2, 3, 4], [7, 5, 6, 9, 8], [4, 2, 11, 6, 9], [4, 2, 11, 6, 9]]
    for seed, index in enumerate(batches):
        step = later(base, seed, index)
        expected = naive_fasten(step, common(step), memory, walk)
        check(estimator._objective(step), expected)
    kept = estimator._memory[1].kept
    assert kept.isnan().all(dim=1).tolist() == [i == 10 for i in range(12)]
    for index, delta in memory.items():
        np.testing.assert_allclose(kept[index].numpy(), delta, atol=1e-12)
        assert np.abs(delta).max() <= walk["eps"] + 1e-12


def test_fasten_sees_what_others_made():
    """No maker sees its own; the others see either one, in some step each."""
    base, seen = make_step(4), set()
    for seed in range(40):
        step = later(base, seed)
        _, makers, (a, b) = fasten_views(step, ["first"] * 4, {}, **FASTEN_WALKS[1])
        assert makers[a] == b
        assert makers[b] == a
        assert a != b
        seen.update(enumerate(makers))
        estimator = build(FASTENEnsembleClassifier, 4, **FASTEN_WALKS[1], layers=["first"])
        found = estimator._perturbed(step)
        of_maker = {m: found[i] for i, m in enumerate(makers)}
        assert all(torch.equal(image, of_maker[m]) for image, m in zip(found, makers, strict=True))
        assert not torch.equal(of_maker[a], of_maker[b])
    assert seen == {(i, j) for i in range(4) for j in range(4) if i != j}


@pytest.mark.parametrize("target", ["member", "ensemble", None])
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [2, 3])
def test_fasten_options(n_members, weighted, clean, target):
    """Adversarial examples are made around what a member sees, and are a third view."""
    step = make_step(n_members, weighted=weighted)
    attack = None if target is None else ATTACK
    params = {"attack_target": target, "attack": ATTACK} if target else {}
    estimator = build(
        FASTENEnsembleClassifier, n_members, beta=2.0, clean_cross_entropy=clean, **params
    )
    layers, walk = common(step), FASTEN_WALKS[0]
    expected = naive_fasten(step, layers, {}, walk, clean=clean, attack=attack, target=target)
    check(estimator._objective(step), expected)


@pytest.mark.parametrize("n_members", [2, 3, 4])
def test_fasten_calibration(n_members):
    """Compares the adversarial views, which lie around x'', with the clean batch."""
    step = make_step(n_members, weighted=True)
    calibration = CollaborativeCalibration(lam=0.5, mu=2.0)
    estimator = build(
        FASTENEnsembleClassifier, n_members, beta=2.0, attack=ATTACK, calibration=calibration
    )
    layers, walk = common(step), FASTEN_WALKS[0]
    expected = naive_fasten(step, layers, {}, walk, attack=ATTACK)
    x_adv = crafted(step, ATTACK, "member", centres=seen_to_the_bit(step, walk))
    expected.update(naive_distances(step, x_adv, lam=0.5, mu=2.0))
    check(estimator._objective(step), expected)


def test_fasten_layers_of_each_member():
    step = make_step(3)
    for layers in (["first", "last", "last"], ["last", "first", "first"]):
        expected = naive_fasten(step, layers, {}, FASTEN_WALKS[1])
        lists = [[layer] for layer in layers]
        estimator = build(FASTENEnsembleClassifier, beta=2.0, layers=lists, **FASTEN_WALKS[1])
        check(estimator._objective(step), expected)


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_fasten_defaults(formulation):
    step = make_step(3)
    found = build(FASTENEnsembleClassifier, formulation=formulation)._objective(step)
    expected = naive_fasten(step, common(step), {}, FASTEN_WALKS[0])
    expected["intra_model"] *= 3 / 2
    expected["inter_model"] *= 3 / 2
    check(found, expected)
    assert FASTENEnsembleClassifier().attack_target == "member"


def test_fasten_inter_is_capped():
    """A sure member's divergence from its peers would be rewarded without end."""
    step = make_step(3)
    with torch.no_grad():
        for member in step.module:
            member.last.weight.mul_(60)
    found = build(FASTENEnsembleClassifier, beta=2.0, inter_gradient=True)._objective(step)
    layers, walk = common(step), FASTEN_WALKS[0]
    seen, *_ = fasten_views(step, layers, {}, **walk)
    views = [[step.x.numpy(), x] for x in seen]

    def log_softmax(z):
        z = z - z.max()
        return z - math.log(np.exp(z).sum())

    total, capped = 0.0, 0
    for b in range(B):
        log_q = [
            [log_softmax(logits_of(m, x[b])) for x in of_member]
            for m, of_member in zip(step.module, views, strict=True)
        ]
        for i in range(3):
            for j in range(3):
                if i != j:
                    mean = sum(np.exp(v) for v in log_q[j]) / 2
                    own = sum(log_q[i]) / 2
                    present = mean > 0
                    value = np.sum(mean[present] * (np.log(mean[present]) - own[present]))
                    capped += value > 10
                    total += min(value, 10.0) / 2 / B
    assert 0 < capped < 6 * B
    assert found["inter_model"].item() == pytest.approx(-0.05 * 2.0 * total)


def reference_fasten_loss(member, i, step, seen, x_adv, *, clean, inter, calibrated):
    """What reaches member i, with its peers and, by default, the clean view as constants."""
    members, y = list(step.module), step.y

    def log_q(m, views, fixed):
        rows = [members[m](x).log_softmax(-1) for x in views]
        return [rows[0].detach() if fixed else rows[0], *rows[1:]]

    def views(m):
        own = [step.x, torch.from_numpy(seen[m])]
        return own if x_adv is None else [*own, torch.from_numpy(x_adv[m])]

    q = log_q(i, views(i), not clean)
    one_hot = nn.functional.one_hot(y, C).double()
    mean = sum(v.exp() for v in q) / len(q)
    per_sample = sum(-v[range(B), y] for v in (q[1:] if not clean else q))
    per_sample = per_sample + 2.0 * sum((mean * (mean.log() - v)).sum(-1) for v in q) / len(q)
    if inter:
        for j in range(len(members)):
            if j != i:
                with torch.no_grad():
                    of_j = log_q(j, views(j), True)
                    peer = sum(v.exp() for v in of_j) / len(of_j)
                far = (peer * (peer.log() - sum(q) / len(q))).sum(-1)
                per_sample = per_sample - 0.05 * 2.0 * far / (len(members) - 1)
    if calibrated:  # by distances that reach the clean output, whatever is done with the view
        p, p_adv = member(step.x).softmax(-1), member(torch.from_numpy(x_adv[i])).softmax(-1)
        per_sample = per_sample + 0.5 * ((p - one_hot) ** 2).sum(-1)
        per_sample = per_sample + 2.0 * ((p_adv - p) ** 2).sum(-1)
    return (step.sample_weight * per_sample).mean()


@pytest.mark.parametrize(("attack", "calibrated"), [(None, False), (ATTACK, False), (ATTACK, True)])
@pytest.mark.parametrize("inter", [False, True])
@pytest.mark.parametrize("clean", [False, True])
def test_fasten_gradient(clean, inter, attack, calibrated):
    # exponents of zero: all disparity weights are 1
    plain = CollaborativeCalibration(0.5, 2.0, lam_exp=0.0, mu_exp=0.0)
    step = make_step(3, weighted=True)
    with torch.no_grad():  # of a softness that reaches no cap
        for member in step.module:
            member.last.weight.mul_(0.3)
    estimator = build(
        FASTENEnsembleClassifier,
        beta=2.0,
        clean_cross_entropy=clean,
        inter_gradient=inter,
        attack=attack,
        calibration=plain if calibrated else None,
    )
    seen = seen_to_the_bit(step, FASTEN_WALKS[0])
    x_adv = crafted(step, attack, "member", centres=seen) if attack else None
    terms = estimator._objective(step)
    assert terms["inter_model"].requires_grad == inter
    for i, member in enumerate(step.module):
        own = reference_fasten_loss(
            member, i, step, seen, x_adv, clean=clean, inter=inter, calibrated=calibrated
        )
        found = parameter_gradients(loss_of(terms), member)
        for a, b in zip(found, parameter_gradients(own, member), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_fasten_memory_lives_as_long_as_a_fit(digit_rows):
    """The same in each fit, and nothing of it stays behind; warm starts keep it."""
    X, _, y, _ = digit_rows
    estimator = make(FASTENEnsembleClassifier).fit(X, y)
    assert not hasattr(estimator, "_memory")
    estimator = make(FASTENEnsembleClassifier, warm_start=True).fit(X, y)
    memory = estimator._memory[1]
    assert memory.kept.shape == X.shape
    assert not memory.kept.isnan().any()
    estimator.fit(X, y)
    assert estimator._memory[1] is memory
    estimator.fit(X[:100], y[:100])
    assert len(estimator._memory[1].kept) == 100


def test_fasten_memory_goes_by_sample(digit_rows, monkeypatch):
    """Batches are shuffled anew in each epoch: a sample finds its own perturbation."""
    X, _, y, _ = digit_rows
    calls = []

    class Spy(PerturbationMemory):
        def recall(self, index, *, like):
            kept = super().recall(index, like=like)
            calls.append((index, like, kept))
            return kept

        def keep(self, index, perturbations):
            super().keep(index, perturbations)
            calls.append((index, perturbations))

    monkeypatch.setattr(fasten, "PerturbationMemory", Spy)
    make(FASTENEnsembleClassifier, max_epochs=3, random_state=1).fit(X, y)
    last, known, orders = {}, 0, []
    for call in calls:
        if len(call) == 3:
            orders.append(tuple(call[0].tolist()))
            for index, x, kept in zip(*call, strict=True):
                assert torch.equal(x, torch.from_numpy(X[index]))
                assert kept.isnan().all() if int(index) not in last else True
                if int(index) in last:
                    known += 1
                    assert torch.equal(kept, last[int(index)])
        else:
            for index, kept in zip(*call, strict=True):
                last[int(index)] = kept.clone()
                assert 0 < kept.abs().max() <= 0.06 + 1e-6
    assert known == 2 * len(X)
    assert len(set(orders)) == len(orders)


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

    monkeypatch.setattr(_distilling, "distill", spy(_distilling.distill))
    monkeypatch.setattr(fasten, "repel", spy(fasten.repel))
    # lets four steps pass in an epoch
    make(cls, batch_size=50, **params).fit(X, y)
    return [(epoch, layers) for epoch, _, layers in drawn]


@pytest.mark.parametrize("cls", DISTILLING)
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


@pytest.mark.parametrize("cls", DISTILLING)
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


@pytest.mark.parametrize("cls", DISTILLING)
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
@pytest.mark.parametrize("cls", DISTILLING)
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
    estimator._objective(step)
    # on the images of two others; on the donor's; on the clean and the perturbed batch
    trained = {DVERGEEnsembleClassifier: 2, LAFEDEnsembleClassifier: 1}.get(cls, 2)
    assert count() - before > 3 * trained if moves else count() - before == 3 * trained
    assert all(p.grad is None and p.requires_grad for p in step.module.parameters())
