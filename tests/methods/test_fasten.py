"""FASTEN: against the equations in plain loops, its whole objective, and its memory."""

import math

import naive_equations as naive
import numpy as np
import pytest
import torch
from feature_steps import EPOCH_SEEDS, clip, common, distance_gradient, feature
from naive_equations import FORMULATIONS, random, with_weights
from naive_steps import (
    BOX,
    B,
    C,
    D,
    build,
    check,
    check_gradients,
    crafted,
    cross_entropies,
    logits,
    loss_of,
    make_step,
    naive_distances,
    objective,
    probabilities,
    samples,
    soften,
)
from small_estimators import make
from torch import nn

from robust_ensembles import CollaborativeCalibration, FASTENEnsembleClassifier
from robust_ensembles.attacks import PGD
from robust_ensembles.estimators import fasten
from robust_ensembles.losses import inter_model_divergence, intra_model_divergence, log_mean
from robust_ensembles.training import PerturbationMemory, TrainingStep, derive_seed

VIEWS = [1, 2, 3, 5]


def log_proba(*shape, seed=0, scale=1.0):
    return random(*shape, seed=seed, scale=scale).log_softmax(dim=-1)


@with_weights
@pytest.mark.parametrize("n_views", VIEWS)
def test_intra(n_views, weight):
    log_q = log_proba(n_views, 4, 5)
    found = intra_model_divergence(log_q, weight)
    expected = naive.intra_model_divergence(log_q.exp().numpy(), weight)
    assert float(found) == pytest.approx(expected, abs=1e-12)


@with_weights
@pytest.mark.parametrize("cap", [None, 1.0, 100.0])
@pytest.mark.parametrize("n_views", VIEWS)
def test_inter(n_views, cap, weight):
    log_q, peer = log_proba(n_views, 4, 5), log_proba(3, 4, 5, seed=1)
    found = inter_model_divergence(log_q, log_mean(peer), weight, cap=cap)
    q, q_of_peer = log_q.exp().numpy(), peer.exp().numpy()
    expected = naive.inter_model_divergence(q, q_of_peer, weight, math.inf if cap is None else cap)
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_cap_is_on_each_sample():
    log_q, peer = log_proba(2, 4, 5, scale=3), log_mean(log_proba(2, 4, 5, seed=1))
    each = torch.stack(
        [inter_model_divergence(log_q[:, b : b + 1], peer[b : b + 1]) for b in range(4)]
    )
    cap = float(each.median())
    expected = each.clamp_max(cap).mean()
    torch.testing.assert_close(inter_model_divergence(log_q, peer, cap=cap), expected)
    assert expected < min(cap, each.mean())


@pytest.mark.parametrize("n_views", VIEWS)
def test_equal_views_do_not_diverge(n_views):
    log_q = log_proba(1, 4, 5).expand(n_views, 4, 5)
    assert intra_model_divergence(log_q).abs() < 1e-14
    assert inter_model_divergence(log_q, log_q[0]).abs() < 1e-14


def test_divergences_are_not_negative():
    for seed in range(20):
        log_q = log_proba(2, 4, 5, seed=seed)
        assert intra_model_divergence(log_q) > 0
        assert inter_model_divergence(log_q, log_proba(4, 5, seed=seed + 100)) > 0


def test_inter_with_oneself_is_intra():
    log_q = log_proba(3, 4, 5)
    torch.testing.assert_close(
        inter_model_divergence(log_q, log_mean(log_q)), intra_model_divergence(log_q)
    )


def test_gradient_reaches_both_sides():
    """Through every view and through their mean."""
    log_q = log_proba(3, 4, 5).requires_grad_()
    peer = log_proba(4, 5, seed=1).requires_grad_()
    for value in (intra_model_divergence(log_q), inter_model_divergence(log_q, peer)):
        (gradient,) = torch.autograd.grad(value, log_q)
        assert (gradient.abs().sum(dim=(1, 2)) > 1e-3).all()
    (gradient,) = torch.autograd.grad(inter_model_divergence(log_q, peer), peer)
    assert (gradient.abs().sum(dim=1) > 1e-3).all()


def test_intra_gradient_of_one_view():
    """d/dq_v of a loss whose other view is fixed, as the released code uses it."""
    fixed, log_q = log_proba(1, 4, 5), log_proba(1, 4, 5, seed=1).requires_grad_()

    def loss(log_q):
        return intra_model_divergence(torch.cat([fixed, log_q]))

    assert torch.autograd.gradcheck(loss, (log_q,))


