"""CEAT: collaborative ensemble adversarial training (Li et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from torch import Tensor

from .. import _registry
from .._parameters import flag, param
from ..attacks import BoundedAttack
from ..losses import member_cross_entropy
from ..training import TrainingStep
from .adversarial_training import PGD10, AdversarialTraining, Reduce, over_members
from .calibration import CalibrationParameters, CollaborativeCalibration, warn_without_peers


@_registry.method(
    "ceat",
    family="adversarial",
    paper="Li et al. 2025, arXiv:2509.00089",
    summary="weights adversarial training by the disagreement of a member's peers",
)
@dataclass(kw_only=True, repr=False, eq=False)
class CEATEnsembleClassifier(CalibrationParameters, AdversarialTraining):
    r"""Adversarial training that weights samples by the disagreement of a member's peers.

    Each member m is trained on one adversarial batch, shared by the ensemble (Eq. 22):

    .. math::

        L_m = {} & \mathrm{CE}(z_m(\tilde x), y)
                   + \lambda\, w_m(x; \lambda)\, |p_m(x) - y|^2 \\
                 & + \mu\, w_m(\tilde x; \mu)\, |p_m(\tilde x) - p_m(x)|^2

    where for three members :math:`w_a(x; \tau) = \exp(\tau |h_b(x) - h_c(x)|)` with h the
    true-class probability of the two others; `disparity_weights` has the general form. The paper
    has no code: this is our reading of it.

    Parameters
    ----------
    lam : float, default=1.0
        Weight of the natural distance: CEAT(lambda, mu) in the paper's tables. (5, 1) favours
        clean accuracy, (1, 5) robustness.
    mu : float, default=5.0
        Weight of the adversarial distance.
    clean_cross_entropy : bool, default=False
        Whether to add the cross-entropy of the clean batch.
    attack : BoundedAttack, default=None
        Crafts the training examples; its `clip_values` default to the estimator's box. None is
        PGD with 10 steps of 2/255 at eps = 8/255.
    formulation : {"paper"}, default="paper"
        No code was released.

    References
    ----------
    .. [1] D. Li et al., "Learning from Peers: Collaborative Ensemble Adversarial Training", 2025,
       arXiv:2509.00089.

    Examples
    --------
    >>> from robust_ensembles import CEATEnsembleClassifier
    >>> from robust_ensembles.attacks import PGD
    >>> clf = CEATEnsembleClassifier(lam=5.0, mu=1.0, attack=PGD(eps=0.1, n_steps=10))
    """

    # repeated, because in the plug-in they are positional
    lam: float = 1.0
    mu: float = 5.0
    clean_cross_entropy: bool = param(False, flag())

    default_attack: ClassVar[BoundedAttack | None] = PGD10
    # not a parameter here: CEAT is the calibration itself
    calibration: ClassVar[None] = None  # type: ignore[misc]

    def _check_method(self, n_classes: int) -> None:
        super()._check_method(n_classes)
        if self.formulation == "released":
            raise ValueError(
                "no code was released for CEAT, so formulation='released' means nothing; use "
                "formulation='paper'"
            )
        warn_without_peers("CEAT", self.n_estimators)

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        return self._adversarial_terms(step, self._craft(step), reduce="sum")

    def _coupling(self) -> CollaborativeCalibration:
        own = {field.name: getattr(self, field.name) for field in fields(CalibrationParameters)}
        return CollaborativeCalibration(**own)

    def _coupling_terms(
        self, step: TrainingStep, adversarial: Tensor, *, reduce: Reduce, clean: Tensor | None
    ) -> dict[str, Tensor]:
        if self.lam == self.mu == 0 and not self.clean_cross_entropy:
            # plain adversarial training: a clean forward pass would only update BatchNorm's
            # statistics
            return {}
        clean = step.module.member_logits(step.x) if clean is None else clean
        terms = super()._coupling_terms(step, adversarial, reduce=reduce, clean=clean)
        if self.clean_cross_entropy:
            losses = member_cross_entropy(clean, step.y, step.sample_weight)
            terms["clean_cross_entropy"] = over_members(losses, reduce)
        return terms
