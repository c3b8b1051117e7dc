"""The papers' objectives in plain loops: one sample and one member at a time.

In float64, with members that have no BatchNorm: nothing couples the samples of a batch then.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from small_estimators import make
from torch import nn

from robust_ensembles import FASTENEnsembleClassifier
from robust_ensembles.modules import Ensemble, LabelConfusionModel
from robust_ensembles.training import Batch, PerturbationMemory, TrainingStep

B, D, C, HIDDEN = 5, 6, 4, 3
FORMULATIONS = ["paper", "released"]
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


def build(cls, n_members=3, n_samples=B, member=Member, **params):
    """An estimator as it is in the middle of training, without data."""
    estimator = make(cls, **params)
    estimator.input_shape_ = (D,)
    estimator._check_members([member().double() for _ in range(n_members)])
    if cls is FASTENEnsembleClassifier:
        estimator._memory = None, PerturbationMemory(n_samples)
    return estimator


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


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def gradient(f, x):
    """Central differences of fourth order: good to about 1e-11 here."""
    h, result = 1e-3, np.zeros_like(x)
    for i in range(len(x)):
        e = np.eye(len(x))[i] * h
        result[i] = (8 * (f(x + e) - f(x - e)) - (f(x + 2 * e) - f(x - 2 * e))) / (12 * h)
    return result


def samples(step):
    weight = np.ones(len(step.x)) if step.sample_weight is None else step.sample_weight.numpy()
    return list(zip(step.x.numpy(), step.y.tolist(), weight, strict=True))


def cross_entropy(z, y):
    return -math.log(softmax(z)[y])


def naive_cross_entropies(step, x_adv=None):
    """Of each member, averaged over the batch."""
    return [
        sum(
            w * cross_entropy(logits_of(m, x if x_adv is None else x_adv[i][b]), y)
            for b, (x, y, w) in enumerate(samples(step))
        )
        / len(step.x)
        for i, m in enumerate(step.module)
    ]


def loss_gradients(step, x=None):
    """Of each member's mean cross-entropy by each sample, (n_members, n_samples, n_features)."""
    n = len(step.x)
    rows = step.x.numpy() if x is None else x
    return np.array(
        [
            [
                gradient(lambda v, m=m, y=y: cross_entropy(logits_of(m, v), y) / n, row)
                for row, y in zip(rows, step.y.tolist(), strict=True)
            ]
            for m in step.module
        ]
    )


def pairs(n):
    return list(itertools.combinations(range(n), 2))


def cosine(a, b):
    return a @ b / max(np.linalg.norm(a), 1e-8) / max(np.linalg.norm(b), 1e-8)


# --- adversarial batches and CEAT's distances ----------------------------------------------


def crafted(step, attack, target, centres=None):
    """The batch that each member trains on, from the attack's own public entry."""
    if centres is not None:
        targets = step.module if target == "member" else [step.module] * len(step.module)
        return [
            attack.craft(m, torch.from_numpy(x), step.y, box=BOX, seed=step.seed).numpy()
            for m, x in zip(targets, centres, strict=True)
        ]
    if target == "ensemble":
        x_adv = attack.craft(step.module, step.x, step.y, box=BOX, seed=step.seed)
        return [x_adv.numpy()] * len(step.module)
    return [attack.craft(m, step.x, step.y, box=BOX, seed=step.seed).numpy() for m in step.module]


def naive_weight(h, m, tau, peers):
    """Of one sample; h are the members' probabilities of its class."""
    others = [h[j] for j in range(len(h)) if j != m]
    gaps = [abs(others[j] - others[k]) for j, k in pairs(len(others))]
    if not gaps:
        return 1.0
    return {
        "pair_sum": 1 + sum(math.exp(tau * gap) - 1 for gap in gaps),
        "pair_mean": sum(math.exp(tau * gap) for gap in gaps) / len(gaps),
        "range": math.exp(tau * max(gaps)),
        "exp_pair_mean": math.exp(tau * sum(gaps) / len(gaps)),
    }[peers]


def naive_distances(step, x_adv, *, lam, mu, **options):
    """CEAT's two terms, summed over the members."""
    lam_exp, mu_exp = options.get("lam_exp", lam), options.get("mu_exp", mu)
    members = list(step.module)
    divisor = C if options.get("distance_reduce") == "mean" else 1
    output = (lambda z: z) if options.get("distance_on") == "logits" else softmax
    natural, adversarial = np.zeros((2, len(members), B)), np.zeros((2, len(members), B))
    for b, (x, y, _) in enumerate(samples(step)):
        z = [logits_of(m, x) for m in members]
        z_adv = [logits_of(m, x_adv[i][b]) for i, m in enumerate(members)]
        for m in range(len(members)):
            peers = options.get("peers", "pair_sum")
            natural[0, m, b] = naive_weight([softmax(v)[y] for v in z], m, lam_exp, peers)
            adversarial[0, m, b] = naive_weight([softmax(v)[y] for v in z_adv], m, mu_exp, peers)
            natural[1, m, b] = np.sum((output(z[m]) - np.eye(C)[y]) ** 2) / divisor
            adversarial[1, m, b] = np.sum((output(z_adv[m]) - output(z[m])) ** 2) / divisor
    sample_weight = np.array([w for *_, w in samples(step)])

    def total(weights, distances):
        if options.get("normalize_weights"):
            weights = weights / weights.mean(axis=1, keepdims=True)
        return (weights * distances * sample_weight).mean(axis=1).sum()

    return {
        "natural_distance": lam * total(*natural),
        "adversarial_distance": mu * total(*adversarial),
    }


# --- soft labels ---------------------------------------------------------------------------


def naive_confusion(lcm, v):
    state = {name: tensor.numpy() for name, tensor in lcm.state_dict().items()}
    vectors = np.tanh(state["labels.weight"] @ state["project.weight"].T + state["project.bias"])
    return softmax(state["confuse.weight"] @ (vectors @ v) + state["confuse.bias"])


def naive_soft_label(step, member, x, y, gamma):
    """The soft label s, and the confusion vector c."""
    c = naive_confusion(step.auxiliary, embed(member, x))
    return softmax(gamma * np.eye(C)[y] + c), c


def naive_divergence(step, member, x, y, *, gamma, released):
    """KL(s || p)."""
    offset = 1e-6 if released else 0.0
    s, p = naive_soft_label(step, member, x, y, gamma)[0], softmax(logits_of(member, x))
    return float(np.sum(s * (np.log(s + offset) - np.log(p + offset))))


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
