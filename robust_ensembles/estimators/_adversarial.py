"""Adversarial batches for the objectives that train on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from sklearn.utils._param_validation import StrOptions
from torch import Tensor

from ..attacks import PGD, BoundedAttack
from ..attacks._mode import CraftMode
from ..losses import Formulation
from ..training import TrainingStep


@dataclass(kw_only=True, repr=False, eq=False)
class AdversarialTrainingMixin:
    """Parameters of adversarial training, and the batch that they describe.

    Parameters
    ----------
    attack : BoundedAttack, default=None
        Crafts the training examples; its `clip_values` default to the estimator's box. None is
        PGD with 10 steps of 2/255 at eps = 8/255.
    attack_target : {"ensemble", "member"}, default="ensemble"
        Whether one example is crafted on the ensemble and shared, or one on each member.
    craft_bn : {"train_frozen_stats", "train", "eval"}, default=None
        BatchNorm while crafting: batch statistics without a trace; batch statistics, with the
        running ones moved by the attack's iterates as in released code; or running statistics.
        None is the first, or the second for ``formulation="released"``.
    """

    attack: BoundedAttack | None = None
    attack_target: Literal["ensemble", "member"] = "ensemble"
    craft_bn: CraftMode | None = None
    formulation: Formulation = "paper"

    _adversarial_constraints: ClassVar[dict[str, Any]] = {
        "attack": [BoundedAttack, None],
        "attack_target": [StrOptions({"ensemble", "member"})],
        "craft_bn": [StrOptions({"train_frozen_stats", "train", "eval"}), None],
        "formulation": [StrOptions({"paper", "released"})],
    }

    def _default_attack(self) -> BoundedAttack:
        return PGD(eps=8 / 255, n_steps=10, step_size=2 / 255)

    def _check_attack(self) -> None:
        """Raise, before training, for an attack that cannot craft training examples."""
        attack = self.attack or self._default_attack()
        attack._validate()
        if attack.targeted:
            raise ValueError("attack must be untargeted in training; set targeted=False")

    def _craft(self, step: TrainingStep) -> list[Tensor]:
        """The adversarial batch for each member."""
        attack = self.attack or self._default_attack()
        default: CraftMode = "train" if self.formulation == "released" else "train_frozen_stats"
        mode = self.craft_bn or default
        if self.attack_target == "ensemble":
            return [step.craft(attack, mode=mode)] * len(step.module)
        return [step.craft(attack, mode=mode, target=member) for member in step.module]

    def _adversarial_logits(self, step: TrainingStep) -> Tensor:
        """Logits of each member on its adversarial batch, (n_members, n_samples, n_classes)."""
        x_adv = self._craft(step)
        return torch.stack([member(x) for member, x in zip(step.module, x_adv, strict=True)])
