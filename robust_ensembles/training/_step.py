"""What a method's objective works with: the members, one batch, and examples made from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..attacks._mode import CraftMode, untouched
from ..modules import Ensemble

if TYPE_CHECKING:
    from ..attacks import BoundedAttack

Objective = Callable[["TrainingStep"], dict[str, Tensor]]
"""The addends of a method's loss by name, from one step. Their sum is minimised."""


@dataclass(frozen=True)
class TrainingStep:
    """One training step, as an objective sees it.

    Parameters
    ----------
    module : Ensemble
        The members, in train mode.
    auxiliary : nn.Module or None
        What the method trains beside the members (CLDL's label confusion model).
    x : Tensor of shape (n_samples, ...)
    y : Tensor of shape (n_samples,)
        Class indices.
    sample_weight : Tensor of shape (n_samples,) or None
        Mean 1 over the training set.
    clip_values : tuple of two floats or None
        Box of the data.
    seed : int
        Of the attacks' random starts in this step.
    """

    module: Ensemble
    auxiliary: nn.Module | None
    x: Tensor
    y: Tensor
    sample_weight: Tensor | None
    clip_values: tuple[float, float] | None
    seed: int

    def craft(
        self, attack: BoundedAttack, *, mode: CraftMode, target: nn.Module | None = None
    ) -> Tensor:
        """Adversarial examples of this batch.

        Parameters
        ----------
        attack : BoundedAttack
        mode : {"eval", "train_frozen_stats", "train"}
            How BatchNorm behaves meanwhile.
        target : nn.Module, default=None
            A single member; None attacks the ensemble.

        Returns
        -------
        x_adv : Tensor of shape (n_samples, ...)
        """
        with untouched(self.module, mode):
            return attack.craft(
                target or self.module, self.x, self.y, box=self.clip_values, seed=self.seed
            )

    def input_leaves(self) -> list[Tensor]:
        """A copy of the batch for each member, to differentiate its loss by."""
        return [self.x.detach().clone().requires_grad_() for _ in self.module]


def input_gradients(losses: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """Gradients of the members' losses by their own inputs, differentiable once more.

    Parameters
    ----------
    losses : Tensor of shape (n_members,)
        Batch means, so that each sample's gradient carries a factor of 1 / n_samples.
    leaves : sequence of n_members Tensors of shape (n_samples, ...)
        The inputs that each member alone has seen; see `TrainingStep.input_leaves`.

    Returns
    -------
    g : Tensor of shape (n_members, n_samples, n_features)
    """
    # the loss of a member reaches its own leaf only, so one call serves them all
    gradients = torch.autograd.grad(losses.sum(), list(leaves), create_graph=True)
    return torch.stack([gradient.flatten(1) for gradient in gradients])
