"""CEAT (Li et al. 2025): distance regularisers weighted by the disparity of a member's peers."""

from typing import Literal

import torch
from torch import Tensor

Peers = Literal["pair_sum", "pair_mean", "range", "exp_pair_mean"]


def disparity_weights(h: Tensor, tau: float, *, peers: Peers = "pair_sum") -> Tensor:
    r"""Weight of each sample in training each member: how much that member's peers disagree.

    For three members, training a with peers b and c (Eq. 18):
    :math:`w_a = \exp(\tau |h_b - h_c|)`. For any number, with the pairs {j, k} of m's peers and
    their number Q,

    .. math:: w_m = 1 + \kappa \sum_{\{j,k\}} \big( e^{\tau |h_j - h_k|} - 1 \big)

    which is the same for three members, 1 when all peers agree, and larger for every pair that
    does not. The paper is not specific about more than three: this is our reading.

    Parameters
    ----------
    h : Tensor of shape (n_members, n_samples)
        True-class probabilities. Detached here: a member must not be taught to agree with its
        peers through their weights.
    tau : float
        Exponent (the paper's lambda or mu).
    peers : {"pair_sum", "pair_mean", "range", "exp_pair_mean"}, default="pair_sum"
        kappa = 1; kappa = 1/Q; ``exp(tau (max h - min h))`` over the peers; or the exponential of
        tau times the mean disparity of the pairs.

    Returns
    -------
    weights : Tensor of shape (n_members, n_samples)
        All ones for fewer than three members, since no member has two peers.
    """
    h = h.detach()
    if len(h) < 3:
        return torch.ones_like(h)
    return torch.stack([_peer_weight(_without(h, m), tau, peers) for m in range(len(h))])


def _without(h: Tensor, member: int) -> Tensor:
    return torch.cat([h[:member], h[member + 1 :]])


def _peer_weight(h: Tensor, tau: float, peers: Peers) -> Tensor:
    if peers == "range":
        return (tau * (h.amax(dim=0) - h.amin(dim=0))).exp()
    j, k = torch.triu_indices(len(h), len(h), offset=1, device=h.device)
    disparities = (h[j] - h[k]).abs()
    if peers == "exp_pair_mean":
        return (tau * disparities.mean(dim=0)).exp()
    excess = torch.expm1(tau * disparities)
    return 1 + (excess.sum(dim=0) if peers == "pair_sum" else excess.mean(dim=0))


def squared_distance(a: Tensor, b: Tensor, *, reduce: Literal["sum", "mean"] = "sum") -> Tensor:
    """Squared L2 distance over classes, the distance of CEAT's Eqs. 17 and 20.

    Parameters
    ----------
    a, b : Tensor of shape (..., n_classes)
    reduce : {"sum", "mean"}, default="sum"
        ``"mean"`` divides by the number of classes.

    Returns
    -------
    distance : Tensor of shape (...)
    """
    squares = (a - b).square()
    return squares.sum(dim=-1) if reduce == "sum" else squares.mean(dim=-1)


def weighted_distance(
    weights: Tensor,
    distances: Tensor,
    sample_weight: Tensor | None = None,
    *,
    normalize: bool = False,
) -> Tensor:
    """Sum over members of the batch mean of weighted distances (Eqs. 19 and 21).

    Parameters
    ----------
    weights, distances : Tensor of shape (n_members, n_samples)
    sample_weight : Tensor of shape (n_samples,), default=None
    normalize : bool, default=False
        Divide each member's weights by their mean over the batch.

    Returns
    -------
    regularizer : scalar Tensor
    """
    if normalize:
        weights = weights / weights.mean(dim=1, keepdim=True)
    per_sample = weights * distances
    if sample_weight is not None:
        per_sample = per_sample * sample_weight
    return per_sample.mean(dim=1).sum()
