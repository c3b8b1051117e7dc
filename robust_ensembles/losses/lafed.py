"""LAFED (Zhuang et al. 2024): labels smoothed to a different degree for each member."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .ensemble import Formulation


def hierarchical_labels(
    y: Tensor,
    *,
    n_members: int,
    n_classes: int,
    smoothing: float,
    formulation: Formulation = "paper",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    r"""Smoothed labels of every member: none for the first, most for the last.

    .. math:: t_i = (1 - s_i)\,\mathrm{onehot}(y) + \frac{s_i}{C-1}(1 - \mathrm{onehot}(y)),
              \qquad s_i = s\,\frac{i}{N-1}

    Parameters
    ----------
    y : Tensor of shape (n_samples,)
        Class indices.
    n_members, n_classes : int
    smoothing : float
        s, the probability that the last member's labels assign to the other classes.
    formulation : {"paper", "released"}, default="paper"
        The abstract gives no formula: ``"paper"`` is our reading. ``"released"`` clamps the
        one-hot label to [s i / (C-1), 1 - s], which sums to one for no member but the second
        (for three).
    dtype : torch.dtype, default=torch.float32

    Returns
    -------
    labels : Tensor of shape (n_members, n_samples, n_classes)
    """
    one_hot = F.one_hot(y, n_classes).to(dtype)
    member = torch.arange(n_members, device=y.device, dtype=dtype).view(-1, 1, 1)
    if formulation == "released":
        floor = smoothing * member / (n_classes - 1)
        return one_hot.clamp_max(1 - smoothing).maximum(floor)
    s = smoothing * member / max(n_members - 1, 1)
    return (1 - s) * one_hot + s / (n_classes - 1) * (1 - one_hot)


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Cross-entropy with soft labels, :math:`-\sum_c t_c \log p_c`, per sample.

    Parameters
    ----------
    logits, labels : Tensor of shape (..., n_samples, n_classes)

    Returns
    -------
    cross_entropy : Tensor of shape (..., n_samples)
    """
    return -(labels * F.log_softmax(logits, dim=-1)).sum(dim=-1)
