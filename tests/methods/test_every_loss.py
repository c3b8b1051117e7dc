"""What all losses keep: weights mean repetition, members are alike, derivatives exist everywhere.

Gradient regularisers are differentiated twice: they must move parameters, and never blow up.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from naive_equations import random

from robust_ensembles.losses import (
    adp_regularizer,
    batch_mean,
    cldl_gradient_diversity,
    cldl_label_diversity,
    cosine,
    ensemble_log_proba,
    gal_regularizer,
    gpmr_regularizer,
    hierarchical_labels,
    inter_model_divergence,
    intra_model_divergence,
    log_mean,
    member_cross_entropy,
    nceen_regularizer,
    non_true_log_determinant,
    pair_cosines,
    safe_norm,
    soft_cross_entropy,
    soft_label_divergence,
    trs_similarity,
    trs_smoothness,
    weighted_distance,
)

N_MEMBERS, N_SAMPLES, N_FEATURES, N_HIDDEN, N_CLASSES = 3, 4, 4, 3, 5
Y = torch.tensor([0, 4, 2, 2])

ncen_cos = partial(nceen_regularizer, lambda_cos=1.0, lambda_norm=0.0)
ncen_norm = partial(nceen_regularizer, lambda_cos=0.0, lambda_norm=1.0)
gpmr_magnitude = partial(gpmr_regularizer, lambda_div=0.0, lambda_eq=10.0)
# of the members' input gradients
OF_GRADIENTS = {
    "cldl-paper": cldl_gradient_diversity,
    "cldl-released": partial(cldl_gradient_diversity, formulation="released"),
    "cldl-torch1": partial(cldl_gradient_diversity, cos_eps_mode="torch1"),
    "ncen-cos": ncen_cos,
    "ncen-norm": ncen_norm,
    "ncen-released-cos": partial(ncen_cos, formulation="released"),
    "ncen-released-norm": partial(ncen_norm, formulation="released"),
    "gal": gal_regularizer,
    "gal-torch1": partial(gal_regularizer, cos_eps_mode="torch1"),
    "gpmr-direction": partial(gpmr_regularizer, lambda_div=1.0, lambda_eq=0.0),
    "gpmr-magnitude": gpmr_magnitude,
    "gpmr-released-magnitude": partial(gpmr_magnitude, formulation="released"),
    "trs-similarity": trs_similarity,
    "trs-similarity-torch1": partial(trs_similarity, cos_eps_mode="torch1"),
    "trs-smoothness": trs_smoothness,
    "trs-smoothness-unsquared": partial(trs_smoothness, norm_power=1),
}


def labels(y, formulation):
    sizes = {"n_members": N_MEMBERS, "n_classes": N_CLASSES, "smoothing": 0.3}
    return hierarchical_labels(y, **sizes, formulation=formulation, dtype=torch.float64)


def lafed(z, y, formulation):
    return soft_cross_entropy(z, labels(y, formulation))


def adp(z, y, alpha, beta, weight=None):
    return adp_regularizer(z.softmax(-1), y, alpha=alpha, beta=beta, sample_weight=weight)


def cldl_labels(z, y, formulation, weight=None):
    return cldl_label_diversity(z.softmax(-1), y, formulation=formulation, sample_weight=weight)


def fasten_inter(z, y, weight=None, cap=None):
    log_q = z.log_softmax(-1)
    return inter_model_divergence(log_q[:2], log_mean(log_q[1:]), weight, cap=cap)


def cldl_divergence(z, y, formulation):
    s, log_p = z[0].softmax(-1), z[1].log_softmax(-1)
    return soft_label_divergence(s, log_p, formulation=formulation)


# of the members' logits
OF_LOGITS = {
    "cross_entropy": lambda z, y, w=None: member_cross_entropy(z, y, w),
    "adp-entropy": lambda z, y, w=None: adp(z, y, 2.0, 0.0, w),
    "adp-determinant": lambda z, y, w=None: adp(z, y, 0.0, 0.5, w),
    "cldl-labels-paper": lambda z, y, w=None: cldl_labels(z, y, "paper", w),
    "cldl-labels-released": lambda z, y, w=None: cldl_labels(z, y, "released", w),
    "fasten-intra": lambda z, y, w=None: intra_model_divergence(z.log_softmax(-1), w),
    "fasten-inter": lambda z, y, w=None: fasten_inter(z, y, w),
    "fasten-capped": lambda z, y, w=None: fasten_inter(z, y, w, cap=0.5),
    "ceat": lambda z, y, w=None: weighted_distance(1 + z[..., 0] ** 2, z[..., 1] ** 2, w),
}
# without weights of samples: values for each sample
OF_EACH_SAMPLE = {
    "ensemble": lambda z, y: ensemble_log_proba(z),
    "adp-volume": lambda z, y: non_true_log_determinant(z.softmax(-1), y),
    "lafed-paper": partial(lafed, formulation="paper"),
    "lafed-released": partial(lafed, formulation="released"),
}
DIVERGENCES = {f: partial(cldl_divergence, formulation=f) for f in ("paper", "released")}

every_regularizer = pytest.mark.parametrize("name", OF_GRADIENTS)
LOGITS, G = random(N_MEMBERS, N_SAMPLES, N_CLASSES), random(N_MEMBERS, N_SAMPLES, 6, seed=1)

# --- weights of samples --------------------------------------------------------------------


def gpmr_magnitude_of_samples(rows, weight):
    """Its gradients and its scale carry 1 / n_samples by definition, taken out here."""
    n = len(rows)
    return gpmr_regularizer(G[:, rows] / n, lambda_div=0.0, lambda_eq=n, sample_weight=weight)


WEIGHTED = {
    "batch_mean": lambda rows, w: batch_mean(G[0, rows, 0], w),
    **{
        name: lambda rows, w, loss=loss: loss(G[:, rows], sample_weight=w)
        for name, loss in OF_GRADIENTS.items()
        if name != "gpmr-released-magnitude"  # one length over the whole batch
    },
    "gpmr-magnitude": gpmr_magnitude_of_samples,
    **{
        name: lambda rows, w, loss=loss: loss(LOGITS[:, rows], Y[rows], w)
        for name, loss in OF_LOGITS.items()
    },
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_repeat(name):
    """None is all ones; integers, normalised to mean 1 as a training set's, repeat samples."""
    rows, counts = torch.arange(N_SAMPLES), torch.tensor([2, 0, 1, 3])
    ones = torch.ones(N_SAMPLES, dtype=torch.float64)
    torch.testing.assert_close(WEIGHTED[name](rows, ones), WEIGHTED[name](rows, None))
    weight = counts.double() * N_SAMPLES / counts.sum()
    repeated = WEIGHTED[name](rows.repeat_interleave(counts), None)
    found = WEIGHTED[name](rows, weight)
    torch.testing.assert_close(found, repeated, rtol=1e-12, atol=1e-12)


