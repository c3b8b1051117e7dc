"""Tiny models that the attack tests share."""

from __future__ import annotations

import torch
from torch import nn

from robust_ensembles import _registry
from robust_ensembles.attacks import BoundedAttack, CarliniWagnerL2
from robust_ensembles.modules import Ensemble

DUAL = {"linf": 1, "l2": 2, "l1": float("inf")}  # order of the norm that is dual to the attack's


# bounded attacks that are made of their parameters alone, in both common norms
BOUNDED = [
    attack.cls
    for attack in _registry.attacks().values()
    if attack.from_parameters and issubclass(attack.cls, BoundedAttack)
    if attack.cls is not CarliniWagnerL2  # which has its norm in its name
]


def count(cls, number):
    """The parameter that counts steps or queries of an attack, if it has one."""
    name = _registry.attacks()[cls.__name__].count
    return {} if name is None else {name: number}


def with_the_others(attacks, **params):
    """Some attacks, and 10 steps or queries of each bounded one that is not among them."""
    given = {type(attack) for attack in attacks.values()}
    others = [cls for cls in BOUNDED if cls not in given]
    return {**attacks, **{c.__name__: c(**count(c, 10), **params) for c in others}}


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def uniform(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)


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


def perturbation_norm(x_adv, x, norm):
    """Of each sample, in float64."""
    delta = (x_adv.double() - x.double()).flatten(1)
    return delta.norm(p={"linf": float("inf"), "l2": 2, "l1": 1}[norm], dim=1)
