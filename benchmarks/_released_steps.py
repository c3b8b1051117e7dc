"""One training step of each method in the manner of the released trainers, as the reference.

What is slow in them is kept, since their users pay for it: a second forward pass of each member,
pairs in a loop, parameters that stay trainable while an attack crafts, torch's own double
backward. What they compute is `formulation="released"` of the estimators.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robust_ensembles.modules import LabelConfusionModel
from robust_ensembles.training import Batch, captured_embedding

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass
class ReleasedStep(ABC):
    """Members, what trains them, and what one batch does to them.

    Parameters
    ----------
    members : sequence of nn.Module
        In train mode.
    make_optimizer : callable
        From parameters to an optimizer of them.
    auxiliary : LabelConfusionModel or None, default=None
        What is trained beside the members, as the estimator has it.
    """

    members: Sequence[nn.Module]
    make_optimizer: MakeOptimizer
    auxiliary: LabelConfusionModel | None = None

    def __post_init__(self) -> None:
        self.optimizers = [self.make_optimizer(group) for group in self._parameter_groups()]

    def _parameter_groups(self) -> list[list[nn.Parameter]]:
        """Parameters of each optimizer: one optimizer for all."""
        owners = [*self.members, *([] if self.auxiliary is None else [self.auxiliary])]
        return [[parameter for owner in owners for parameter in owner.parameters()]]

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch; returns the loss."""

    def run(self, batches: Iterable[Batch]) -> list[Tensor]:
        """One step for each batch; returns the losses."""
        return [self(batch.x, batch.y) for batch in batches]

    def _update(self, loss: Tensor) -> Tensor:
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()


