"""FASTEN (Huang et al. 2023): divergence within a member's views, and between members."""

import torch.nn.functional as F
from torch import Tensor

from .ensemble import batch_mean, log_mean


def intra_model_divergence(log_q: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    r"""Divergence of one member's predictions for several views of a sample from their mean.

    .. math:: \frac{1}{|V|}\sum_{v\in V} \mathrm{KL}(\bar q \,\|\, q_v), \qquad
              \bar q = \frac{1}{|V|}\sum_v q_v

    Parameters
    ----------
    log_q : Tensor of shape (n_views, n_samples, n_classes)
        Log-probabilities.
    sample_weight : Tensor of shape (n_samples,), default=None

    Returns
    -------
    divergence : scalar Tensor
        Batch mean.
    """
    per_sample = _divergence(log_mean(log_q), log_q.mean(dim=0))
    return batch_mean(per_sample, sample_weight)


def inter_model_divergence(
    log_q: Tensor,
    log_mean_q_of_peer: Tensor,
    sample_weight: Tensor | None = None,
    *,
    cap: float | None = None,
) -> Tensor:
    r"""Divergence of one member's predictions from a peer's.

    .. math:: \sum_c \bar q_{jc}
              \Big(\log \bar q_{jc} - \frac{1}{|V|} \sum_v \log q_{ivc}\Big)

    Parameters
    ----------
    log_q : Tensor of shape (n_views, n_samples, n_classes)
        Log-probabilities of member i for its views.
    log_mean_q_of_peer : Tensor of shape (n_samples, n_classes)
        Logarithm of the mean of member j's probabilities over its own views; see `log_mean`.
    sample_weight : Tensor of shape (n_samples,), default=None
    cap : float, default=None
        Upper bound of each sample's value: without one, rewarding the term can diverge.

    Returns
    -------
    divergence : scalar Tensor
        Batch mean.
    """
    per_sample = _divergence(log_mean_q_of_peer, log_q.mean(dim=0))
    if cap is not None:
        per_sample = per_sample.clamp_max(cap)
    return batch_mean(per_sample, sample_weight)


def _divergence(log_p: Tensor, mean_log_q: Tensor) -> Tensor:
    """KL divergence of a mean of log-probabilities from p, (n_samples,)."""
    return F.kl_div(mean_log_q, log_p, reduction="none", log_target=True).sum(dim=-1)
