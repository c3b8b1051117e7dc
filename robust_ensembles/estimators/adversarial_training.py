"""Base class for training on adversarial batches, required by some methods, optional in others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from .._parameters import choice, param
from ..attacks import PGD, BoundedAttack
from ..attacks.engine.forward import CraftMode
from ..losses import Formulation, member_cross_entropy
from ..training import TrainingStep
from .base import BaseEnsembleClassifier
from .calibration import CollaborativeCalibration, warn_without_peers

Reduce = Literal["sum", "mean"]

PGD10 = PGD(eps=8 / 255, n_steps=10, step_size=2 / 255)
"""The training attack of the papers: the default of methods that need an attack."""


class Coupling(Protocol):
    """Couples the members on adversarial examples, as `CollaborativeCalibration` does."""

    def terms(self, step: TrainingStep, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """Terms of the loss, summed over the members, from their logits on both batches."""


@dataclass(kw_only=True, repr=False, eq=False)
class AdversarialTraining(BaseEnsembleClassifier):
    """Base class of methods that can train on adversarial examples, optionally with calibration.

    A method's `_objective` first crafts examples by `_craft`, then adds `_adversarial_terms` to its
    loss. A method that needs an attack has a `default_attack`.

    Parameters
    ----------
    attack : BoundedAttack, default=None
        Adds adversarial training: the cross-entropy on these examples. Its `clip_values` default
        to the estimator's box. None adds nothing.
    attack_target : {"ensemble", "member"}, default="ensemble"
        Whether to craft one example on the ensemble for all members, or one on each member.
    craft_bn : {"train_frozen_stats", "train", "eval"}, default=None
        BatchNorm while crafting: batch statistics, with the running statistics restored
        afterwards; batch statistics, with the running statistics updated by the iterates as in
        released code; or running statistics. None is the first, or the second for
        ``formulation="released"``.
    formulation : {"paper", "released"}, default="paper"
        Whether to follow the paper or its released code: here it only sets `craft_bn`.
    calibration : CollaborativeCalibration, default=None
        Adds CEAT's two distance terms, for any number of members. Needs an attack.
    """

    attack: BoundedAttack | None = param(None, BoundedAttack, None)
    attack_target: Literal["ensemble", "member"] = param("ensemble", choice("ensemble", "member"))
    craft_bn: CraftMode | None = param(None, choice("train_frozen_stats", "train", "eval"), None)
    formulation: Formulation = param("paper", choice("paper", "released"))
    calibration: CollaborativeCalibration | None = param(None, CollaborativeCalibration, None)

    # the attack used for attack=None
    default_attack: ClassVar[BoundedAttack | None] = None

    def _validate_params(self) -> None:
        if isinstance(self.attack, str):
            raise ValueError(
                "attack must be an attack such as PGD(eps=8/255, n_steps=10), which "
                f"attack_from_name in robust_ensembles.metrics makes of a name; got {self.attack!r}"
            )
        super()._validate_params()

    @property
    def _training_attack(self) -> BoundedAttack | None:
        return self.default_attack if self.attack is None else self.attack

    @property
    def _craft_mode(self) -> CraftMode:
        default: CraftMode = "train" if self.formulation == "released" else "train_frozen_stats"
        return self.craft_bn or default

    def _check_method(self, n_classes: int) -> None:
        """Raise for invalid attacks and calibrations, before training."""
        attack = self._training_attack
        if attack is not None:
            attack._validate()
            attack.check_radius(self.clip_values_)
            if attack.targeted:
                raise ValueError("attack must be untargeted in training; set targeted=False")
        if self.calibration is None:
            return
        self.calibration._validate_params()
        warn_without_peers("calibration", self.n_estimators)
        if attack is None:
            raise ValueError(
                "calibration compares adversarial with clean outputs, but attack=None; give an "
                "attack, such as attack=PGD(eps=8 / 255, n_steps=10)"
            )

    def _craft(self, step: TrainingStep) -> list[Tensor] | None:
        """The adversarial batch for each member, or None without an attack."""
        attack = self._training_attack
        if attack is None:
            return None
        if self.attack_target == "ensemble":
            return [step.craft(attack, mode=self._craft_mode)] * len(step.module)
        members = step.module
        return [step.craft(attack, mode=self._craft_mode, target=member) for member in members]

    def _adversarial_terms(
        self,
        step: TrainingStep,
        x_adv: list[Tensor] | None,
        *,
        reduce: Reduce,
        clean: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Terms that adversarial training adds to a method's loss; none without an attack.

        Parameters
        ----------
        step : TrainingStep
        x_adv : list of Tensors or None
            From `_craft`, which must come first in a step, before the members' forward passes.
        reduce : {"sum", "mean"}
            Reduction over the members, as in the method's own cross-entropy.
        clean : Tensor of shape (n_members, n_samples, n_classes), default=None
            Logits of the clean batch, if the method has them. Otherwise computed only if a term
            needs them: a forward pass updates BatchNorm's running statistics.
        """
        if x_adv is None:
            return {}
        return self._terms_on(step, step.member_logits(x_adv), reduce=reduce, clean=clean)

    def _terms_on(
        self, step: TrainingStep, adversarial: Tensor, *, reduce: Reduce, clean: Tensor | None
    ) -> dict[str, Tensor]:
        """The same terms, from the logits of the adversarial batch."""
        return {
            **self._adversarial_loss(step, adversarial, reduce=reduce),
            **self._coupling_terms(step, adversarial, reduce=reduce, clean=clean),
        }

    def _adversarial_loss(
        self, step: TrainingStep, adversarial: Tensor, *, reduce: Reduce
    ) -> dict[str, Tensor]:
        """The method's loss on the adversarial batch."""
        losses = member_cross_entropy(adversarial, step.y, step.sample_weight)
        return {"adversarial_cross_entropy": over_members(losses, reduce)}

    def _coupling_terms(
        self, step: TrainingStep, adversarial: Tensor, *, reduce: Reduce, clean: Tensor | None
    ) -> dict[str, Tensor]:
        """Terms that couple the members on the adversarial batch."""
        coupling = self._coupling()
        if coupling is None:
            return {}
        if clean is None:
            clean = step.module.member_logits(step.x)
        terms = coupling.terms(step, clean, adversarial)
        divisor = 1 if reduce == "sum" else len(clean)
        return {name: term / divisor for name, term in terms.items()}

    def _coupling(self) -> Coupling | None:
        return self.calibration


def over_members(losses: Tensor, reduce: Reduce) -> Tensor:
    """Sum or mean of the members' losses, from shape (n_members,)."""
    return losses.sum() if reduce == "sum" else losses.mean()
