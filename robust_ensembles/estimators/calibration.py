"""CEAT's collaborative calibration: its distance terms, for CEAT and as a plug-in for others."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import torch.nn.functional as F
from sklearn.base import BaseEstimator
from torch import Tensor

from .._checks import warn
from .._parameters import at_least, choice, declared, flag, param
from ..losses import Peers, disparity_weights, squared_distance, weighted_distance
from ..training import TrainingStep


@dataclass(repr=False, eq=False)
@declared
class CalibrationParameters:
    """Parameters of CEAT's two distances, shared by CEAT and the plug-in.

    See `CollaborativeCalibration` for the equations.

    Parameters
    ----------
    lam : float, default=1.0
        Weight of the natural distance.
    mu : float, default=5.0
        Weight of the adversarial distance.
    lam_exp : float, default=None
        Exponent of the natural distance's disparity weights; None ties it to `lam`, as printed.
    mu_exp : float, default=None
        Exponent of the adversarial distance's disparity weights; None ties it to `mu`.
    peers : {"pair_sum", "pair_mean", "range", "exp_pair_mean"}, default="pair_sum"
        How to combine the disparities of more than two peers; see `disparity_weights`.
    distance_on : {"probabilities", "logits"}, default="probabilities"
        The outputs that the distances compare.
    distance_reduce : {"sum", "mean"}, default="sum"
        Reduction over the classes.
    stop_gradient_clean : bool, default=False
        Whether the adversarial distance does not propagate gradients to the clean output.
    normalize_weights : bool, default=False
        Whether to divide each batch's disparity weights by their mean.
    """

    lam: float = param(1.0, at_least(0))
    mu: float = param(5.0, at_least(0))
    _: KW_ONLY
    lam_exp: float | None = param(None, at_least(0), None)
    mu_exp: float | None = param(None, at_least(0), None)
    peers: Peers = param("pair_sum", choice(*get_args(Peers)))
    distance_on: Literal["probabilities", "logits"] = param(
        "probabilities", choice("probabilities", "logits")
    )
    distance_reduce: Literal["sum", "mean"] = param("sum", choice("sum", "mean"))
    stop_gradient_clean: bool = param(False, flag())
    normalize_weights: bool = param(False, flag())

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared(cls)


@dataclass(repr=False, eq=False)
class CollaborativeCalibration(CalibrationParameters, BaseEstimator):
    r"""CEAT's regulariser as a plug-in for any adversarially trained ensemble ("+L^D").

    Pass it as `calibration` to an estimator with an attack. For each member m, with the clean
    input x and the adversarial input :math:`\tilde x`, it adds (Eqs. 17 to 21)

    .. math:: \lambda\, w_m(x; \lambda)\, |p_m(x) - y|^2
              + \mu\, w_m(\tilde x; \mu)\, |p_m(\tilde x) - p_m(x)|^2

    where for three members :math:`w_a(x; \tau) = \exp(\tau |h_b(x) - h_c(x)|)` with h the
    true-class probability of the two others; `disparity_weights` has the form for any number.
    `lam` and `mu` may be positional arguments.

    References
    ----------
    .. [1] D. Li et al., "Learning from Peers: Collaborative Ensemble Adversarial Training", 2025,
       arXiv:2509.00089, Table 2.

    Examples
    --------
    >>> from robust_ensembles import CollaborativeCalibration, GALEnsembleClassifier
    >>> from robust_ensembles.attacks import PGD
    >>> clf = GALEnsembleClassifier(
    ...     attack=PGD(eps=0.1), calibration=CollaborativeCalibration(lam=1.0, mu=5.0)
    ... )
    """

    def terms(self, step: TrainingStep, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """Both distances, summed over the members.

        Parameters
        ----------
        step : TrainingStep
        clean, adversarial : Tensor of shape (n_members, n_samples, n_classes)
            Logits.

        Returns
        -------
        terms : dict of scalar Tensors
        """
        one_hot = F.one_hot(step.y, clean.shape[-1]).to(clean.dtype)
        anchor = self._output(clean.detach() if self.stop_gradient_clean else clean)
        lam_exp = self.lam if self.lam_exp is None else self.lam_exp
        mu_exp = self.mu if self.mu_exp is None else self.mu_exp
        return {
            "natural_distance": self.lam * self._distance(clean, one_hot, lam_exp, step),
            "adversarial_distance": self.mu * self._distance(adversarial, anchor, mu_exp, step),
        }

    def _distance(
        self, logits: Tensor, anchor: Tensor, exponent: float, step: TrainingStep
    ) -> Tensor:
        """Weighted distance of the outputs from an anchor: Eqs. 17 to 19, or Eqs. 20 and 21."""
        distance = squared_distance(self._output(logits), anchor, reduce=self.distance_reduce)
        weights = disparity_weights(_true_class(logits, step.y), exponent, peers=self.peers)
        return weighted_distance(
            weights, distance, step.sample_weight, normalize=self.normalize_weights
        )

    def _output(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1) if self.distance_on == "probabilities" else logits


def warn_without_peers(owner: str, n_members: int) -> None:
    """Warn if disparity weights are all 1.

    Parameters
    ----------
    owner : str
    n_members : int
    """
    if n_members < 3:
        warn(
            f"{owner} with n_estimators={n_members}: no member has two peers that could disagree, "
            "so all disparity weights are 1. Use 3 or more."
        )


def _true_class(logits: Tensor, y: Tensor) -> Tensor:
    """Probabilities h of the true class, (n_members, n_samples)."""
    index = y.expand(len(logits), -1).unsqueeze(-1)
    return logits.softmax(dim=-1).gather(-1, index).squeeze(-1)
