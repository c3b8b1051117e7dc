"""Training steps to compare whole objectives on, taken one sample and one member at a time.

In float64, with members that have no BatchNorm: nothing couples the samples of a batch then.
"""

import numpy as np
import pytest
import torch
from naive_equations import batch_mean, cldl_divergence, disparity_weights, softmax
from small_estimators import make
from torch import nn
from torch.nn.functional import one_hot

from robust_ensembles import FASTENEnsembleClassifier
from robust_ensembles.modules import Ensemble, LabelConfusionModel
from robust_ensembles.training import Batch, PerturbationMemory, TrainingStep

B, D, C, HIDDEN = 5, 6, 4, 3
BOX = (0.0, 1.0)


class Member(nn.Module):
    """Smooth, so that second derivatives are not zero."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(D, HIDDEN), nn.Linear(HIDDEN, C)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def make_step(n_members=3, *, weighted=False, auxiliary=False, seed=0, **fields):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Ensemble([Member() for _ in range(n_members)]).double()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=1.5)
        lcm = LabelConfusionModel(C, HIDDEN).double() if auxiliary else None
        for parameter in lcm.parameters() if lcm else ():
            nn.init.normal_(parameter)
        x = torch.rand(B, D, dtype=torch.float64)
        x_target = torch.rand(B, D, dtype=torch.float64)
        weight = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0]).double() if weighted else None
    y = torch.tensor([0, 1, 2, 3, 1])
    batch = Batch(x, y, weight, torch.arange(B), x_target)
    return TrainingStep(module, lcm, batch, BOX, **{"seed": 7, **fields})


def shorten(step):
    """Members with input gradients of about 1e-6, where the two kinds of cosine differ."""
    with torch.no_grad():
        for member in step.module:
            member.first.weight.mul_(1e-5)
    return step


def soften(step, factor):
    """Members that are less sure, or surer if the factor is large."""
    with torch.no_grad():
        for member in step.module:
            member.last.weight.mul_(factor)
    return step


def build(cls, n_members=3, n_samples=B, member=Member, **params):
    """An estimator as it is in the middle of training, without data."""
    estimator = make(cls, **params)
    estimator.input_shape_ = (D,)
    estimator._check_members([member().double() for _ in range(n_members)])
    if cls is FASTENEnsembleClassifier:
        estimator._memory = None, PerturbationMemory(n_samples)
    return estimator


def objective(cls, step, **params):
    return build(cls, len(step.module), **params)._objective(step)


# --- one member, one sample ----------------------------------------------------------------


def member_arrays(member):
    names = ("first.weight", "first.bias", "last.weight", "last.bias")
    return [member.state_dict()[name].numpy() for name in names]


def embed(member, x):
    weight, bias, *_ = member_arrays(member)
    return np.tanh(weight @ x + bias)


def logits_of(member, x):
    *_, weight, bias = member_arrays(member)
    return weight @ embed(member, x) + bias


def cross_entropy(z, y):
    return -np.log(softmax(z)[y])


def gradient(f, x):
    """Central differences of fourth order: good to about 1e-11 here."""
    h, result = 1e-3, np.zeros_like(x)
    for i in range(len(x)):
        e = np.eye(len(x))[i] * h
        result[i] = (8 * (f(x + e) - f(x - e)) - (f(x + 2 * e) - f(x - 2 * e))) / (12 * h)
    return result


# --- all members, all samples: arrays of (n_members, n_samples, ...) ------------------------


def samples(step):
    weight = np.ones(len(step.x)) if step.sample_weight is None else step.sample_weight.numpy()
    return list(zip(step.x.numpy(), step.y.tolist(), weight, strict=True))


def inputs_of(step, inputs=None):
    """Each member's batch: the clean one, one for all, or one for each."""
    inputs = step.x.numpy() if inputs is None else np.asarray(inputs)
    return [inputs] * len(step.module) if inputs.ndim == 2 else inputs


def logits(step, inputs=None):
    rows = zip(step.module, inputs_of(step, inputs), strict=True)
    return np.array([[logits_of(m, x) for x in batch] for m, batch in rows])


def probabilities(step, inputs=None):
    return np.apply_along_axis(softmax, -1, logits(step, inputs))


def cross_entropies(step, inputs=None):
    """Of each member, averaged over the batch."""
    return [
        batch_mean([cross_entropy(*row) for row in zip(z, step.y, strict=True)], step.sample_weight)
        for z in logits(step, inputs)
    ]


def gradients_of(step, loss, inputs=None):
    """Of ``loss(member, x, y)`` by each sample, averaged over the batch."""
    return np.array(
        [
            [
                gradient(lambda v, m=m, y=y: loss(m, v, y) / len(step.x), x)
                for x, y in zip(batch, step.y.tolist(), strict=True)
            ]
            for m, batch in zip(step.module, inputs_of(step, inputs), strict=True)
        ]
    )


