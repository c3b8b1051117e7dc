"""Gradient regularisers are differentiated twice: they must move parameters, and never blow up."""

import pytest
import torch
import torch.nn.functional as F

from robust_ensembles.losses import (
    adp_regularizer,
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
    nceen_regularizer,
    non_true_log_determinant,
    pair_cosines,
    safe_norm,
    soft_cross_entropy,
    soft_label_divergence,
    trs_similarity,
    trs_smoothness,
)

REGULARIZERS = {
    "cldl-paper": lambda g: cldl_gradient_diversity(g),
    "cldl-released": lambda g: cldl_gradient_diversity(g, formulation="released"),
    "cldl-torch1": lambda g: cldl_gradient_diversity(g, cos_eps_mode="torch1"),
    "ncen-cos": lambda g: nceen_regularizer(g, lambda_cos=1.0, lambda_norm=0.0),
    "ncen-norm": lambda g: nceen_regularizer(g, lambda_cos=0.0, lambda_norm=1.0),
    "ncen-released-cos": lambda g: nceen_regularizer(
        g, lambda_cos=1.0, lambda_norm=0.0, formulation="released"
    ),
    "ncen-released-norm": lambda g: nceen_regularizer(
        g, lambda_cos=0.0, lambda_norm=1.0, formulation="released"
    ),
    "gal": lambda g: gal_regularizer(g),
    "gal-torch1": lambda g: gal_regularizer(g, cos_eps_mode="torch1"),
    "gpmr-direction": lambda g: gpmr_regularizer(g, lambda_div=1.0, lambda_eq=0.0),
    "gpmr-magnitude": lambda g: gpmr_regularizer(g, lambda_div=0.0, lambda_eq=10.0),
    "gpmr-released-magnitude": lambda g: gpmr_regularizer(
        g, lambda_div=0.0, lambda_eq=10.0, formulation="released"
    ),
    "trs-similarity": lambda g: trs_similarity(g),
    "trs-similarity-torch1": lambda g: trs_similarity(g, cos_eps_mode="torch1"),
    "trs-smoothness": lambda g: trs_smoothness(g),
    "trs-smoothness-unsquared": lambda g: trs_smoothness(g, norm_power=1),
}
N_MEMBERS, N_SAMPLES, N_FEATURES, N_HIDDEN, N_CLASSES = 3, 2, 4, 3, 3

every_regularizer = pytest.mark.parametrize("name", REGULARIZERS)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def tiny_networks():
    first = random(N_MEMBERS, N_FEATURES, N_HIDDEN).requires_grad_()
    second = random(N_MEMBERS, N_HIDDEN, N_CLASSES, seed=1).requires_grad_()
    return first, second


def input_gradients(first, second):
    """Of every member's cross-entropy, as a training step takes them."""
    x = random(N_SAMPLES, N_FEATURES, seed=2).requires_grad_()
    y = torch.tensor([0, 2])
    losses = [F.cross_entropy((x @ a).tanh() @ b, y) for a, b in zip(first, second, strict=True)]
    return torch.stack([torch.autograd.grad(loss, x, create_graph=True)[0] for loss in losses])


@every_regularizer
def test_moves_the_parameters(name):
    parameters = tiny_networks()
    loss = REGULARIZERS[name](input_gradients(*parameters))
    for gradient in torch.autograd.grad(loss, parameters):
        assert (gradient.flatten(1).norm(dim=1) > 1e-3).all()  # of every member


@every_regularizer
def test_parameter_gradient_is_right(name):
    def loss(*parameters):
        return REGULARIZERS[name](input_gradients(*parameters))

    assert torch.autograd.gradcheck(loss, tiny_networks())


@every_regularizer
def test_derivatives_in_g(name):
    g = random(N_MEMBERS, N_SAMPLES, N_FEATURES, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(REGULARIZERS[name], (g,))
    assert torch.autograd.gradgradcheck(REGULARIZERS[name], (g,))


def test_derivatives_of_the_label_terms():
    logits = random(3, 4, 3).requires_grad_()
    y = torch.tensor([0, 2, 1, 1])
    assert torch.autograd.gradcheck(ensemble_log_proba, (logits,))
    for formulation in ("paper", "released"):

        def diversity(z, formulation=formulation):
            return cldl_label_diversity(z.softmax(dim=-1), y, formulation=formulation)

        def divergence(z, formulation=formulation):
            s, log_p = z[0].softmax(dim=-1), z[1].log_softmax(dim=-1)
            return soft_label_divergence(s, log_p, formulation=formulation)

        assert torch.autograd.gradcheck(diversity, (logits,))
        assert torch.autograd.gradcheck(divergence, (logits,))
        assert torch.autograd.gradgradcheck(divergence, (logits,))


Y = torch.tensor([0, 2])


def first_view_and_peer(logits):
    log_q = logits.log_softmax(dim=-1)
    return inter_model_divergence(log_q[:2], log_mean(log_q[1:]))


PREDICTION_TERMS = {
    "adp": lambda z: adp_regularizer(z.softmax(dim=-1), Y, alpha=2.0, beta=0.5),
    "adp-volume": lambda z: non_true_log_determinant(z.softmax(dim=-1), Y),
    "fasten-intra": lambda z: intra_model_divergence(z.log_softmax(dim=-1)),
    "fasten-inter": first_view_and_peer,
    "lafed-paper": lambda z: soft_cross_entropy(z, lafed_labels("paper")),
    "lafed-released": lambda z: soft_cross_entropy(z, lafed_labels("released")),
}


def lafed_labels(formulation):
    return hierarchical_labels(
        Y, n_members=3, n_classes=5, smoothing=0.3, formulation=formulation, dtype=torch.float64
    )


@pytest.mark.parametrize("name", PREDICTION_TERMS)
def test_derivatives_of_the_prediction_terms(name):
    logits = random(3, 2, 5).requires_grad_()
    assert torch.autograd.gradcheck(PREDICTION_TERMS[name], (logits,))
    (gradient,) = torch.autograd.grad(PREDICTION_TERMS[name](logits).sum(), logits)
    assert (gradient.abs().sum(dim=(1, 2)) > 1e-3).all()  # every member or view learns


@every_regularizer
@pytest.mark.parametrize("zero", [slice(0, 1), slice(0, 2), slice(None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_gradients_of_saturated_members(name, zero, dtype):
    """A member with p_y = 1 in float32 has g = 0 exactly."""
    g = random(N_MEMBERS, N_SAMPLES, N_FEATURES).to(dtype)
    g[zero, 0] = 0.0
    g.requires_grad_()
    value = REGULARIZERS[name](g)
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
    x = random(N_SAMPLES, N_FEATURES, seed=2).float().requires_grad_()
    logits = torch.stack([(x @ a).tanh() @ b for a, b in zip(*parameters, strict=True)])
    y = logits[0].argmax(dim=1)
    losses = [F.cross_entropy(member, y) for member in logits]
    g = torch.stack([torch.autograd.grad(loss, x, create_graph=True)[0] for loss in losses])
    assert torch.equal(g[0], torch.zeros_like(g[0]))
    for gradient in torch.autograd.grad(REGULARIZERS[name](g), parameters):
        assert gradient.isfinite().all()


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


def pair(a, b):
    return torch.stack([a, b])[:, None]
