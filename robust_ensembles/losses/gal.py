"""GAL (Kariyappa and Qureshi 2019): gradient alignment loss."""

import torch
from torch import Tensor

from .ensemble import batch_mean
from .geometry import CosineEpsMode, pair_cosines


def gal_regularizer(
    g: Tensor, *, cos_eps_mode: CosineEpsMode = "torch2", sample_weight: Tensor | None = None
) -> Tensor:
    r"""Coherence of the members' input gradients (penalised).

    .. math:: \frac1B \sum_b \log \sum_{i<j} \exp(\cos(g_{ib}, g_{jb}))

    with the signed cosine and without dividing by the number of pairs: log(n_pairs) for orthogonal
    gradients, which is not the minimum.

    Parameters
    ----------
    g : Tensor of shape (n_members, n_samples, n_features)
        Input gradients.
    cos_eps_mode : {"torch2", "torch1"}, default="torch2"
        See `pair_cosines`.
    sample_weight : Tensor of shape (n_samples,), default=None

    Returns
    -------
    coherence : scalar Tensor
        0 for a single member.
    """
    if len(g) < 2:
        return g.new_zeros(())
    cosines = pair_cosines(g, eps_mode=cos_eps_mode)
    return batch_mean(torch.logsumexp(cosines, dim=0), sample_weight)
