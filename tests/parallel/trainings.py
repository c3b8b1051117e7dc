"""Trainings that one process and several can run; their results are plain."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from robust_ensembles import (
    AdversarialEnsembleClassifier,
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    NCEnEnsembleClassifier,
    TRSEnsembleClassifier,
    VanillaEnsembleClassifier,
    _registry,
)
from robust_ensembles.attacks import PGD
from robust_ensembles.datasets import load_digits_images

NAMED = [
    VanillaEnsembleClassifier,
    CEATEnsembleClassifier,
    CLDLEnsembleClassifier,
    NCEnEnsembleClassifier,
]
OTHERS = [m.cls for m in _registry.methods().values() if m.cls not in NAMED]
ADVERSARIAL = [AdversarialEnsembleClassifier, CEATEnsembleClassifier]


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, momentum=None)

    def forward(self, x):
        inner = self.bn1(self.conv1(x)).relu()
        return (x + self.bn2(self.conv2(inner))).relu()


def residual(n_classes, dtype=torch.float64):
    """Convolutions, batch normalisations of several kinds, and a view that no empty batch takes."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        Block(4),
        Flat(),
        nn.Linear(36, 8, bias=False),
        nn.BatchNorm1d(8, affine=False, track_running_stats=False),
        nn.ReLU(),
        nn.Linear(8, n_classes),
    ).to(dtype)


class Flat(nn.Module):
    def forward(self, x):
        return x.reshape(len(x), -1)


def perceptron(n_classes, dtype=torch.float64):
    return nn.Sequential(Flat(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, n_classes)).to(dtype)


def digits(n_samples):
    X, y = load_digits_images()
    return X[:n_samples], y[:n_samples]


def make(cls, module=residual, **params):
    """Small, and with the attack that a method needs."""
    settings = {
        "max_epochs": 5,
        "batch_size": 32,
        "lr": 0.05,
        "optimizer": "sgd",
        "optimizer_params": {"momentum": 0.9},
        "device": "cpu",
        "random_state": 0,
    }
    if cls in ADVERSARIAL:
        settings["attack"] = PGD(eps=0.1, n_steps=3)
    if cls is TRSEnsembleClassifier:
        settings["coeff"] = 0.5
    return cls(module, **{**settings, **params})


def outcome(estimator):
    """Weights, buffers and what the method trains beside, and the history without its times."""
    net = estimator.net_
    modules = [getattr(net, f"{name}_") for name in net._modules]
    state = [tensor.numpy() for module in modules for tensor in module.state_dict().values()]
    rows = [
        {name: value for name, value in row.items() if name not in ("batches", "dur")}
        for row in estimator.history_
    ]
    batches = [batch for row in estimator.history_ for batch in row["batches"]]
    steps = [batch["train_loss"] for batch in batches if "train_loss" in batch]
    return {"state": state, "history": rows, "steps": steps}


def train(cls, module=residual, n_samples=111, **params):
    """The outcome of a fit on digits; 111 make three batches of 32 and one of 15."""
    return outcome(make(cls, module, **params).fit(*digits(n_samples)))


def train_all(jobs):
    """The outcomes of several fits, each given by the arguments of `train`."""
    return [train(cls, **params) for cls, params in jobs]


def distances(first, second):
    """Largest differences of weights and of losses, over all steps and all columns of history."""
    weights = max(
        float(np.abs(a.astype(np.float64) - b).max(initial=0.0))
        for a, b in zip(first["state"], second["state"], strict=True)
    )
    losses = max(abs(a - b) for a, b in zip(first["steps"], second["steps"], strict=True))
    for row, other in zip(first["history"], second["history"], strict=True):
        assert row.keys() == other.keys()
        numbers = [name for name in row if isinstance(row[name], float)]
        losses = max(losses, *(abs(row[name] - other[name]) for name in numbers))
    return weights, losses


def same(first, second):
    """Whether two outcomes are equal to the bit."""
    states = zip(first["state"], second["state"], strict=True)
    return first["history"] == second["history"] and all(np.array_equal(a, b) for a, b in states)
