"""The training step as an objective sees it: the members, one batch, and examples crafted from it.

An objective may be evaluated several times in one step, such as at perturbed weights. So a step
caches its crafted examples, and state that an objective keeps for later steps is written when the
step commits, after the update of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..attacks.engine.forward import CraftMode, frozen
from ..losses import member_cross_entropy
from ..modules import Ensemble
from .data import Batch

if TYPE_CHECKING:
    from ..attacks import BoundedAttack

T = TypeVar("T")

Objective = Callable[["TrainingStep"], dict[str, Tensor]]
"""Computes the terms of a method's loss on one step, by name. Their sum is minimised."""


@dataclass(frozen=True)
class TrainingStep:
    """One training step, as an objective sees it.

    Parameters
    ----------
    module : Ensemble
        The members, in train mode.
    auxiliary : nn.Module or None
        The module trained beside the members (CLDL's label confusion model).
    batch : Batch
        Inputs, class indices, weights with mean 1 over the training set; its main fields are also
        attributes of the step.
    clip_values : tuple of two floats or None
        Box of the data.
    seed : int
        Seed of the random numbers of this step, such as random starts of attacks.
    epoch : int, default=0
        Number of finished epochs.
    epoch_seed : int, default=0
        Seed of the random numbers shared by all steps of an epoch.
    """

    module: Ensemble
    auxiliary: nn.Module | None
    batch: Batch
    clip_values: tuple[float, float] | None
    seed: int
    epoch: int = 0
    epoch_seed: int = 0
    _remembered: dict[Any, tuple[Any, Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _at_commit: dict[str, Callable[[], None]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def x(self) -> Tensor:
        """Inputs, (n_samples, ...)."""
        return self.batch.x

    @property
    def y(self) -> Tensor:
        """Class indices, (n_samples,)."""
        return self.batch.y

    @property
    def sample_weight(self) -> Tensor | None:
        """Weights, (n_samples,)."""
        return self.batch.sample_weight

    def member_logits(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits of each member on its own inputs.

        Parameters
        ----------
        inputs : sequence of n_members Tensors of shape (n_samples, ...)

        Returns
        -------
        logits : Tensor of shape (n_members, n_samples, n_classes)
        """
        return self.module.member_logits(inputs)

    def input_gradients(
        self, inputs: Sequence[Tensor], y: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of each member, and the gradient of its cross-entropy by its own inputs.

        Parameters
        ----------
        inputs : sequence of n_members Tensors of shape (n_samples, ...)
            They must require a gradient: `input_leaves`, or results of a computation.
        y : Tensor of shape (n_samples,), default=None
            Labels of the inputs, by default the batch's.

        Returns
        -------
        logits : Tensor of shape (n_members, n_samples, n_classes)
        g : Tensor of shape (n_members, n_samples, n_features)
            See `input_gradients`.
        """
        logits = self.member_logits(inputs)
        losses = member_cross_entropy(logits, self.y if y is None else y)
        return logits, input_gradients(losses, inputs)

    def frozen(self, mode: CraftMode) -> AbstractContextManager[nn.Module]:
        """Context for optimising inputs: parameters are frozen, BatchNorm is in the given mode.

        Parameters
        ----------
        mode : {"eval", "train_frozen_stats", "train"}

        Returns
        -------
        context : context manager
        """
        return frozen(self.module, mode)

    def craft(
        self,
        attack: BoundedAttack,
        *,
        mode: CraftMode,
        target: nn.Module | None = None,
        x: Tensor | None = None,
    ) -> Tensor:
        """Adversarial examples of this batch; crafted once per step for the same arguments.

        Parameters
        ----------
        attack : BoundedAttack
        mode : {"eval", "train_frozen_stats", "train"}
            Mode of BatchNorm while crafting.
        target : nn.Module, default=None
            A single member; None attacks the ensemble.
        x : Tensor of shape (n_samples, ...), default=None
            Centre of the ball, by default the batch.

        Returns
        -------
        x_adv : Tensor of shape (n_samples, ...)
        """
        target = self.module if target is None else target
        x = self.x if x is None else x

        def craft() -> Tensor:
            with self.frozen(mode):
                return attack.craft(target, x, self.y, box=self.clip_values, seed=self.seed)

        settings = tuple(vars(attack).items())
        return self.remembered(craft, "attack", type(attack), settings, mode, target, x)

    def remembered(self, craft: Callable[[], T], *key: Any) -> T:
        """Inputs crafted in this step under a key; crafted now if there are none.

        Parameters
        ----------
        craft : callable
            Makes the inputs, such as from the step's batch and seed.
        *key : object
            Everything the inputs depend on: plain values and tuples of them are compared by value,
            others by identity.

        Returns
        -------
        crafted : object
        """
        hashed = _hashed(key)
        if hashed not in self._remembered:
            # the key is kept too, so that the ids of its objects are not reused
            self._remembered[hashed] = craft(), key
        crafted: T = self._remembered[hashed][0]
        return crafted

    def on_commit(self, name: str, act: Callable[[], None]) -> None:
        """Register a function to call after the update, such as one that writes a method's state.

        Parameters
        ----------
        name : str
            A later registration with the same name replaces this one.
        act : callable
        """
        self._at_commit[name] = act

    def commit(self) -> None:
        """Call the registered functions, after the optimizer's step."""
        for act in self._at_commit.values():
            act()

    def input_leaves(self) -> list[Tensor]:
        """A copy of the batch for each member, by which its loss can be differentiated."""
        return [self.x.detach().clone().requires_grad_() for _ in self.module]


def input_gradients(losses: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """Gradients of the members' losses by their own inputs, which can be differentiated again.

    Parameters
    ----------
    losses : Tensor of shape (n_members,)
        Batch means, so that each sample's gradient has a factor of 1 / n_samples.
    leaves : sequence of n_members Tensors of shape (n_samples, ...)
        The inputs of each member, used by no other; see `TrainingStep.input_leaves`.

    Returns
    -------
    g : Tensor of shape (n_members, n_samples, n_features)
    """
    # the loss of a member only reaches its own leaf, so one call computes all gradients
    gradients = torch.autograd.grad(losses.sum(), list(leaves), create_graph=True)
    return torch.stack([gradient.flatten(1) for gradient in gradients])


def _hashed(part: Any) -> Any:
    """Plain values and tuples of them unchanged, other objects by their identity."""
    if isinstance(part, tuple):
        return tuple(_hashed(item) for item in part)
    plain = part is None or isinstance(part, bool | int | float | str | type)
    return part if plain else (id(part),)
