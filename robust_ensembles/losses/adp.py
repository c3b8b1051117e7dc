"""ADP (Pang et al. 2019): diversity of the members' predictions for the wrong classes."""

import torch
from torch import Tensor

from .ensemble import batch_mean, without_true_class

_NORM_EPS = 1e-12
_DETERMINANT_EPS = 1e-6
_ENTROPY_EPS = 1e-20


def adp_regularizer(
    p: Tensor,
    y: Tensor,
    *,
    alpha: float,
    beta: float,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""ADP's regulariser: rewards the ensemble's entropy and the members' diversity.

    .. math:: -\alpha\, H(\bar p) - \beta \log\det(\hat M^T \hat M + 10^{-6} I)

    with the matrix of `non_true_log_determinant`. It is added to the *summed* cross-entropy.

    Parameters
    ----------
    p : Tensor of shape (n_members, n_samples, n_classes)
        Probabilities.
    y : Tensor of shape (n_samples,)
        Class indices.
    alpha, beta : float
        Weights of the entropy and of the log-determinant.
    sample_weight : Tensor of shape (n_samples,), default=None

    Returns
    -------
    regularizer : scalar Tensor
    """
    mean = p.mean(dim=0)
    entropy = -(mean * (mean + _ENTROPY_EPS).log()).sum(dim=1)
    per_sample = -alpha * entropy - beta * non_true_log_determinant(p, y)
    return batch_mean(per_sample, sample_weight)


def non_true_log_determinant(p: Tensor, y: Tensor) -> Tensor:
    r"""Logarithm of the squared volume that the members' non-true predictions span.

    .. math:: \log\det(\hat M^T \hat M + 10^{-6} I)

    Column i of :math:`\hat M` is p_i without the true class, scaled to unit length.

    Parameters
    ----------
    p : Tensor of shape (n_members, n_samples, n_classes)
    y : Tensor of shape (n_samples,)

    Returns
    -------
    log_determinant : Tensor of shape (n_samples,)
        About 0 for orthogonal columns; about ``-13.8 (n_members - 1)`` for parallel ones, and
        never far above that with ``n_members > n_classes - 1``.
    """
    columns = without_true_class(p, y).transpose(0, 1)
    # with all mass on the true class, columns would have length zero
    unit = columns / (columns.square().sum(dim=-1, keepdim=True) + _NORM_EPS).sqrt()
    ridge = _DETERMINANT_EPS * torch.eye(len(p), dtype=p.dtype, device=p.device)
    return torch.linalg.slogdet(unit @ unit.transpose(1, 2) + ridge).logabsdet