# --- members -------------------------------------------------------------------------------

ORDERLY = ("fasten-inter", "fasten-capped", "cross_entropy", "lafed")
SYMMETRIC = {
    **{name: (loss, G) for name, loss in OF_GRADIENTS.items()},
    **{
        name: (lambda z, loss=loss: loss(z, Y), LOGITS)
        for name, loss in {**OF_LOGITS, **OF_EACH_SAMPLE}.items()
        if not name.startswith(ORDERLY)
    },
}


@pytest.mark.parametrize("name", SYMMETRIC)
def test_members_are_interchangeable(name):
    loss, x = SYMMETRIC[name]
    torch.testing.assert_close(loss(x[[2, 0, 1]]), loss(x))


@every_regularizer
def test_single_member_has_nothing_to_compare(name):
    if not name.startswith(("trs-smoothness", "gpmr-released")):
        assert OF_GRADIENTS[name](G[:1]) == 0


# --- derivatives ---------------------------------------------------------------------------


def tiny_networks():
    first = random(N_MEMBERS, N_FEATURES, N_HIDDEN).requires_grad_()
    second = random(N_MEMBERS, N_HIDDEN, 3, seed=1).requires_grad_()
    return first, second


def input_gradients(first, second, y=(0, 2)):
    """Of every member's cross-entropy, as a training step takes them; y of "sure" is its guess."""
    x = random(2, N_FEATURES, seed=2).to(first.dtype).requires_grad_()
    logits = torch.stack([(x @ a).tanh() @ b for a, b in zip(first, second, strict=True)])
    y = logits[0].argmax(dim=1) if y == "sure" else torch.tensor(y)
    losses = [F.cross_entropy(z, y) for z in logits]
    return torch.stack([torch.autograd.grad(loss, x, create_graph=True)[0] for loss in losses])


