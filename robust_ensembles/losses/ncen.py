"""NCEn (Luo et al. 2022): negative correlation of gradient directions and magnitudes."""

import torch
from torch import Tensor

from .ensemble import Formulation, batch_mean
from .geometry import cosine, safe_norm

_TINY = 1e-12


def gradient_correlations(g: Tensor) -> tuple[Tensor, Tensor]:
    r"""Directions c_i and relative magnitudes u_i of the gradients, which NCEn correlates.

    .. math:: c_i = \cos(g_i, \bar g), \qquad u_i = (|g_i| - \bar n) / \bar n,
              \qquad \bar n = \tfrac1k \sum_j |g_j|

    Neither mean is detached. Both are invariant to a common scale of all gradients.

    Parameters
    ----------
    g : Tensor of shape (n_members, n_samples, n_features)

    Returns
    -------
    c, u : Tensor of shape (n_members, n_samples)
    """
    c = cosine(g, g.mean(dim=0, keepdim=True))
    norms = safe_norm(g)
    mean_norm = norms.mean(dim=0, keepdim=True)
    return c, (norms - mean_norm) / (mean_norm + _TINY)


def nceen_regularizer(
    g: Tensor,
    *,
    lambda_cos: float,
    lambda_norm: float,
    formulation: Formulation = "paper",
    norm_sign: int = 1,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""NCEn's regulariser (Eq. 10): penalised correlation of the members' gradients.

    Paper, per sample:

    .. math:: \frac1k \sum_i \Big( \lambda_{cos}\, c_i \sum_{j\ne i} c_j
              + \lambda_{norm}\, u_i \sum_{j\ne i} u_j \Big)

    Released code, per sample:

    .. math:: \lambda_{cos} \log \sum_i e^{c_i} \sum_{j\ne i} e^{c_j}
              + \lambda_{norm} \log \sum_i \exp\Big( u_i \tfrac1k \sum_{j\ne i} u_j \Big)

    Parameters
    ----------
    g : Tensor of shape (n_members, n_samples, n_features)
        Input gradients.
    lambda_cos, lambda_norm : float
        Weights of the two terms.
    formulation : {"paper", "released"}, default="paper"
    norm_sign : {1, -1}, default=1
        The u_i sum to zero, hence u_i times the sum of the others is -u_i^2, and minimising it
        with a positive weight drives the magnitudes *apart*, although the paper states that it
        balances them. -1 balances them.
    sample_weight : Tensor of shape (n_samples,), default=None

    Returns
    -------
    regularizer : scalar Tensor

    Notes
    -----
    For a single member, the paper's form is 0, and so is this function for both formulations.
    """
    n_members = len(g)
    if n_members < 2:
        return g.new_zeros(())
    c, u = gradient_correlations(g)
    other_u = u.sum(dim=0) - u
    if formulation == "paper":
        direction = (c * (c.sum(dim=0) - c)).mean(dim=0)
        magnitude = (u * other_u).mean(dim=0)
    else:
        i, j = torch.triu_indices(n_members, n_members, offset=1, device=g.device)
        both_orders = torch.cat([c[i] + c[j], c[j] + c[i]])
        direction = torch.logsumexp(both_orders, dim=0)
        magnitude = torch.logsumexp(u * other_u / n_members, dim=0)
    per_sample = lambda_cos * direction + norm_sign * lambda_norm * magnitude
    return batch_mean(per_sample, sample_weight)