def test_detached_inter_has_no_gradient():
    """As released: both sides detached, nothing to learn from."""
    logits = torch.zeros(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    log_q = logits.log_softmax(dim=-1).detach()
    assert not inter_model_divergence(log_q[0], log_mean(log_q[1])).requires_grad
    one_side = logits.log_softmax(dim=-1)
    value = inter_model_divergence(one_side[0] * 2, log_mean(one_side[1]).detach())
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[1].abs().max() == 0


def test_cap_stops_the_gradient():
    log_q = log_proba(2, 4, 5, scale=20).requires_grad_()
    value = inter_model_divergence(log_q, log_proba(4, 5, seed=1), cap=1e-3)
    assert value.item() == pytest.approx(1e-3)
    assert torch.autograd.grad(value, log_q)[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_members(dtype):
    """One-hot predictions: probabilities underflow, their logarithms must not."""
    logits = torch.zeros(2, 3, 5, dtype=dtype)
    logits[0, :, 0] = logits[1, :, 1] = 1000.0
    logits.requires_grad_()
    log_q = logits.log_softmax(dim=-1)
    assert log_q.exp()[0, 0].min() == 0
    intra = intra_model_divergence(log_q)
    # the mean is half and half, each view gives the other's class exp(-1000)
    assert intra.item() == pytest.approx(500 - math.log(2), rel=1e-6)
    inter = inter_model_divergence(log_q[:1], log_q[1])
    assert inter.item() == pytest.approx(1000, rel=1e-6)
    for value in (intra, inter):
        (first,) = torch.autograd.grad(value, logits, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), logits, retain_graph=True)
        assert first.isfinite().all()
        assert second.isfinite().all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_log_mean(n):
    log_q = log_proba(n, 4, 5)
    np.testing.assert_allclose(log_mean(log_q), np.log(log_q.exp().numpy().mean(axis=0)))
    far = log_q.float() - 1000
    torch.testing.assert_close(log_mean(far), (log_mean(log_q) - 1000).float())


# --- the objective ---------------------------------------------------------------------------

ATTACK = PGD(eps=0.15, n_steps=2)


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


WALKS = [
    {"eps": 0.06, "step_size": 0.06, "n_steps": 1, "eps_init": 8 / 255},
    {"eps": 0.3, "step_size": 0.2, "n_steps": 2, "eps_init": 0.1},
]


def seen_to_the_bit(step, walk):
    """The same from the estimator itself: random starts of attacks depend on every bit of it."""
    found = build(FASTENEnsembleClassifier, len(step.module), **walk)._perturbed(step)
    expected, *_ = fasten_views(step, common(step), {}, **walk)
    np.testing.assert_allclose(torch.stack(found).numpy(), np.array(expected), atol=1e-12)
    return [x.numpy() for x in found]


def naive_fasten(
    step, layers, memory, walk, *, clean=False, attack=None, attack_target="member", beta=2.0
):
    seen, *_ = fasten_views(step, layers, memory, **walk)
    views = [None, seen]
    expected = {"perturbed_cross_entropy": sum(cross_entropies(step, seen))}
    if clean:
        expected["clean_cross_entropy"] = sum(cross_entropies(step))
    if attack:
        x_adv = crafted(step, attack, attack_target, centres=seen_to_the_bit(step, walk))
        views.append(x_adv)
        expected["adversarial_cross_entropy"] = sum(cross_entropies(step, x_adv))
    # of (n_members, n_views, n_samples, n_classes)
    q = np.stack([probabilities(step, view) for view in views], axis=1)
    n, weight = len(q), step.sample_weight
    intra = sum(naive.intra_model_divergence(of_member, weight) for of_member in q)
    inter = sum(
        naive.inter_model_divergence(q[i], q[j], weight, 10.0) / (n - 1)
        for i in range(n)
        for j in range(n)
        if j != i
    )
    return {**expected, "intra_model": beta * intra, "inter_model": -0.05 * beta * inter}


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


@pytest.mark.parametrize("walk", WALKS, ids=str)
@pytest.mark.parametrize("epoch_seed", EPOCH_SEEDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [2, 3, 4])
def test_objective(n_members, weighted, epoch_seed, walk):
    """Perturbations are new at first, b's are kept; later ones are blended, a's goes into b's."""
    base = make_step(n_members, weighted=weighted, epoch_seed=epoch_seed)
    estimator = build(FASTENEnsembleClassifier, n_members, 12, beta=2.0, **walk)
    memory = {}
    batches = [[0, 1, 2, 3, 4], [7, 5, 6, 9, 8], [4, 2, 11, 6, 9], [4, 2, 11, 6, 9]]
    for seed, index in enumerate(batches):
        step = later(base, seed, index)
        expected = naive_fasten(step, common(step), memory, walk)
        check(estimator._objective(step), expected)
        step.commit()
    kept = estimator._memory[1].kept
    assert kept.isnan().all(dim=1).tolist() == [i == 10 for i in range(12)]
    for index, delta in memory.items():
        np.testing.assert_allclose(kept[index].numpy(), delta, atol=1e-12)
        assert np.abs(delta).max() <= walk["eps"] + 1e-12


def test_sees_what_others_made():
    """No maker sees its own; the others see either one, in some step each."""
    base, seen = make_step(4), set()
    for seed in range(40):
        step = later(base, seed)
        _, makers, (a, b) = fasten_views(step, ["first"] * 4, {}, **WALKS[1])
        assert makers[a] == b
        assert makers[b] == a
        assert a != b
        seen.update(enumerate(makers))
        estimator = build(FASTENEnsembleClassifier, 4, **WALKS[1], layers=["first"])
        found = estimator._perturbed(step)
        of_maker = {m: found[i] for i, m in enumerate(makers)}
        assert all(torch.equal(image, of_maker[m]) for image, m in zip(found, makers, strict=True))
        assert not torch.equal(of_maker[a], of_maker[b])
    assert seen == {(i, j) for i in range(4) for j in range(4) if i != j}


@pytest.mark.parametrize("target", ["member", "ensemble", None])
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize(("n_members", "weighted"), [(2, False), (3, True)])
def test_options(n_members, weighted, clean, target):
    """Adversarial examples are made around what a member sees, and are a third view."""
    step = make_step(n_members, weighted=weighted)
    params = {"attack": ATTACK, "attack_target": target} if target else {}
    expected = naive_fasten(step, common(step), {}, WALKS[0], clean=clean, **params)
    found = objective(FASTENEnsembleClassifier, step, beta=2.0, clean_cross_entropy=clean, **params)
    check(found, expected)


@pytest.mark.parametrize("n_members", [2, 3, 4])
def test_calibration(n_members):
    """Compares the adversarial views, which lie around x'', with the clean batch."""
    step = make_step(n_members, weighted=True)
    expected = naive_fasten(step, common(step), {}, WALKS[0], attack=ATTACK)
    x_adv = crafted(step, ATTACK, "member", centres=seen_to_the_bit(step, WALKS[0]))
    expected.update(naive_distances(step, x_adv, lam=0.5, mu=2.0))
    beside = {"attack": ATTACK, "calibration": CollaborativeCalibration(lam=0.5, mu=2.0)}
    check(objective(FASTENEnsembleClassifier, step, beta=2.0, **beside), expected)


@pytest.mark.parametrize("layers", [["first", "last", "last"], ["last", "first", "first"]])
def test_layers_of_each_member(layers):
    step = make_step(3)
    params = {"beta": 2.0, "layers": [[layer] for layer in layers], **WALKS[1]}
    found = objective(FASTENEnsembleClassifier, step, **params)
    check(found, naive_fasten(step, layers, {}, WALKS[1]))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_defaults(formulation):
    step = make_step(3)
    found = objective(FASTENEnsembleClassifier, step, formulation=formulation)
    check(found, naive_fasten(step, common(step), {}, WALKS[0], beta=3.0))
    assert FASTENEnsembleClassifier().attack_target == "member"


def test_inter_is_capped():
    """A sure member's divergence from its peers would be rewarded without end."""
    step = soften(make_step(3), 60)
    found = objective(FASTENEnsembleClassifier, step, beta=2.0, inter_gradient=True)
    seen, *_ = fasten_views(step, common(step), {}, **WALKS[0])
    # of (n_members, n_views, n_samples, n_classes)
    z = np.stack([logits(step, view) for view in (None, seen)], axis=1)
    log_q = torch.from_numpy(z).log_softmax(dim=-1)
    mean, own = log_q.exp().mean(dim=1), log_q.mean(dim=1)
    values = torch.stack(
        [
            (torch.xlogy(mean[j], mean[j]) - mean[j] * own[i]).sum(dim=-1)
            for i in range(3)
            for j in range(3)
            if j != i
        ]
    )
    assert 0 < (values > 10).sum() < values.numel()
    expected = -0.05 * 2.0 * values.clamp(max=10).sum().item() / 2 / B
    assert found["inter_model"].item() == pytest.approx(expected)


def reference_loss(member, i, step, seen, x_adv, *, clean, inter, calibrated):
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
def test_gradient(clean, inter, attack, calibrated):
    # exponents of zero: all disparity weights are 1
    plain = CollaborativeCalibration(0.5, 2.0, lam_exp=0.0, mu_exp=0.0)
    step = make_step(3, weighted=True)
    soften(step, 0.3)  # enough to reach no cap
    params = {"clean_cross_entropy": clean, "inter_gradient": inter, "attack": attack}
    params["calibration"] = plain if calibrated else None
    seen = seen_to_the_bit(step, WALKS[0])
    x_adv = crafted(step, attack, "member", centres=seen) if attack else None
    terms = objective(FASTENEnsembleClassifier, step, beta=2.0, **params)
    assert terms["inter_model"].requires_grad == inter
    for i, member in enumerate(step.module):
        own = reference_loss(
            member, i, step, seen, x_adv, clean=clean, inter=inter, calibrated=calibrated
        )
        check_gradients(loss_of(terms), own, member, 1e-8)


# --- the memory ------------------------------------------------------------------------------


def test_memory_lives_as_long_as_a_fit(digit_rows):
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


def test_memory_goes_by_sample(digit_rows, monkeypatch):
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
