"""Tiny models that the attack tests share, and every attack in a few steps."""

from __future__ import annotations

import torch
from torch import nn

from robust_ensembles import _registry
from robust_ensembles.attacks import (
    APGD,
    FAB,
    FGSM,
    PGD,
    BoundedAttack,
    CarliniWagnerL2,
)
from robust_ensembles.modules import Ensemble

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}  # order of the norm that is dual to the attack's
ORDER = {"linf": float("inf"), "l2": 2, "l1": 1}
DECLARED = _registry.attacks()

# bounded attacks that are made of their parameters alone, in both common norms
BOUNDED = [
    attack.cls
    for attack in DECLARED.values()
    if attack.from_parameters and issubclass(attack.cls, BoundedAttack)
    if attack.cls is not CarliniWagnerL2  # which has its norm in its name
]


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def uniform(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


def pixels(n_samples, n_features, seed):
    """Eight-bit values in [0, 1], both ends included, as float32."""
    levels = (256 * uniform(n_samples, n_features, seed=seed)).floor()
    levels[0, 0], levels[-1, -1] = 0, 255
    return levels.float() / 255


def linear(weight, bias=None):
    """Logits ``x @ weight + bias``."""
    layer = nn.Linear(*weight.shape, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight.T)
        layer.bias.zero_() if bias is None else layer.bias.copy_(bias)
    return layer


def mlp(n_features, n_classes, *, seed=0, n_hidden=8, dtype=torch.float64):
    """Smooth, with weights of order one."""
    first = linear(random(n_features, n_hidden, seed=seed, dtype=dtype))
    second = linear(random(n_hidden, n_classes, seed=seed + 1, dtype=dtype))
    return nn.Sequential(first, nn.Tanh(), second)


def ensemble(n_features=6, n_classes=3, n_members=3, *, seed=0, dtype=torch.float64):
    members = [
        mlp(n_features, n_classes, seed=seed + 10 * i, dtype=dtype) for i in range(n_members)
    ]
    return Ensemble(members)


def labelled(module, n_samples=20, n_features=6, *, seed=5, dtype=torch.float64):
    """Points of the unit box with the classes that the module gives them."""
    x = uniform(n_samples, n_features, seed=seed, dtype=dtype)
    with torch.no_grad():
        return x, module(x).argmax(dim=1)


def partly_wrong(n_samples=40, step=7):
    """An ensemble, with points of which it is wrong on some from the start."""
    module = ensemble()
    x, y = labelled(module, n_samples)
    y[::step] = (y[::step] + 1) % 3
    return module, x, y


class Stepwise(nn.Module):
    """Two classes, by the first feature, without a gradient."""

    @torch.no_grad()
    def forward(self, x):
        return torch.stack([x[:, 0] > 0.5, x[:, 0] <= 0.5], dim=1).to(x.dtype)


def perturbation_norm(x_adv, x, norm):
    """Of each sample, in float64."""
    return (x_adv.double() - x.double()).flatten(1).norm(p=ORDER[norm], dim=1)


def assert_inside(x_adv, x, eps, norm, box=(0.0, 1.0)):
    """In the ball and in the box, without tolerance."""
    assert x_adv.dtype == x.dtype
    # in float64 the norm itself is rounded
    slack = 1e-14 if x.dtype == torch.float64 and norm != "linf" else 0.0
    assert perturbation_norm(x_adv, x, norm).max() <= eps * (1 + slack)
    if box is not None:
        assert x_adv.double().min() >= box[0]
        assert x_adv.double().max() <= box[1]


# a radius at which some points of `partly_wrong` are broken and some are not
EPS = {"linf": 0.2, "l2": 0.4, "l1": 0.6}
# what attacks need beside it and the number of steps
_OWN = {
    "UniformNoise": {"eps": 0.3},
    "CarliniWagnerL2": {"eps": 0.4, "n_steps": 15, "n_searches": 2, "lr": 0.1, "initial_const": 1},
    "AutoAttack": {"eps": 0.12},
    "EnsembleAutoAttack": {"eps": 0.12},
    "External": {"eps": 0.3, "function": lambda module, x, y: x + 0.3 * x.sin().sign()},
    "Transfer": {
        "surrogate": [ensemble(seed=1), ensemble(seed=2)],
        "attack": PGD(eps=0.3, n_steps=5),
    },
    "WorstCase": {"attacks": [FGSM(eps=0.15), PGD(eps=0.2, n_steps=5)]},
}


def quick(cls, number=10, **params):
    """A declared attack with few steps or queries."""
    declared = DECLARED[cls.__name__]
    few = {} if declared.count is None else {declared.count: number}
    eps = {"eps": EPS[params.get("norm", "linf")]} if issubclass(cls, BoundedAttack) else {}
    return cls(**{**eps, **few, **_OWN.get(cls.__name__, {}), **params})


ATTACKS = {
    **{name: quick(declared.cls) for name, declared in DECLARED.items()},
    **{f"{cls.__name__}-l2": quick(cls, norm="l2") for cls in BOUNDED},
    "Square-l2": quick(DECLARED["Square"].cls, 40, norm="l2", eps=0.45),
    "PGD-restarts": PGD(eps=0.15, n_steps=3, n_restarts=3),
    "APGD-restarts": quick(APGD, n_restarts=2, loss="dlr"),
    "APGD-l1": quick(APGD, 30, norm="l1"),
    "APGD-one-member": quick(APGD, eps=0.3, aggregation=1),
    "FAB-restarts": quick(FAB, n_restarts=2),
}
"""Each attack that is declared, in its norms, and ways to walk that its defaults do not show."""
