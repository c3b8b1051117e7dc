"""CLDL (Wang and Liu 2022): learned soft labels, their diversity, and gradient diversity."""

import math
from typing import Literal

import torch
from torch import Tensor

from .ensemble import Formulation, batch_mean, without_true_class
from .geometry import CosineEpsMode, pair_cosines

_TINY = 1e-12
_OFFSET = 1e-6  # of the released code, in its logarithms


def soft_label_divergence(
    s: Tensor, log_p: Tensor, *, formulation: Formulation = "paper"
) -> Tensor:
    r"""KL divergence of predictions from soft labels, per sample, CLDL's l_i.

    .. math:: l_i = \sum_c s_{ic} \log(s_{ic} / p_{ic})

    Nothing is detached: the label confusion model learns from the same loss.

    Parameters
    ----------
    s : Tensor of shape (..., n_samples, n_classes)
        Soft labels.
    log_p : Tensor of shape (..., n_samples, n_classes)
        Log-probabilities of the members.
    formulation : {"paper", "released"}, default="paper"
        The released code adds 1e-6 to both probabilities before their logarithm, which bounds
        the loss at about 14.

    Returns
    -------
    divergence : Tensor of shape (..., n_samples)
    """
    if formulation == "released":
        return (s * ((s + _OFFSET).log() - (log_p.exp() + _OFFSET).log())).sum(dim=-1)
    return (s * (s.clamp_min(_TINY).log() - log_p)).sum(dim=-1)


def cldl_label_diversity(
    s: Tensor,
    y: Tensor,
    *,
    formulation: Formulation = "paper",
    jsd_reduction: Literal["sample", "element_mean"] | None = None,
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Diversity of the members' soft labels, CLDL's l_ld (rewarded in the objective).

    .. math:: l_{ld} = \frac1B \sum_b
              \log\Big( \tfrac{2}{N(N-1)} \sum_{i<j} \exp \mathrm{JSD}(s_i^y, s_j^y) \Big)

    with the Jensen-Shannon divergence in bits over the classes other than y, which are not
    renormalised.

    Parameters
    ----------
    s : Tensor of shape (n_members, n_samples, n_classes)
        Soft labels; ``"released"`` code passes the label confusion vectors instead.
    y : Tensor of shape (n_samples,)
        Class indices.
    formulation : {"paper", "released"}, default="paper"
        Sets `jsd_reduction`: ``"sample"`` for the paper, ``"element_mean"`` for the code.
    jsd_reduction : {"sample", "element_mean"}, default=None
        ``"element_mean"`` averages each divergence over samples *and* classes before the
        logarithm, n_classes - 1 times smaller.
    sample_weight : Tensor of shape (n_samples,), default=None

    Returns
    -------
    diversity : scalar Tensor
        0 for a single member.
    """
    n_members, _, n_classes = s.shape
    if n_members < 2:
        return s.new_zeros(())
    if jsd_reduction is None:
        jsd_reduction = "sample" if formulation == "paper" else "element_mean"
    s_y = without_true_class(s, y)
    i, j = torch.triu_indices(n_members, n_members, offset=1, device=s.device)
    divergences = _jensen_shannon(s_y[i], s_y[j])
    if jsd_reduction == "element_mean":
        if sample_weight is not None:
            divergences = divergences * sample_weight
        elements = divergences.mean(dim=1) / (n_classes - 1)
        return (elements.exp().mean() + _OFFSET).log()
    log_mean = torch.logsumexp(divergences, dim=0) - math.log(len(i))
    return batch_mean(log_mean, sample_weight)


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence in bits over the last axis."""
    p, q = p.clamp_min(_TINY), q.clamp_min(_TINY)
    log_middle = ((p + q) / 2).log()
    nats = p * (p.log() - log_middle) + q * (q.log() - log_middle)
    return nats.sum(dim=-1) / (2 * math.log(2))


def cldl_gradient_diversity(
    g: Tensor,
    *,
    formulation: Formulation = "paper",
    gradient_norm: Literal["pairs", "members"] | None = None,
    cos_eps_mode: CosineEpsMode = "torch2",
    sample_weight: Tensor | None = None,
) -> Tensor:
    r"""Alignment of the members' input gradients, CLDL's l_gd (Eq. 10; penalised).

    .. math:: l_{gd} = \frac1B\sum_b \tfrac{2}{N(N-1)} \sum_{i<j} |\cos(g_{ib}, g_{jb})|

    Parameters
    ----------
    g : Tensor of shape (n_members, n_samples, n_features)
        Input gradients.
    formulation : {"paper", "released"}, default="paper"
        Sets `gradient_norm`: ``"pairs"`` for the paper, ``"members"`` for the code.
    gradient_norm : {"pairs", "members"}, default=None
        Divisor of the sum over pairs: the number of pairs, or the number of members, which gives
        (n_members - 1) / 2 times as much.
    cos_eps_mode : {"torch2", "torch1"}, default="torch2"
        See `pair_cosines`.
    sample_weight : Tensor of shape (n_samples,), default=None

    Returns
    -------
    alignment : scalar Tensor
        0 for a single member.
    """
    if len(g) < 2:
        return g.new_zeros(())
    if gradient_norm is None:
        gradient_norm = "pairs" if formulation == "paper" else "members"
    cosines = pair_cosines(g, eps_mode=cos_eps_mode).abs()
    divisor = len(cosines) if gradient_norm == "pairs" else len(g)
    return batch_mean(cosines.sum(dim=0) / divisor, sample_weight)
