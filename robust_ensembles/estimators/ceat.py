"""CEAT: collaborative ensemble adversarial training (Li et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from .. import _registry
from ..losses import member_cross_entropy
from ..training import TrainingStep
from .adversarial_training import AdversarialTrainingMixin
from .base import BaseEnsembleClassifier
from .calibration import CalibrationParameters, warn_without_peers


@_registry.method(
    "ceat",
    family="adversarial",
    paper="Li et al. 2025, arXiv:2509.00089",
    summary="adversarial training weighted by the disagreement of a member's peers",
)
@dataclass(kw_only=True, repr=False, eq=False)
class CEATEnsembleClassifier(
    CalibrationParameters, AdversarialTrainingMixin, BaseEnsembleClassifier
):
    r"""Adversarial training that looks harder at what a member's peers disagree about.

    Each member m is trained on one adversarial batch, shared by the ensemble (Eq. 22):

    .. math::

        L_m = {} & \mathrm{CE}(z_m(\tilde x), y)
                   + \lambda\, w_m(x; \lambda)\, |p_m(x) - y|^2 \\
                 & + \mu\, w_m(\tilde x; \mu)\, |p_m(\tilde x) - p_m(x)|^2

    where for three members :math:`w_a(x; \tau) = \exp(\tau |h_b(x) - h_c(x)|)` with h the
    true-class probability of the two others; `disparity_weights` has the general form. The paper
    has no code: these are our readings of it.

    Parameters
    ----------
    lam, mu : float, default=1.0 and 5.0
        Weights of the natural and the adversarial distance: CEAT(lambda, mu) in the paper's
        tables. (5, 1) favours clean accuracy, (1, 5) robustness.
    lam_exp, mu_exp, peers, distance_on, distance_reduce, stop_gradient_clean, normalize_weights
        See `CalibrationParameters`.
    clean_cross_entropy : bool, default=False
        Whether the cross-entropy of the clean batch is added.
    attack, attack_target, craft_bn
        See `AdversarialTrainingMixin`.
    formulation : {"paper"}, default="paper"
        No code was released.
    **params
        See `EnsembleParameters`.

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

    lam: float = 1.0
    mu: float = 5.0
    clean_cross_entropy: bool = False

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseEnsembleClassifier._parameter_constraints,
        **AdversarialTrainingMixin._adversarial_constraints,
        **CalibrationParameters._parameter_constraints,
        "clean_cross_entropy": ["boolean"],
    }

    def _check_method(self, n_classes: int) -> None:
        self._check_attack()
        if self.formulation == "released":
            raise ValueError(
                "no code was released for CEAT, so formulation='released' means nothing; use "
                "formulation='paper'"
            )
        warn_without_peers("CEAT", self.n_estimators, depth=6)

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        x_adv = self._craft(step)
        assert x_adv is not None
        adversarial = step.member_logits(x_adv)
        losses = member_cross_entropy(adversarial, step.y, step.sample_weight)
        terms = {"adversarial_cross_entropy": losses.sum()}
        if self.lam == self.mu == 0 and not self.clean_cross_entropy:
            # plain adversarial training: a clean forward would only move BatchNorm's statistics
            return terms
        clean = step.module.member_logits(step.x)
        terms.update(self._distances(step, clean, adversarial))
        if self.clean_cross_entropy:
            losses = member_cross_entropy(clean, step.y, step.sample_weight)
            terms["clean_cross_entropy"] = losses.sum()
        return terms
