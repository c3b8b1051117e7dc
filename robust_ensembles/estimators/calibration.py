"""CEAT's collaborative calibration: its distance terms, for itself and for every other method."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, ClassVar, Literal, get_args

import torch.nn.functional as F
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from ..losses import Peers, disparity_weights, squared_distance, weighted_distance
from ..training import TrainingStep


@dataclass(repr=False, eq=False)
class CalibrationParameters:
    r"""Parameters of CEAT's two distances, and the distances.

    For each member m, with the clean input x and the adversarial one :math:`\tilde x`
    (Eqs. 17 to 21),

    .. math:: \lambda\, w_m(x; \lambda)\, |p_m(x) - y|^2
              + \mu\, w_m(\tilde x; \mu)\, |p_m(\tilde x) - p_m(x)|^2

    where for three members :math:`w_a(x; \tau) = \exp(\tau |h_b(x) - h_c(x)|)` with h the
    true-class probability of the two others; `disparity_weights` has the form for any number.

    Parameters
    ----------
    lam, mu : float, default=1.0 and 5.0
        Weights of the natural and of the adversarial distance.
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
    """

    lam: float = 1.0
    mu: float = 5.0
    _: KW_ONLY
    lam_exp: float | None = None
    mu_exp: float | None = None
    peers: Peers = "pair_sum"
    distance_on: Literal["probabilities", "logits"] = "probabilities"
    distance_reduce: Literal["sum", "mean"] = "sum"
    stop_gradient_clean: bool = False
    normalize_weights: bool = False

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "lam": [Interval(Real, 0, None, closed="left")],
        "mu": [Interval(Real, 0, None, closed="left")],
        "lam_exp": [Interval(Real, 0, None, closed="left"), None],
        "mu_exp": [Interval(Real, 0, None, closed="left"), None],
        "peers": [StrOptions(set(get_args(Peers)))],
        "distance_on": [StrOptions({"probabilities", "logits"})],
        "distance_reduce": [StrOptions({"sum", "mean"})],
        "stop_gradient_clean": ["boolean"],
        "normalize_weights": ["boolean"],
    }

    def _distances(
        self, step: TrainingStep, clean: Tensor, adversarial: Tensor
    ) -> dict[str, Tensor]:
        """Both distances by name, from logits of the clean and of the adversarial batch."""
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
        """Weighted distance of the outputs from an anchor: Eqs. 17 to 19, or 20 and 21."""
        distance = squared_distance(self._output(logits), anchor, reduce=self.distance_reduce)
        weights = disparity_weights(_true_class(logits, step.y), exponent, peers=self.peers)
        return weighted_distance(
            weights, distance, step.sample_weight, normalize=self.normalize_weights
        )

    def _output(self, logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1) if self.distance_on == "probabilities" else logits


@dataclass(repr=False, eq=False)
class CollaborativeCalibration(CalibrationParameters, BaseEstimator):
    """CEAT's regulariser as a plug-in for any adversarially trained ensemble ("+L^D").

    Give it as `calibration` to an estimator that has an attack. The equations and all parameters
    are those of `CalibrationParameters`; `lam` and `mu` may be given by position.

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
        return self._distances(step, clean, adversarial)


def warn_without_peers(owner: str, n_members: int, *, depth: int) -> None:
    """Warn, while a fit checks its parameters, if disparity weights are all 1.

    Parameters
    ----------
    owner : str
    n_members : int
    depth : int
        Calls between this one and the user's, which the warning shows.
    """
    if n_members < 3:
        warnings.warn(
            f"{owner} with n_estimators={n_members}: no member has two peers that could disagree, "
            "so all disparity weights are 1. Use 3 or more.",
            stacklevel=depth,
        )


def _true_class(logits: Tensor, y: Tensor) -> Tensor:
    """Probabilities h of the true class, (n_members, n_samples)."""
    index = y.expand(len(logits), -1).unsqueeze(-1)
    return logits.softmax(dim=-1).gather(-1, index).squeeze(-1)
