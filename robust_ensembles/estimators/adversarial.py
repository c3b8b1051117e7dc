"""Adversarial training of an ensemble, or of each member by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .. import _registry
from ..training import TrainingStep
from .adversarial_training import CalibrationMixin
from .base import BaseEnsembleClassifier


@_registry.method(
    "adversarial",
    family="baseline",
    paper="Madry et al., ICLR 2018",
    summary="adversarial training, of the ensemble or of each member",
)
@dataclass(kw_only=True, repr=False, eq=False)
class AdversarialEnsembleClassifier(CalibrationMixin, BaseEnsembleClassifier):
    r"""Members trained on adversarial examples of the ensemble, or each on its own.

    .. math:: L = \sum_i \mathrm{CE}(z_i(\tilde x), y), \qquad
              \tilde x = \mathrm{PGD}(x, y; -\log \bar p_y)

    Only adversarial inputs enter the loss (CEAT Eqs. 4 to 6).

    Parameters
    ----------
    attack, attack_target, craft_bn
        See `AdversarialTrainingMixin`: PGD-10 at 8/255 on the ensemble by default.
    calibration : CollaborativeCalibration, default=None
        Adds CEAT's two distance terms, which makes this `CEATEnsembleClassifier`.
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
        **CalibrationMixin._adversarial_constraints,
    }

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        return self._adversarial_terms(step, self._craft(step), reduce="sum")
