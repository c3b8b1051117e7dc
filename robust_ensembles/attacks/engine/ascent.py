"""Projected steepest ascent, the loop that all gradient attacks share, and its objectives.

The loop (`ascend`) takes gradients from a `GradientOracle`: of features in training, or of the
loss of an attack. The latter is an `Objective`: a module, a loss, and how the loss combines the
members. Its variants aim at one class after the other (`TowardsClass`) or maximise a function of
the outputs and a reference (`ReferenceObjective`). Whether a sample is broken is always decided by
the deployed rule, whatever the objective.
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
    """Source of gradients for a walk: the loss of an attack, or a distance of features."""

    @abstractmethod
    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Ascent direction of each sample, and whether the sample is broken.

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
        """Whether each sample is broken; by default none is, so that all steps are taken.

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
    """Number and length of steps, and momentum.

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
        Whether to drop a sample at its first broken iterate and continue with the others. False
        takes every step and checks no decision.

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
    """Loss, gradient and success at a batch of points.

    Parameters
    ----------
    loss : Tensor of shape (n_samples,)
        The value to maximise.
    gradient : Tensor of shape (n_samples, ...)
        Ascent direction of the loss.
    broken : bool Tensor of shape (n_samples,)
        Whether the deployed decision is the attacker's.
    """

    loss: Tensor
    gradient: Tensor
    broken: Tensor


class Objective(GradientOracle):
    """The objective of an attack on a module.

    Parameters
    ----------
    module : nn.Module
    loss : str or callable
        A key of `LOSSES`, or a function like those there.
    targeted : bool
        Whether labels are to be reached (their loss is minimised) instead of left.
    aggregation : str or int
        How the loss combines the members, see `aggregate`. Success is judged by the deployed rule,
        whatever the loss uses.
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
        """Ascent direction of each sample's loss, and whether the sample is broken."""
        point = self.evaluate(x, y)
        return point.gradient, point.broken

    def evaluate(self, x: Tensor, y: Tensor) -> Evaluation:
        """Evaluate points by one forward and one backward pass.

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
        """The value to maximise, (n_samples,)."""
        loss = self._loss(logits, y, self.combiner)
        return -loss if self.targeted else loss

    @torch.no_grad()
    def look(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each sample and whether it is broken, without a gradient.

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
        """Whether the decision from the members' logits is the attacker's, (n_samples,)."""
        hit = self.combiner.log_proba(logits).argmax(dim=1) == y
        return hit if self.targeted else ~hit


class TowardsClass(Objective):
    """The objective of an untargeted attack that aims at one class after the other.

    Labels are pairs, (n_samples, 2): the true label, and the class to move towards.

    Parameters
    ----------
    seen : Objective
        The module, and how the loss combines its members.
    loss : callable
        Takes logits, labels, target classes and the combiner; returns a value per sample.
    """

    def __init__(self, seen: Objective, loss: TargetedLoss) -> None:
        def towards(logits: Tensor, y: Tensor, combiner: Combiner) -> Tensor:
            label, target = y.unbind(dim=1)
            return loss(logits, label, target, combiner)

        super().__init__(
            seen.module, towards, aggregation=seen.aggregation, minibatches=seen.minibatches
        )

    def decided(self, logits: Tensor, y: Tensor) -> Tensor:
        """Whether the decision is no longer the true label, (n_samples,)."""
        return super().decided(logits, y[:, 0])


@dataclass(frozen=True)
class InnerObjective:
    """The objective that an attack maximises in training instead of one of `LOSSES`.

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
    """The objective of an attack that maximises a function of the outputs and a reference.

    Labels are row numbers of the batch, so that each sample finds its reference and its own label
    even where an attack sorts, repeats or splits samples.

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
        """Whether the decision is no longer the label of the row, (n_samples,)."""
        return super().decided(logits, self._y[y])


def likeliest_wrong_classes(seen: Objective, x: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """Most likely classes other than the label, in descending order.

    Parameters
    ----------
    seen : Objective
    x : Tensor of shape (n_samples, ...)
    y : Tensor of shape (n_samples,)
    n_classes : int
        Maximum number of classes.

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
    """Number of members of a module; 1 if it is not an ensemble, or if X has no samples."""
    if not hasattr(module, "member_logits") or not len(X):
        return 1
    with frozen(module), torch.no_grad():
        return len(member_logits(module, X[:1].to(device_of(module, X.device))))


def is_broken(
    module: nn.Module, X: Tensor, y: Tensor, *, targeted: bool = False, batch_size: int = 512
) -> Tensor:
    """Whether the decision on each sample is the attacker's, by a separate pass in eval mode.

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
