"""TRS (Yang et al. 2021): transferability reduced smooth ensembles."""

from torch import Tensor

from .ensemble import batch_mean
from .geometry import CosineEpsMode, pair_cosines, safe_norm


def trs_similarity(
    g: Tensor, *, cos_eps_mode: CosineEpsMode = "torch2", sample_weight: Tensor | None = None
) -> Tensor:
    r"""Similarity of the members' input gradients, TRS's first term, unweighted.

    .. math:: \frac1B \sum_b \tfrac{2}{N(N-1)} \sum_{i<j} |\cos(g_{ib}, g_{jb})|

    Parameters
    ----------
    g : Tensor of shape (n_members, n_samples, n_features)
        Input gradients.
    cos_eps_mode : {"torch2", "torch1"}, default="torch2"
        See `pair_cosines`.
    sample_weight : Tensor of shape (n_samples,), default=None

    Returns
    -------
    similarity : scalar Tensor
        0 for a single member.
    """
    if len(g) < 2:
        return g.new_zeros(())
    return batch_mean(pair_cosines(g, eps_mode=cos_eps_mode).abs().mean(dim=0), sample_weight)


def trs_smoothness(
    g: Tensor, *, norm_power: int = 2, sample_weight: Tensor | None = None
) -> Tensor:
    r"""Length of the members' input gradients, TRS's second term, unweighted.

    .. math:: \frac1B \sum_b \frac2N \sum_i |g_{ib}|_2^2

    The paper sums over the two ends of each pair and averages over pairs, hence the 2.

    Parameters
    ----------
    g : Tensor of shape (n_members, n_samples, n_features)
        Input gradients. Published coefficients assume those of batch means, which carry a factor
        of 1 / n_samples.
    norm_power : {2, 1}, default=2
        The released code squares the lengths, the paper does not.
    sample_weight : Tensor of shape (n_samples,), default=None

    Returns
    -------
    smoothness : scalar Tensor
    """
    lengths = g.square().sum(dim=-1) if norm_power == 2 else safe_norm(g)
    return batch_mean(2 * lengths.mean(dim=0), sample_weight)