def loss_gradients(step, inputs=None):
    return gradients_of(step, lambda m, x, y: cross_entropy(logits_of(m, x), y), inputs)


# --- adversarial batches and CEAT's distances ----------------------------------------------


def crafted(step, attack, target, centres=None):
    """The batch that each member trains on, from the attack's own public entry."""
    targets = step.module if target == "member" else [step.module] * len(step.module)
    centres = [step.x] * len(targets) if centres is None else map(torch.from_numpy, centres)
    return [
        attack.craft(m, x, step.y, box=BOX, seed=step.seed).numpy()
        for m, x in zip(targets, centres, strict=True)
    ]


def naive_distances(step, x_adv, *, lam, mu, **options):
    """CEAT's two terms, summed over the members."""
    exponents = options.get("lam_exp", lam), options.get("mu_exp", mu)
    output = logits if options.get("distance_on") == "logits" else probabilities
    clean, adversarial = output(step), output(step, x_adv)
    sides = {
        "natural_distance": (lam, None, clean, one_hot(step.y, C).numpy()),
        "adversarial_distance": (mu, x_adv, adversarial, clean),
    }
    found = {}
    for (name, (factor, inputs, a, b)), tau in zip(sides.items(), exponents, strict=True):
        h = probabilities(step, inputs)[:, range(len(step.x)), step.y]
        weights = disparity_weights(h, tau, options.get("peers", "pair_sum"))
        if options.get("normalize_weights"):
            weights = weights / weights.mean(axis=1, keepdims=True)
        reduce = np.mean if options.get("distance_reduce") == "mean" else np.sum
        distances = weights * reduce((a - b) ** 2, axis=-1)
        found[name] = factor * sum(batch_mean(row, step.sample_weight) for row in distances)
    return found


# --- soft labels ---------------------------------------------------------------------------


def naive_confusion(lcm, v):
    state = {name: tensor.numpy() for name, tensor in lcm.state_dict().items()}
    vectors = np.tanh(state["labels.weight"] @ state["project.weight"].T + state["project.bias"])
    return softmax(state["confuse.weight"] @ (vectors @ v) + state["confuse.bias"])


def naive_soft_label(step, member, x, y, gamma):
    """The soft label s, and the confusion vector c."""
    c = naive_confusion(step.auxiliary, embed(member, x))
    return softmax(gamma * np.eye(C)[y] + c), c


def naive_divergence(step, member, x, y, *, gamma, formulation):
    """KL(s || p)."""
    s, _ = naive_soft_label(step, member, x, y, gamma)
    log_p = np.log(softmax(logits_of(member, x)))
    (value,) = cldl_divergence(s[None], log_p[None], formulation)
    return value


# --- comparing -----------------------------------------------------------------------------


def check(found, expected, tolerance=1e-9):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].ndim == 0
        assert found[name].item() == pytest.approx(value, rel=tolerance, abs=tolerance), name
    total = torch.stack(list(found.values())).sum().item()
    assert total == pytest.approx(sum(expected.values()), rel=tolerance, abs=tolerance)


def loss_of(terms):
    return torch.stack(list(terms.values())).sum()


def parameter_gradients(term, module):
    parameters = list(module.parameters())
    return torch.autograd.grad(term, parameters, allow_unused=True, retain_graph=True)


def check_gradients(found, expected, member, rtol=1e-9):
    pairs = zip(*(parameter_gradients(loss, member) for loss in (found, expected)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-10)


def check_backward(objective, step, tolerance=1e-5, *, skip=()):
    """The gradient of each term by each member is the slope of its value, seen from outside.

    A detached part, or a missing create_graph, changes the gradient but not the value.
    """
    terms = objective(step)
    slopes = [
        {n: parameter_gradients(term, member) for n, term in terms.items() if n not in skip}
        for member in step.module
    ]
    draw, h = torch.Generator().manual_seed(0), 1e-5
    for index, member in enumerate(step.module):
        parameters = list(member.parameters())
        direction = [torch.randn(p.shape, generator=draw).double() for p in parameters]

        def after(distance, parameters=parameters, direction=direction):
            with torch.no_grad():
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(distance * d)
            return {name: term.item() for name, term in objective(step).items()}

        ahead, behind = after(h), after(-2 * h)
        after(h)
        for name, gradients in slopes[index].items():
            found = sum(
                float((g * d).sum())
                for g, d in zip(gradients, direction, strict=True)
                if g is not None
            )
            expected = (ahead[name] - behind[name]) / (2 * h)
            assert found == pytest.approx(expected, rel=tolerance, abs=1e-7), (name, index)


def name_of(value):
    """Of a parameter of a test: classes are shown by their names."""
    return getattr(value, "__name__", None) or str(value)