class ReleasedVanilla(ReleasedStep):
    """Members one after the other, each with an optimizer of its own."""

    def _parameter_groups(self) -> list[list[nn.Parameter]]:
        return [list(member.parameters()) for member in self.members]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch; returns the sum of the members' losses."""
        losses = []
        for member, optimizer in zip(self.members, self.optimizers, strict=True):
            loss = F.cross_entropy(member(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).sum()


@dataclass
class ReleasedAdversarial(ReleasedVanilla):
    """Vanilla on PGD examples of the ensemble; each of PGD's steps computes all gradients.

    Parameters
    ----------
    eps, step_size : float
    n_steps : int
    random_start : bool
    """

    eps: float = 8 / 255
    step_size: float = 2 / 255
    n_steps: int = 10
    random_start: bool = True

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on the adversarial batch; returns the sum of the members' losses."""
        x_adv = x.clone()
        if self.random_start:
            x_adv = x_adv + torch.empty_like(x).uniform_(-self.eps, self.eps)
        x_adv = x_adv.clamp(0, 1)
        for _ in range(self.n_steps):
            x_adv = x_adv + self.step_size * self._gradient(x_adv, y).sign()
            x_adv = torch.max(torch.min(x_adv, x + self.eps), x - self.eps).clamp(0, 1)
        return super().__call__(x_adv, y)

    def _gradient(self, x: Tensor, y: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        probabilities = [F.softmax(member(x), dim=-1) for member in self.members]
        mean = torch.stack(probabilities).sum(dim=0) / len(self.members)
        loss = F.cross_entropy(mean.clamp(min=1e-40).log(), y)
        for member in self.members:
            member.zero_grad()
        loss.backward()
        assert x.grad is not None
        return x.grad.clone()


@dataclass
class ReleasedADP(ReleasedStep):
    """Summed cross-entropy, entropy of the mean and log-determinant of the rest."""

    alpha: float = 2.0
    beta: float = 0.5

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch; returns the loss."""
        losses, probabilities, others = [], [], []
        for member in self.members:
            logits = member(x)
            losses.append(F.cross_entropy(logits, y))
            probabilities.append(F.softmax(logits, dim=-1))
            others.append(_without_label(probabilities[-1], y))
        mean = torch.stack(probabilities).sum(dim=0) / len(self.members)
        entropy = -(mean * (mean + 1e-20).log()).sum(dim=-1).mean()
        rows = torch.stack(others, dim=1)
        rows = rows / rows.norm(p=2, dim=-1, keepdim=True)
        ridge = 1e-6 * torch.eye(len(self.members), dtype=x.dtype, device=x.device)
        determinant = torch.logdet(rows @ rows.transpose(1, 2) + ridge).mean()
        cross_entropy = torch.stack(losses).sum()
        return self._update(cross_entropy - self.alpha * entropy - self.beta * determinant)


@dataclass
class ReleasedGAL(ReleasedStep):
    """Two forward passes of each member: one for its gradient, one for its cross-entropy."""

    lam: float = 0.5

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch; returns the loss."""
        x = x.detach().clone().requires_grad_()
        losses, gradients = [], []
        for member in self.members:
            loss = F.cross_entropy(member(x), y)
            gradients.append(_input_gradient(loss, x))
            losses.append(F.cross_entropy(member(x.detach().clone()), y))
        cosines = torch.stack([F.cosine_similarity(a, b, dim=-1) for a, b in _pairs(gradients)])
        coherence = (cosines.exp().sum(dim=0) + 1e-20).log().mean()
        return self._update(torch.stack(losses).mean() + self.lam * coherence)


@dataclass
class ReleasedNCEn(ReleasedStep):
    """Cross-entropy of probabilities, and log-sum-exps of what is correlated, member by member."""

    lambda_cos: float = 0.06
    lambda_norm: float = 0.04

    def _parameter_groups(self) -> list[list[nn.Parameter]]:
        return [list(member.parameters()) for member in self.members]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch; returns the loss."""
        k = len(self.members)
        copies = [x.clone().detach().requires_grad_() for _ in self.members]
        cross_entropy = torch.zeros((), dtype=x.dtype, device=x.device)
        for member, copy in zip(self.members, copies, strict=True):
            cross_entropy = cross_entropy + F.cross_entropy(F.softmax(member(copy), dim=-1), y) / k
        gradients = torch.autograd.grad(cross_entropy, copies, create_graph=True)
        regularizer = self._regularizer([gradient.flatten(1) for gradient in gradients])
        return self._update(cross_entropy + regularizer)

    def _regularizer(self, gradients: list[Tensor]) -> Tensor:
        k = len(gradients)
        mean = torch.stack(gradients).sum(dim=0) / k
        norms = [gradient.norm(p=2, dim=1) for gradient in gradients]
        mean_norm = torch.stack(norms).sum(dim=0) / k
        relative = [(norm - mean_norm) / mean_norm for norm in norms]
        cosines = [F.cosine_similarity(gradient, mean, dim=1) for gradient in gradients]
        directions, magnitudes = [], []
        for i in range(k):
            rest = [j for j in range(k) if j != i]
            others = torch.stack([cosines[j].exp() for j in rest]).sum(dim=0)
            directions.append(cosines[i].exp() * others)
            spread = torch.stack([relative[j] for j in rest]).sum(dim=0) / k
            magnitudes.append((relative[i] * spread).exp())
        direction = torch.stack(directions).sum(dim=0).log().mean()
        magnitude = torch.stack(magnitudes).sum(dim=0).log().mean()
        return self.lambda_cos * direction + self.lambda_norm * magnitude


@dataclass
class ReleasedCLDL(ReleasedStep):
    """Two forward passes of each member, for logits and for the embedding, and loops over pairs."""

    gamma: float = 4.0
    alpha: float = 2.0
    beta: float = 4.0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch; returns the loss."""
        x = x.detach().clone().requires_grad_()
        losses, gradients, confusions = [], [], []
        for member in self.members:
            p = F.softmax(member(x), dim=-1)
            c = self._confusion(member, x)
            # the only part in double precision
            s = F.softmax(c + self.gamma * F.one_hot(y, c.shape[1]), dim=-1).double()
            cross_entropy = -(s * (p + 1e-6).log()).sum(dim=-1).mean()
            entropy = -(s * (s + 1e-6).log()).sum(dim=-1).mean()
            losses.append(cross_entropy - entropy)
            gradients.append(_input_gradient(losses[-1], x))
            confusions.append(_without_label(c, y))
        cosines = [F.cosine_similarity(a, b, dim=-1).abs().mean() for a, b in _pairs(gradients)]
        alignment = torch.stack(cosines).sum() / len(self.members)
        divergences = torch.stack([_jensen_shannon(p, q) for p, q in _pairs(confusions)])
        diversity = (divergences.exp().mean() + 1e-6).log()
        divergence = torch.stack(losses).mean()
        return self._update(divergence - self.alpha * diversity + self.beta * alignment)

    def _confusion(self, member: nn.Module, x: Tensor) -> Tensor:
        """Label confusion vectors, with the table of labels looked up for each sample."""
        model = self.auxiliary
        assert model is not None
        with captured_embedding(member) as captured:
            member(x)
        labels = torch.arange(model.labels.num_embeddings, device=x.device).repeat(len(x), 1)
        vectors = torch.tanh(model.project(model.labels(labels)))
        similarities = torch.bmm(vectors, captured[0].unsqueeze(-1)).squeeze(-1)
        return F.softmax(model.confuse(similarities), dim=1)


def _input_gradient(loss: Tensor, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    return gradient.flatten(1)


def _pairs(items: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(itertools.combinations(items, 2))


def _without_label(p: Tensor, y: Tensor) -> Tensor:
    """Rows without the label's entry, (n_samples, n_classes - 1)."""
    others = F.one_hot(y, p.shape[1]) == 0
    return p.masked_select(others).reshape(len(p), -1)


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """In bits; the mean over samples and classes."""
    p, q = p + 1e-30, q + 1e-30
    log_middle = ((p + q) / 2).log()
    left = F.kl_div(log_middle, p, reduction="none").mean()
    right = F.kl_div(log_middle, q, reduction="none").mean()
    return (left + right) / (2 * math.log(2))


RELEASED: dict[str, type[ReleasedStep]] = {
    "vanilla": ReleasedVanilla,
    "adversarial": ReleasedAdversarial,
    "adp": ReleasedADP,
    "gal": ReleasedGAL,
    "ncen": ReleasedNCEn,
    "cldl": ReleasedCLDL,
}
