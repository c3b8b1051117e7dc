"""CEAT: collaborative ensemble adversarial training (Li et al. 2025)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

import torch.nn.functional as F
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from ..losses import (
    Peers,
    disparity_weights,
    member_cross_entropy,
    squared_distance,
    weighted_distance,
)
from ..training import TrainingStep
from ._adversarial import AdversarialTrainingMixin
from .base import BaseEnsembleClassifier


@dataclass(kw_only=True, repr=False, eq=False)
class CEATEnsembleClassifier(AdversarialTrainingMixin, BaseEnsembleClassifier):
    r"""Adversarial training that looks harder at what a member's peers disagree about.

    Each member m is trained on one adversarial batch, shared by the ensemble (Eq. 22):

    .. math:: L_m = \mathrm{CE}(z_m(\tilde x), y)
              + \lambda\, w_m(x; \lambda)\, |p_m(x) - y|^2
              + \mu\, w_m(\tilde x; \mu)\, |p_m(\tilde x) - p_m(x)|^2

    where for three members :math:`w_a(x; \tau) = \exp(\tau |h_b(x) - h_c(x)|)` with h the
    true-class probability of the two others; `disparity_weights` has the general form. The paper
    has no code: these are our readings of it.

    Parameters
    ----------
    lam, mu : float, default=1.0 and 5.0
        Weights of the natural and the adversarial distance: CEAT(lambda, mu) in the paper's
        tables. (5, 1) favours clean accuracy, (1, 5) robustness.
    lam_exp, mu_exp : float, default=None
        Exponents of the disparity weights; None ties them to `lam` and `mu` as printed.
    peers : {"pair_sum", "pair_mean", "range", "exp_pair_mean"}, default="pair_sum"
        How the disparities of more than two peers combine; see `disparity_weights`.
    distance_on : {"probabilities", "logits"}, default="probabilities"
        What f is in the distances.
    distance_reduce : {"sum", "mean"}, default="sum"
        Over the classes.
    stop_gradient_clean : bool, default=False
        Whether the adversarial distance leaves the clean output alone.
    normalize_weights : bool, default=False
        Whether each batch's disparity weights are divided by their mean.
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
    .. [1] Li et al., "CEAT", 2025, arXiv:2509.00089.

    Examples
    --------
    >>> from robust_ensembles import CEATEnsembleClassifier
    >>> from robust_ensembles.attacks import PGD
    >>> clf = CEATEnsembleClassifier(lam=5.0, mu=1.0, attack=PGD(eps=0.1, n_steps=10))
    """

    lam: float = 1.0
    mu: float = 5.0
    lam_exp: float | None = None
    mu_exp: float | None = None
    peers: Peers = "pair_sum"
    distance_on: Literal["probabilities", "logits"] = "probabilities"
    distance_reduce: Literal["sum", "mean"] = "sum"
    stop_gradient_clean: bool = False
    normalize_weights: bool = False
    clean_cross_entropy: bool = False

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseEnsembleClassifier._parameter_constraints,
        **AdversarialTrainingMixin._adversarial_constraints,
        "lam": [Interval(Real, 0, None, closed="left")],
        "mu": [Interval(Real, 0, None, closed="left")],
        "lam_exp": [Interval(Real, 0, None, closed="left"), None],
        "mu_exp": [Interval(Real, 0, None, closed="left"), None],
        "peers": [StrOptions(set(get_args(Peers)))],
        "distance_on": [StrOptions({"probabilities", "logits"})],
        "distance_reduce": [StrOptions({"sum", "mean"})],
        "stop_gradient_clean": ["boolean"],
        "normalize_weights": ["boolean"],
        "clean_cross_entropy": ["boolean"],
    }

    def _check_method(self, n_classes: int) -> None:
        self._check_attack()
        if self.formulation == "released":
            raise ValueError(
                "no code was released for CEAT, so formulation='released' means nothing; use "
                "formulation='paper'"
            )
        if self.n_estimators < 3:
            warnings.warn(
                f"CEAT with n_estimators={self.n_estimators}: no member has two peers that could "
                "disagree, so all disparity weights are 1. Use 3 or more.",
                stacklevel=5,
            )

    def _objective(self, step: TrainingStep) -> dict[str, Tensor]:
        # the clean forward comes after crafting: the members are not in the middle of an update
        adversarial = self._adversarial_logits(step)
        losses = member_cross_entropy(adversarial, step.y, step.sample_weight)
        terms = {"adversarial_cross_entropy": losses.sum()}
        if self.lam == self.mu == 0 and not self.clean_cross_entropy:
            # plain adversarial training: a clean forward would only move BatchNorm's statistics
            return terms
        clean = step.module.member_logits(step.x)
        one_hot = F.one_hot(step.y, clean.shape[-1]).to(clean.dtype)
        anchor = self._output(clean.detach() if self.stop_gradient_clean else clean)
        lam_exp = self.lam if self.lam_exp is None else self.lam_exp
        mu_exp = self.mu if self.mu_exp is None else self.mu_exp
        terms["natural_distance"] = self.lam * self._distance(clean, one_hot, lam_exp, step)
        terms["adversarial_distance"] = self.mu * self._distance(adversarial, anchor, mu_exp, step)
        if self.clean_cross_entropy:
            losses = member_cross_entropy(clean, step.y, step.sample_weight)
            terms["clean_cross_entropy"] = losses.sum()
        return terms

    def _distance(
        self, logits: Tensor, anchor: Tensor, exponent: float, step: TrainingStep
    ) -> Tensor:
        """Weighted distance of the outputs from an anchor: Eqs. 17 to 19, or 20 and 21."""
        distance = squared_distance(self._output(logits), anchor, reduce=self.distance_reduce)
        weights = disparity_weights(_true_class(logits, step.y), exponent, peers=self.peers)
        return weighted_distance(
            weights, distance, step.sample_weight, normalize=self.normalize_weights
        )

    def _output(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1) if self.distance_on == "probabilities" else logits


def _true_class(logits: Tensor, y: Tensor) -> Tensor:
    """Probabilities h of the true class, (n_members, n_samples)."""
    index = y.expand(len(logits), -1).unsqueeze(-1)
    return logits.softmax(dim=-1).gather(-1, index).squeeze(-1)
