"""GPMR (Dabouei et al. 2020), from NCEn's re-implementation: a simplex of equal gradients."""

from torch import Tensor

from .ensemble import Formulation, batch_mean
from .geometry import pair_cosines, safe_norm


def gpmr_regularizer(
    g: Tensor,
    *,
    lambda_div: float,
    lambda_eq: float,
    formulation: Formulation = "paper",
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""GPMR's regulariser: gradients at the corners of a regular simplex, of equal lengths.

    .. math:: \lambda_{div} \frac1B\sum_b \tfrac{2}{N(N-1)} \sum_{i<j}
              \Big(\cos(g_{ib}, g_{jb}) + \tfrac{1}{N-1}\Big)^2 + \lambda_{eq} L_{eq}

    .. math:: L_{eq} = \tfrac1N \sum_i (n_i - \bar n)^2

    Parameters
    ----------
    g : Tensor of shape (n_members, n_samples, n_features)
        Gradients of batch *means* (each carries 1 / n_samples).
    lambda_div, lambda_eq : float
    formulation : {"paper", "released"}, default="paper"
        Definition of n_i. ``"paper"`` balances the members on each sample: n_i is the length of
        the sample's own gradient, and the mean over the batch is scaled by 1 / (N^2 B), which is
        about the released scale. ``"released"`` takes one Frobenius norm per member over the
        whole batch, of gradients with another factor 1 / N.
    sample_weight : Tensor of shape (n_samples,), default=None

    Returns
    -------
    regularizer : scalar Tensor
        0 for a single member.
    """
    n_members, n_samples = g.shape[:2]
    if n_members < 2:
        return g.new_zeros(())
    deviations = pair_cosines(g) + 1 / (n_members - 1)
    divergence = batch_mean(deviations.square().mean(dim=0), sample_weight)
    if formulation == "released":
        # the gradient of the weighted loss, whose norm over the batch the released code balances
        weighted = g if sample_weight is None else g * sample_weight[:, None]
        norms = safe_norm(weighted.flatten(1)) / n_members
        return lambda_div * divergence + lambda_eq * _spread(norms)
    scale = lambda_eq / (n_members**2 * n_samples)
    equality = batch_mean(_spread(n_samples * safe_norm(g)), sample_weight)
    return lambda_div * divergence + scale * equality


def _spread(norms: Tensor) -> Tensor:
    """Variance over members."""
    return norms.var(dim=0, correction=0)
