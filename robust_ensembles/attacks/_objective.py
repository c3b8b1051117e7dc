"""What a gradient attack asks of a module: the gradient of its loss, and who is broken."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..losses import ensemble_log_proba
from ._mode import untouched
from ._passes import Passes
from .engine.ascent import Climbable
from .engine.margins import LOSSES, aggregate, member_logits

TargetedLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Evaluation(NamedTuple):
    """What is known of a batch of points.

    Parameters
    ----------
    loss : Tensor of shape (n_samples,)
        To be made large.
    gradient : Tensor of shape (n_samples, ...)
        Of the loss, upwards.
    broken : bool Tensor of shape (n_samples,)
        Whether the deployed decision is the attacker's.
    """

    loss: Tensor
    gradient: Tensor
    broken: Tensor


class Objective(Climbable):
    """A module seen by an attack.

    Parameters
    ----------
    module : nn.Module
    loss : str
        A key of `LOSSES`.
    targeted : bool
        Whether labels are to be reached (their loss descends) instead of left.
    aggregation : str or int
        How the loss combines the members, see `aggregate`. Who is broken is up to the deployed
        rule, whatever the loss looks at.
    passes : Passes, default=None
        How many samples go through the module at once; None is all.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: str,
        *,
        targeted: bool = False,
        aggregation: str | int = "mean_proba",
        passes: Passes | None = None,
    ) -> None:
        self.module, self.targeted, self.aggregation = module, targeted, aggregation
        self.passes = Passes() if passes is None else passes
        self._loss = LOSSES[loss]

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each sample's loss, upwards, and whether the sample is broken."""
        point = self.evaluate(x, y)
        return point.gradient, point.broken

    def evaluate(self, x: Tensor, y: Tensor) -> Evaluation:
        """Everything about a point by one forward and one backward pass.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
        y : Tensor of shape (n_samples,)

        Returns
        -------
        evaluation : Evaluation
        """
        return Evaluation(*self.passes.map(self._evaluate, x, y))

    def _evaluate(self, x: Tensor, y: Tensor) -> Evaluation:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = member_logits(self.module, x)
            loss = self._value(aggregate(logits, self.aggregation), y)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        return Evaluation(loss.detach(), gradient, self.decided(logits.detach(), y))

    def _value(self, logits: Tensor, y: Tensor) -> Tensor:
        """What is ascended, (n_samples,)."""
        loss = self._loss(logits, y)
        return -loss if self.targeted else loss

    @torch.no_grad()
    def look(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and whether the sample is broken, without a gradient.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
        y : Tensor of shape (n_samples,)

        Returns
        -------
        loss : Tensor of shape (n_samples,)
        broken : bool Tensor of shape (n_samples,)
        """
        loss, broken = self.passes.map(self._look, x, y)
        return loss, broken

    def _look(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = member_logits(self.module, x)
        return self._value(aggregate(logits, self.aggregation), y), self.decided(logits, y)

    @torch.no_grad()
    def broken(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the deployed decision, argmax of the mean probability, is the attacker's."""
        return self.passes.map(self._decide, x, y)[0]

    def _decide(self, x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (self.decided(member_logits(self.module, x), y),)

    def decided(self, logits: Tensor, y: Tensor) -> Tensor:
        """Whether the decision by the members' logits is the attacker's, (n_samples,)."""
        hit = ensemble_log_proba(logits).argmax(dim=1) == y
        return hit if self.targeted else ~hit


class TowardsClass(Objective):
    """A module seen by an untargeted attack that heads for one class after the other.

    Labels are pairs, (n_samples, 2): the label that counts, and the class to move towards.

    Parameters
    ----------
    seen : Objective
        The module, and how the loss combines its members.
    loss : callable
        From logits, labels and classes to move towards to values per sample.
    """

    def __init__(self, seen: Objective, loss: TargetedLoss) -> None:
        self.module, self.targeted, self.aggregation = seen.module, False, seen.aggregation
        self.passes, self._towards = seen.passes, loss

    def _value(self, logits: Tensor, y: Tensor) -> Tensor:
        return self._towards(logits, *y.unbind(dim=1))

    def decided(self, logits: Tensor, y: Tensor) -> Tensor:
        """Whether the label that counts has been left, (n_samples,)."""
        return super().decided(logits, y[:, 0])


def likeliest_wrong_classes(seen: Objective, x: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """Classes other than the label, the likeliest first.

    Parameters
    ----------
    seen : Objective
    x : Tensor of shape (n_samples, ...)
    y : Tensor of shape (n_samples,)
    n_classes : int
        How many at most.

    Returns
    -------
    classes : int64 Tensor of shape (n_samples, at most n_classes)
    """

    @torch.no_grad()
    def likeliest(x: Tensor, y: Tensor) -> tuple[Tensor]:
        log_proba = ensemble_log_proba(aggregate(member_logits(seen.module, x), seen.aggregation))
        order = log_proba.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
        return (order[:, : min(n_classes, log_proba.shape[1] - 1)],)

    return seen.passes.map(likeliest, x, y)[0]


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Device of a module's first parameter, or the default for a module without any."""
    return next((parameter.device for parameter in module.parameters()), default)


def count_members(module: nn.Module, X: Tensor) -> int:
    """How many members a module shows; 1 if none, or for no samples to look with."""
    if not hasattr(module, "member_logits") or not len(X):
        return 1
    with untouched(module), torch.no_grad():
        return len(member_logits(module, X[:1].to(device_of(module, X.device))))


def is_broken(
    module: nn.Module, X: Tensor, y: Tensor, *, targeted: bool = False, batch_size: int = 512
) -> Tensor:
    """Whether each sample is decided as an attacker wants, by an eval-mode pass of its own.

    Parameters
    ----------
    module : nn.Module
    X : Tensor of shape (n_samples, ...)
    y : Tensor of shape (n_samples,)
        Class indices, the targets if `targeted`.
    targeted : bool, default=False
    batch_size : int, default=512

    Returns
    -------
    broken : bool Tensor of shape (n_samples,)
        On the device of X.
    """
    device = device_of(module, X.device)
    objective = Objective(module, "margin", targeted=targeted)

    def decide(x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (objective.broken(x.to(device), y.to(device)),)

    if not len(X):
        return torch.zeros(0, dtype=torch.bool)
    with untouched(module):
        return Passes(batch_size).map(decide, X, y)[0].to(X.device)
