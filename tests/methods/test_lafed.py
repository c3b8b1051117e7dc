"""LAFED: its smoothed labels, the cross-entropy with them, and its whole objective."""

from dataclasses import replace

import naive_equations as naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from feature_steps import (
    EPOCH_SEEDS,
    WALKS,
    common,
    drawn_layer,
    feature,
    naive_distilled,
)
from naive_equations import FORMULATIONS, MEMBERS, random
from naive_steps import (
    B,
    C,
    check,
    check_gradients,
    loss_of,
    make_step,
    member_arrays,
    objective,
)

from robust_ensembles import LAFEDEnsembleClassifier
from robust_ensembles.losses import hierarchical_labels, soft_cross_entropy
from robust_ensembles.training import derive_seed

LABELS = torch.tensor([0, 3, 1, 1])


def labels(n_members=3, smoothing=0.05, n_classes=4, **params):
    return hierarchical_labels(
        LABELS, n_members=n_members, n_classes=n_classes, smoothing=smoothing, **params
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("formulation", FORMULATIONS)
@pytest.mark.parametrize("n_members", MEMBERS)
def test_labels(n_members, formulation, smoothing):
    found = labels(n_members, smoothing, formulation=formulation, dtype=torch.float64)
    expected = naive.hierarchical_labels(LABELS, n_members, 4, smoothing, formulation)
    np.testing.assert_allclose(found, expected, atol=1e-15)
    assert torch.equal(found.argmax(dim=-1), LABELS.expand(n_members, 4))


@pytest.mark.parametrize("n_classes", [4, 10])
@pytest.mark.parametrize("n_members", MEMBERS)
def test_labels_sum_to_one(n_members, n_classes):
    found = labels(n_members, 0.3, n_classes, dtype=torch.float64).sum(dim=-1)
    torch.testing.assert_close(found, torch.ones_like(found), atol=1e-14, rtol=0)


@pytest.mark.parametrize("n_classes", [4, 10])
def test_released_labels_sum_to_one_for_the_second_member_only(n_classes):
    found = labels(3, 0.05, n_classes, formulation="released", dtype=torch.float64).sum(dim=-1)
    for member, expected in zip(found, [0.95, 1.0, 1.05], strict=True):
        np.testing.assert_allclose(member, expected, atol=1e-12)


def test_smoothing_grows_with_the_member():
    found = labels(4, 0.3)
    assert torch.equal(found[0], F.one_hot(LABELS, 4).float())
    given_away = 1 - found.max(dim=-1).values
    np.testing.assert_allclose(given_away[:, 0], [0, 0.1, 0.2, 0.3], atol=1e-7)


def test_dtype_and_a_single_member():
    assert labels().dtype == torch.float32
    assert labels(dtype=torch.float64).dtype == torch.float64
    assert torch.equal(labels(1, 0.3), F.one_hot(LABELS, 4).float()[None])


@pytest.mark.parametrize("n_members", MEMBERS)
def test_soft_cross_entropy(n_members):
    logits, targets = random(n_members, 4, 4), random(n_members, 4, 4, seed=1).softmax(dim=-1)
    found = soft_cross_entropy(logits, targets)
    for row, z, t in zip(found, logits.numpy(), targets.numpy(), strict=True):
        np.testing.assert_allclose(row, naive.soft_cross_entropy(z, t), atol=1e-12)


def test_soft_cross_entropy_is_torchs():
    logits, targets = random(5, 4), random(5, 4, seed=1).softmax(dim=-1)
    expected = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(soft_cross_entropy(logits, targets), expected)
    hard = soft_cross_entropy(logits[:4], F.one_hot(LABELS, 4))
    torch.testing.assert_close(hard, F.cross_entropy(logits[:4], LABELS, reduction="none"))


def test_soft_cross_entropy_does_not_normalize_labels():
    """The released labels sum to 1.05 for the last member."""
    logits, targets = random(4, 4), random(4, 4, seed=1).softmax(dim=-1)
    torch.testing.assert_close(
        soft_cross_entropy(logits, 1.05 * targets), 1.05 * soft_cross_entropy(logits, targets)
    )


def test_soft_cross_entropy_of_certain_members():
    logits = torch.tensor([[1000.0, 0.0, 0.0, 0.0]] * 4, requires_grad=True)
    value = soft_cross_entropy(logits, labels()[2])
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert value[1] > 900


# --- the objective ---------------------------------------------------------------------------


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


def rest_of(member, layer, images, i, donor, b):
    """Mean features of the images that come from neither the member nor its donor."""
    rest = [images[j, b] for j in range(len(images)) if j not in (i, donor)]
    return sum(feature(member, layer, x) for x in rest) / len(rest)


def naive_lafed(step, layers, images, *, smoothing, formulation):
    donors, shares = lafed_draws(step)
    labels = naive.hierarchical_labels(step.y, len(step.module), C, smoothing, formulation)
    total = 0.0
    for i, (member, donor) in enumerate(zip(step.module, donors, strict=True)):
        _, _, last, bias = member_arrays(member)
        z = []
        for b in range(B):
            h = feature(member, layers[i], images[donor, b])
            if formulation == "paper":
                A = shares[i][b]
                h = A * h + (1 - A) * rest_of(member, layers[i], images, i, donor, b)
            z.append(last @ np.tanh(h) + bias if layers[i] == "first" else h)
        total += naive.batch_mean(naive.soft_cross_entropy(z, labels[i]), step.sample_weight)
    return {"smoothed_cross_entropy": total}


def lafed(step, formulation, layers=None, *, walk=WALKS[1], **params):
    """What is found, and what is expected."""
    if layers is not None:
        params["layers"] = [[layer] for layer in layers]
    found = objective(LAFEDEnsembleClassifier, step, formulation=formulation, **walk, **params)
    layers = layers or common(step)
    images = naive_distilled(step, layers, **walk)
    smoothing = params.get("smoothing", 0.05)
    return found, naive_lafed(step, layers, images, smoothing=smoothing, formulation=formulation)


@pytest.mark.parametrize("seed", [7, 8])
@pytest.mark.parametrize("epoch_seed", EPOCH_SEEDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_members", [3, 4])
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_objective(formulation, n_members, weighted, epoch_seed, seed):
    step = replace(make_step(n_members, weighted=weighted, epoch_seed=epoch_seed), seed=seed)
    check(*lafed(step, formulation, smoothing=0.2))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_layers_of_each_member(formulation):
    """The donor's image comes from the donor's layer, and is mixed at one's own."""
    check(*lafed(make_step(4), formulation, ["first", "last", "last", "first"]))


@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_defaults(formulation):
    """As DVERGE, and s = 0.05."""
    step = make_step(3)
    found = objective(LAFEDEnsembleClassifier, step, formulation=formulation)
    check(found, lafed(step, formulation, walk=WALKS[0])[1])


@pytest.mark.parametrize("epoch_seed", EPOCH_SEEDS)
@pytest.mark.parametrize("formulation", FORMULATIONS)
def test_gradient(formulation, epoch_seed):
    """Of what each member makes of its donor's image; what is mixed in is a constant."""
    step = make_step(4, weighted=True, epoch_seed=epoch_seed)
    layer = drawn_layer(step)
    images = naive_distilled(step, [layer] * 4, **WALKS[1])
    found, _ = lafed(step, formulation)
    donors, shares = lafed_draws(step)
    labels = torch.from_numpy(naive.hierarchical_labels(step.y, 4, C, 0.05, formulation))
    for i, (member, donor) in enumerate(zip(step.module, donors, strict=True)):
        x = torch.from_numpy(images[donor])
        A = torch.from_numpy(shares[i] if formulation == "paper" else np.ones(B))[:, None]
        rest = [rest_of(member, layer, images, i, donor, b) for b in range(B)]
        rest = torch.from_numpy(np.array(rest))
        h = member.first(x)
        h = A * h + (1 - A) * rest if layer == "first" else h
        z = member.last(torch.tanh(h))
        z = A * z + (1 - A) * rest if layer == "last" else z
        own = -(step.sample_weight * (labels[i] * z.log_softmax(-1)).sum(-1)).mean()
        check_gradients(loss_of(found), own, member)
