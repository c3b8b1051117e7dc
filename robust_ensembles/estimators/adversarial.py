"""Adversarial training of an ensemble, or of each member by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..losses import member_cross_entropy
from ..training import TrainingStep
from ._adversarial import AdversarialTrainingMixin
from .base import BaseEnsembleClassifier


@dataclass(kw_only=True, repr=False, eq=False)
class AdversarialEnsembleClassifier(AdversarialTrainingMixin, BaseEnsembleClassifier):
    r"""Members trained on adversarial examples of the ensemble, or each on its own.

    .. math:: L = \sum_i \mathrm{CE}(z_i(\tilde x), y), \qquad
              \tilde x = \mathrm{PGD}(x, y; -\log \bar p_y)

    Only adversarial inputs enter the loss (CEAT Eqs. 4 to 6).

    Parameters
    ----------
    attack, attack_target, craft_bn
        See `AdversarialTrainingMixin`: PGD-10 at 8/255 on the ensemble by default.
    formulation : {"paper", "released"}, default="paper"
        ``"released"`` lets the attack's iterates move BatchNorm's running statistics.
    **params
        See `EnsembleParameters`.

    References
    ----------
    .. [1] A. Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks",
       ICLR 2018.

    Examples
    --------
    >>> from robust_ensembles import AdversarialEnsembleClassifier
    >>> from robust_ensembles.attacks import PGD
    >>> clf = AdversarialEnsembleClassifier(attack=PGD(eps=0.1, n_steps=7))
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseEnsembleClassifier._parameter_constraints,
        **AdversarialTrainingMixin._adversarial_constraints,
    }

    def _check_method(self, n_classes: int) -> None:
        self._check_attack()

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        logits = self._adversarial_logits(step)
        losses = member_cross_entropy(logits, step.y, step.sample_weight)
        return {"adversarial_cross_entropy": losses.sum()}
