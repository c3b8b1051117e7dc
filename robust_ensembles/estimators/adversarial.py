"""Adversarial training of an ensemble, or of each member separately (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import _registry
from ..attacks import BoundedAttack
from ..training import TrainingStep
from .adversarial_training import PGD10, AdversarialTraining


@_registry.method(
    "adversarial",
    family="baseline",
    paper="Madry et al., ICLR 2018",
    summary="adversarial training of the ensemble or of each member",
)
@dataclass(kw_only=True, repr=False, eq=False)
class AdversarialEnsembleClassifier(AdversarialTraining):
    r"""Members trained on adversarial examples of the ensemble, or each on its own.

    .. math:: L = \sum_i \mathrm{CE}(z_i(\tilde x), y), \qquad
              \tilde x = \mathrm{PGD}(x, y; -\log \bar p_y)

    Only adversarial inputs enter the loss (CEAT Eqs. 4 to 6).

    Parameters
    ----------
    attack : BoundedAttack, default=None
        Crafts the training examples; its `clip_values` default to the estimator's box. None is
        PGD with 10 steps of 2/255 at eps = 8/255.
    calibration : CollaborativeCalibration, default=None
        Adds CEAT's two distance terms, which makes this `CEATEnsembleClassifier`.
    formulation : {"paper", "released"}, default="paper"
        With ``"released"``, the attack's iterates change BatchNorm's running statistics.

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

    default_attack: ClassVar[BoundedAttack | None] = PGD10

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        return self._adversarial_terms(step, self._craft(step), reduce="sum")