@every_regularizer
def test_moves_the_parameters(name):
    """Of every member, and by the right amount."""
    parameters = tiny_networks()

    def loss(*parameters):
        return OF_GRADIENTS[name](input_gradients(*parameters))

    for gradient in torch.autograd.grad(loss(*parameters), parameters):
        assert (gradient.flatten(1).norm(dim=1) > 1e-3).all()
    assert torch.autograd.gradcheck(loss, parameters)


@every_regularizer
def test_second_derivatives(name):
    g = random(N_MEMBERS, 2, N_FEATURES, seed=3).requires_grad_()
    assert torch.autograd.gradgradcheck(OF_GRADIENTS[name], (g,))


@pytest.mark.parametrize("name", [*OF_LOGITS, *OF_EACH_SAMPLE])
def test_derivatives_in_the_logits(name):
    loss, logits = {**OF_LOGITS, **OF_EACH_SAMPLE}[name], LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, Y), (logits,))
    (gradient,) = torch.autograd.grad(loss(logits, Y).sum(), logits)
    assert (gradient.abs().sum(dim=(1, 2)) > 1e-3).all()  # every member or view learns


@pytest.mark.parametrize("formulation", DIVERGENCES)
def test_derivatives_of_the_soft_labels(formulation):
    logits = LOGITS.clone().requires_grad_()
    for checked in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert checked(lambda z: DIVERGENCES[formulation](z, Y), (logits,))


@every_regularizer
@pytest.mark.parametrize("zero", [slice(0, 1), slice(0, 2), slice(None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradients_of_saturated_members(name, zero, dtype):
    """A member with p_y = 1 in float32 has g = 0 exactly."""
    g = random(N_MEMBERS, 2, N_FEATURES).to(dtype)
    g[zero, 0] = 0.0
    g.requires_grad_()
    value = OF_GRADIENTS[name](g)
    (first,) = torch.autograd.grad(value, g, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), g)
    for tensor in (value, first, second):
        assert tensor.isfinite().all()


@every_regularizer
def test_saturated_network_gives_finite_parameter_gradients(name):
    """Weights that make one member sure of everything, in float32."""
    first, second = (parameter.detach().float() for parameter in tiny_networks())
    second[0] *= 1e4
    parameters = [first.requires_grad_(), second.requires_grad_()]
    g = input_gradients(*parameters, y="sure")
    assert torch.equal(g[0], torch.zeros_like(g[0]))
    for gradient in torch.autograd.grad(OF_GRADIENTS[name](g), parameters):
        assert gradient.isfinite().all()


def pair(a, b):
    return torch.stack([a, b])[:, None]


def test_geometry_has_derivatives_at_zero():
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    other = random(3)
    for function in (safe_norm, lambda v: cosine(v, other), lambda v: pair_cosines(pair(v, other))):
        value = function(zero).sum()
        (first,) = torch.autograd.grad(value, zero, create_graph=True)
        assert value.isfinite()
        assert first.isfinite().all()
        if first.requires_grad:
            assert torch.autograd.grad(first.sum(), zero)[0].isfinite().all()
