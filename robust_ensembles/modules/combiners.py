"""Rules that combine the members' outputs into the ensemble's output.

Everything that needs the output of an ensemble (its forward pass, predictions, losses and success
of attacks, sanity checks) uses its combiner, so that a rule other than the mean probability is
another class here.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..losses import ensemble_log_proba


class Combiner(Protocol):
    """Maps the members' outputs to the ensemble's log-probabilities."""

    def log_proba(self, member_logits: Tensor) -> Tensor:
        """Log-probabilities of the ensemble, differentiable.

        Parameters
        ----------
        member_logits : Tensor of shape (n_members, n_samples, n_classes)
            Logits or log-probabilities of the members.

        Returns
        -------
        log_proba : Tensor of shape (n_samples, n_classes)
        """

    def predicted_log_proba(self, member_log_proba: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same for members' predictions, in double precision.

        Parameters
        ----------
        member_log_proba : ndarray of shape (n_members, n_samples, n_classes)

        Returns
        -------
        log_proba : ndarray of shape (n_samples, n_classes)
        """


class MeanProbability:
    """The mean of the members' probabilities."""

    def log_proba(self, member_logits: Tensor) -> Tensor:
        """Log mean probability, (n_samples, n_classes); see `losses.ensemble_log_proba`."""
        return ensemble_log_proba(member_logits)

    def predicted_log_proba(self, member_log_proba: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log mean probability of the members' predictions, (n_samples, n_classes)."""
        total: NDArray[np.float64] = np.logaddexp.reduce(member_log_proba, axis=0)
        return total - np.log(len(member_log_proba))

    def __repr__(self) -> str:
        return "MeanProbability()"


MEAN_PROBABILITY = MeanProbability()


def combiner_of(module: nn.Module) -> Combiner:
    """The combiner of an ensemble; the mean probability for a module without one.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    combiner : Combiner
    """
    combiner: Any = getattr(module, "combiner", MEAN_PROBABILITY)
    return combiner
