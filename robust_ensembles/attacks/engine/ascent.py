"""Projected steepest ascent, the loop that all gradient attacks share, and what it climbs.

The loop (`ascend`) asks a `GradientOracle` for gradients, whatever they are of: features in
training, or the loss of an attack. The latter is an `Objective`: a module, a loss, and how the
loss combines the members. Variants of it head for one class after the other (`TowardsClass`) or
climb a function of the outputs and of a reference (`ReferenceObjective`). Whether a sample is
broken is always decided by the deployed rule, whatever is climbed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...modules.combiners import Combiner, combiner_of
from .balls import Ball
from .forward import Minibatches, device_of, frozen, member_logits
from .margins import LOSSES, Loss, aggregate

TargetedLoss = Callable[[Tensor, Tensor, Tensor, Combiner], Tensor]


class GradientOracle(ABC):
    """What a walk climbs: the loss of an attack, or a distance of features."""

    @abstractmethod
    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each sample's value, upwards, and whether the sample is broken.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
        y : Tensor of shape (n_samples,)

        Returns
        -------
        gradient : Tensor of the shape of x
        broken : bool Tensor of shape (n_samples,)
        """

    def broken(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether each sample is broken; by default none is, so that all take every step.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
        y : Tensor of shape (n_samples,)

        Returns
        -------
        broken : bool Tensor of shape (n_samples,)
        """
        return torch.zeros(len(x), dtype=torch.bool, device=x.device)


@dataclass(frozen=True)
class StepRule:
    """How to walk.

    Parameters
    ----------
    n_steps : int
    step_size : float
        Length of a step, in the attack's norm and the units of X.
    decay : float or None
        Momentum: the direction accumulates gradients of unit L1 norm, discounted by this factor.
    """

    n_steps: int
    step_size: float
    decay: float | None = None


def ascend(
    objective: GradientOracle,
    ball: Ball,
    start: Tensor,
    y: Tensor,
    steps: StepRule,
    *,
    stop_when_broken: bool,
) -> tuple[Tensor, Tensor]:
    """Walk uphill from `start`, projecting each step into the ball.

    Parameters
    ----------
    objective : GradientOracle
    ball : Ball
    start : Tensor of shape (n_samples, ...)
        Points in the ball.
    y : Tensor of shape (n_samples,)
    steps : StepRule
    stop_when_broken : bool
        Drop a sample at the first iterate that is broken; the others go on by themselves. False
        takes every step and looks at no decision.

    Returns
    -------
    x : Tensor of shape (n_samples, ...)
        The breaking iterate, or the last.
    broken : bool Tensor of shape (n_samples,)
        All False unless `stop_when_broken`.
    """
    result = start.clone()
    is_broken = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    active = torch.arange(len(start), device=start.device)
    x, momentum = start, torch.zeros_like(start) if steps.decay is not None else None
    for _ in range(steps.n_steps):
        gradient, broken = objective.gradient(x, y)
        if stop_when_broken:
            check_finite(gradient)
        if stop_when_broken and broken.any():
            result[active], is_broken[active] = x, broken
            keep = ~broken
            active, x, y, gradient, ball = (
                active[keep],
                x[keep],
                y[keep],
                gradient[keep],
                ball[keep],
            )
            momentum = None if momentum is None else momentum[keep]
            if not len(active):
                return result, is_broken
        if momentum is not None and steps.decay is not None:
            momentum = steps.decay * momentum + _unit_l1(gradient)
        direction = ball.steepest(gradient if momentum is None else momentum)
        x = ball.project(x + steps.step_size * direction)
    result[active] = x
    if stop_when_broken:
        is_broken[active] = objective.broken(x, y)
    return result, is_broken


def check_finite(gradient: Tensor) -> None:
    """Raise FloatingPointError if a sample's gradient is NaN or infinite."""
    finite = gradient.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        raise FloatingPointError(
            f"the module's gradient is NaN or infinite for {int((~finite).sum())} of "
            f"{len(finite)} samples, so it cannot be attacked by gradients: look for a division "
            "by zero, a square root of zero or an overflow in its forward pass"
        )


def _unit_l1(gradient: Tensor) -> Tensor:
    norm = gradient.abs().flatten(1).sum(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
    return gradient / norm.view(-1, *([1] * (gradient.ndim - 1)))


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


class Objective(GradientOracle):
    """A module seen by an attack.

    Parameters
    ----------
    module : nn.Module
    loss : str or callable
        A key of `LOSSES`, or a function like those there.
    targeted : bool
        Whether labels are to be reached (their loss descends) instead of left.
    aggregation : str or int
        How the loss combines the members, see `aggregate`. Who is broken is up to the deployed
        rule, whatever the loss looks at.
    minibatches : Minibatches, default=None
        How many samples go through the module at once; None is all.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: str | Loss,
        *,
        targeted: bool = False,
        aggregation: str | int = "mean_proba",
        minibatches: Minibatches | None = None,
    ) -> None:
        self.module, self.targeted, self.aggregation = module, targeted, aggregation
        self.minibatches = Minibatches() if minibatches is None else minibatches
        self.combiner = combiner_of(module)
        self._loss = LOSSES[loss] if isinstance(loss, str) else loss

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
        return Evaluation(*self.minibatches.map(self._evaluate, x, y))

    def _evaluate(self, x: Tensor, y: Tensor) -> Evaluation:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = member_logits(self.module, x)
            loss = self._value(aggregate(logits, self.aggregation), y)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        return Evaluation(loss.detach(), gradient, self.decided(logits.detach(), y))

    def _value(self, logits: Tensor, y: Tensor) -> Tensor:
        """What is ascended, (n_samples,)."""
        loss = self._loss(logits, y, self.combiner)
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
        loss, broken = self.minibatches.map(self._look, x, y)
        return loss, broken

    def _look(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = member_logits(self.module, x)
        return self._value(aggregate(logits, self.aggregation), y), self.decided(logits, y)

    @torch.no_grad()
    def broken(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether the deployed decision, the argmax of the combiner, is the attacker's."""
        return self.minibatches.map(self._decide, x, y)[0]

    def _decide(self, x: Tensor, y: Tensor) -> tuple[Tensor]:
        return (self.decided(member_logits(self.module, x), y),)

    def decided(self, logits: Tensor, y: Tensor) -> Tensor:
        """Whether the decision by the members' logits is the attacker's, (n_samples,)."""
        hit = self.combiner.log_proba(logits).argmax(dim=1) == y
        return hit if self.targeted else ~hit


class TowardsClass(Objective):
    """A module seen by an untargeted attack that heads for one class after the other.

    Labels are pairs, (n_samples, 2): the label that counts, and the class to move towards.

    Parameters
    ----------
    seen : Objective
        The module, and how the loss combines its members.
    loss : callable
        From logits, labels, classes to move towards and the combiner to values per sample.
    """

    def __init__(self, seen: Objective, loss: TargetedLoss) -> None:
        def towards(logits: Tensor, y: Tensor, combiner: Combiner) -> Tensor:
            label, target = y.unbind(dim=1)
            return loss(logits, label, target, combiner)

        super().__init__(
            seen.module, towards, aggregation=seen.aggregation, minibatches=seen.minibatches
        )

    def decided(self, logits: Tensor, y: Tensor) -> Tensor:
        """Whether the label that counts has been left, (n_samples,)."""
        return super().decided(logits, y[:, 0])


@dataclass(frozen=True)
class InnerObjective:
    """What an attack climbs in training instead of one of `LOSSES`.

    Parameters
    ----------
    climb : callable
        ``climb(log_proba, reference, y)`` gives a value for each sample, (n_samples,), from the
        log-probabilities of the module as deployed, (n_samples, n_classes), the rows of
        `reference`, and the labels.
    reference : Tensor of shape (n_samples, ...)
        A row for each sample of the batch, such as the log-probabilities of the clean samples;
        not differentiated.
    """

    climb: Callable[[Tensor, Tensor, Tensor], Tensor]
    reference: Tensor


class ReferenceObjective(Objective):
    """A module seen by an attack that climbs a function of its outputs and of a reference.

    Labels are numbers of rows of the batch, so that each sample finds its reference and its own
    label wherever an attack sorts, repeats or splits samples.

    Parameters
    ----------
    seen : Objective
        The module, and how the loss combines its members.
    inner : InnerObjective
    y : Tensor of shape (n_samples,)
        Class indices of the batch.
    """

    def __init__(self, seen: Objective, inner: InnerObjective, y: Tensor) -> None:
        reference = inner.reference.detach()

        def value(logits: Tensor, rows: Tensor, combiner: Combiner) -> Tensor:
            return inner.climb(combiner.log_proba(logits), reference[rows], y[rows])

        super().__init__(
            seen.module, value, aggregation=seen.aggregation, minibatches=seen.minibatches
        )
        self._y = y

    def decided(self, logits: Tensor, y: Tensor) -> Tensor:
        """Whether the label of each row has been left, (n_samples,)."""
        return super().decided(logits, self._y[y])


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
        logits = aggregate(member_logits(seen.module, x), seen.aggregation)
        log_proba = seen.combiner.log_proba(logits)
        order = log_proba.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
        return (order[:, : min(n_classes, log_proba.shape[1] - 1)],)

    return seen.minibatches.map(likeliest, x, y)[0]


def count_members(module: nn.Module, X: Tensor) -> int:
    """How many members a module shows; 1 if none, or for no samples to look with."""
    if not hasattr(module, "member_logits") or not len(X):
        return 1
    with frozen(module), torch.no_grad():
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
    with frozen(module):
        return Minibatches(batch_size).map(decide, X, y)[0].to(X.device)
