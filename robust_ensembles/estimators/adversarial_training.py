"""Adversarial batches: for the methods that train on them, and as an option of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sklearn.utils._param_validation import StrOptions
from torch import Tensor

from ..attacks import PGD, BoundedAttack
from ..attacks.engine.forward import CraftMode
from ..losses import Formulation, member_cross_entropy
from ..training import TrainingStep
from .base import BaseEnsembleClassifier
from .calibration import CollaborativeCalibration, warn_without_peers

Reduce = Literal["sum", "mean"]


def over_members(losses: Tensor, reduce: Reduce) -> Tensor:
    """Sum or mean of the members' losses, from shape (n_members,)."""
    return losses.sum() if reduce == "sum" else losses.mean()


@dataclass(kw_only=True, repr=False, eq=False)
class AdversarialTrainingMixin(BaseEnsembleClassifier):
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
        running ones moved by the iterates as in released code; or running statistics.
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

    def _validate_params(self) -> None:
        if isinstance(self.attack, str):
            raise ValueError(
                "attack must be an attack such as PGD(eps=8/255, n_steps=10), which "
                f"attack_from_name in robust_ensembles.metrics makes of a name; got {self.attack!r}"
            )
        super()._validate_params()

    def _default_attack(self) -> BoundedAttack | None:
        return PGD(eps=8 / 255, n_steps=10, step_size=2 / 255)

    @property
    def _craft_mode(self) -> CraftMode:
        default: CraftMode = "train" if self.formulation == "released" else "train_frozen_stats"
        return self.craft_bn or default

    def _check_method(self, n_classes: int) -> None:
        self._check_attack()

    def _check_attack(self) -> None:
        """Raise, before training, for an attack that cannot craft training examples."""
        attack = self.attack or self._default_attack()
        if attack is None:
            return
        attack._validate()
        attack.check_radius(self.clip_values_)
        if attack.targeted:
            raise ValueError("attack must be untargeted in training; set targeted=False")

    def _craft(self, step: TrainingStep) -> list[Tensor] | None:
        """The adversarial batch for each member, or None if there is no attack."""
        attack = self.attack or self._default_attack()
        if attack is None:
            return None
        if self.attack_target == "ensemble":
            return [step.craft(attack, mode=self._craft_mode)] * len(step.module)
        members = step.module
        return [step.craft(attack, mode=self._craft_mode, target=member) for member in members]


@dataclass(kw_only=True, repr=False, eq=False)
class CalibrationMixin(AdversarialTrainingMixin):
    """Adversarial training that can be calibrated by CEAT's plug-in.

    Parameters
    ----------
    calibration : CollaborativeCalibration, default=None
        Adds CEAT's two distance terms, for any number of members.
    """

    calibration: CollaborativeCalibration | None = None

    _adversarial_constraints: ClassVar[dict[str, Any]] = {
        **AdversarialTrainingMixin._adversarial_constraints,
        "calibration": [CollaborativeCalibration, None],
    }

    def _check_attack(self) -> None:
        """Raise for attacks and calibrations that make no sense, before training."""
        super()._check_attack()
        if self.calibration is None:
            return
        self.calibration._validate_params()
        warn_without_peers("calibration", self.n_estimators, depth=7)
        if (self.attack or self._default_attack()) is None:
            raise ValueError(
                "calibration compares adversarial with clean outputs, but attack=None; give an "
                "attack, such as attack=PGD(eps=8 / 255, n_steps=10)"
            )

    def _adversarial_terms(
        self,
        step: TrainingStep,
        x_adv: list[Tensor] | None,
        *,
        reduce: Reduce,
        clean: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What adversarial training adds to a method's loss; nothing without an attack.

        Parameters
        ----------
        step : TrainingStep
        x_adv : list of Tensors or None
            From `_craft`, which comes first in a step: the members are then not in the middle
            of a forward pass.
        reduce : {"sum", "mean"}
            Over the members, as the method's own cross-entropy.
        clean : Tensor of shape (n_members, n_samples, n_classes), default=None
            Logits of the clean batch, if the method has them.
        """
        if x_adv is None:
            return {}
        return self._terms_on(step, step.member_logits(x_adv), reduce=reduce, clean=clean)

    def _terms_on(
        self,
        step: TrainingStep,
        adversarial: Tensor,
        *,
        reduce: Reduce,
        clean: Tensor | None,
    ) -> dict[str, Tensor]:
        """The same, from the logits of the adversarial batch."""
        return {
            **self._adversarial_loss(step, adversarial, reduce=reduce),
            **self._calibration_terms(step, adversarial, reduce=reduce, clean=clean),
        }

    def _adversarial_loss(
        self, step: TrainingStep, adversarial: Tensor, *, reduce: Reduce
    ) -> dict[str, Tensor]:
        """The method's loss on the adversarial batch."""
        losses = member_cross_entropy(adversarial, step.y, step.sample_weight)
        return {"adversarial_cross_entropy": over_members(losses, reduce)}

    def _calibration_terms(
        self,
        step: TrainingStep,
        adversarial: Tensor,
        *,
        reduce: Reduce,
        clean: Tensor | None,
    ) -> dict[str, Tensor]:
        """CEAT's terms, if they are asked for."""
        if self.calibration is None:
            return {}
        if clean is None:
            clean = step.module.member_logits(step.x)
        terms = self.calibration.terms(step, clean, adversarial)
        divisor = 1 if reduce == "sum" else len(clean)
        return {name: term / divisor for name, term in terms.items()}


@dataclass(kw_only=True, repr=False, eq=False)
class DiversityMixin(CalibrationMixin):
    """Options of the methods that make members differ.

    Parameters
    ----------
    attack : BoundedAttack, default=None
        Adds adversarial training: the cross-entropy on these examples. None adds nothing.
    attack_target, craft_bn
        See `AdversarialTrainingMixin`.
    calibration : CollaborativeCalibration, default=None
        Adds CEAT's two distance terms, which need an attack.
    """

    def _default_attack(self) -> BoundedAttack | None:
        return None
