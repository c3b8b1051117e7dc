"""Five fixed models of the digits that the comparisons with other libraries share."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from robust_ensembles import CLDLEnsembleClassifier, NCEnEnsembleClassifier
from robust_ensembles.attacks import PGD, is_broken
from robust_ensembles.modules import Ensemble

# eps that leaves each model between 20% and 80%
EPS = {
    "plain": {"Linf": 0.09, "L2": 0.5},
    "adversarial": {"Linf": 0.17, "L2": 0.7},
    "confident": {"Linf": 0.09, "L2": 0.5},
    "cldl": {"Linf": 0.09, "L2": 0.5},
    "ncen": {"Linf": 0.09, "L2": 0.5},
}
PROBLEMS = [(name, norm) for name, by_norm in EPS.items() for norm in by_norm]


class Scaled(nn.Module):
    """Makes a network sure of itself."""

    def __init__(self, network, factor):
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x):
        return self.factor * self.network(x)


def digits():
    """All of them, as rows in [0, 1]."""
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


def build():
    """The models, trained on the first 1000 digits."""
    x, y = (part[:1000] for part in digits())
    plain = train(Ensemble([network(seed) for seed in range(3)]), x, y)
    hardened = train(
        Ensemble([network(seed) for seed in range(3, 6)]), x, y, PGD(eps=0.15, n_steps=5)
    )
    confident = Ensemble([Scaled(member, 30.0) for member in plain]).eval()
    return {
        "plain": plain,
        "adversarial": hardened,
        "confident": confident,
        "cldl": fitted(CLDLEnsembleClassifier, x, y),
        "ncen": fitted(NCEnEnsembleClassifier, x, y, lambda_cos=0.2),
    }


def fitted(cls, x, y, **params):
    """An estimator's module."""
    estimator = cls(
        module="mlp",
        module_params={"hidden_sizes": (48,)},
        max_epochs=25,
        lr=5e-3,
        random_state=0,
        device="cpu",
        **params,
    )
    return estimator.fit(x.numpy(), y.numpy()).as_module()


def network(seed):
    """Drawn by a generator of its own."""
    layers = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(0.12 * torch.randn(parameter.shape, generator=generator))
    return layers


def train(ensemble, x, y, attack=None):
    """Full-batch Adam for a moment."""
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=0.01)
    for step in range(100):
        inputs = x if attack is None else attack.craft(ensemble, x, y, box=(0, 1), seed=step)
        optimizer.zero_grad()
        sum(nn.functional.cross_entropy(z, y) for z in ensemble.member_logits(inputs)).backward()
        optimizer.step()
    return ensemble.eval()


def accuracy(module, x_adv, y):
    """Of the deployed decision."""
    return float((~is_broken(module, x_adv, y)).float().mean())
