"""Tiny models of digits, sound ones and ones with a planted defect, for tests in this folder."""

import torch
from torch import nn

from robust_ensembles.datasets import load_digits_images

DIGITS, LABELS = load_digits_images()


def network(*, seed=0, X=DIGITS, hidden=()):
    """A net of 16 hidden units, and layers before their ReLU, in eval mode after a training."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), *hidden, nn.ReLU(), nn.Linear(16, 10))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        x, y = torch.tensor(X[:600]), torch.tensor(LABELS[:600])
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval()


class Wrapped(nn.Module):
    """A net behind a function of its input, before a factor of its output."""

    def __init__(self, net, before=lambda x: x, factor=1.0):
        super().__init__()
        self.net, self.before, self.factor = net, before, factor
        self.eval()

    def forward(self, x):
        return self.factor * self.net(self.before(x))


def rounded(x):
    return (4 * x).round() / 4


def noisy(x):
    return x + 0.1 * torch.randn_like(x)


def detached(x):
    return x.detach()
