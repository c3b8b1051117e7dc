"""What an attack makes large: per-sample losses of the members' logits.

All take logits (n_members, n_samples, n_classes) and labels (n_samples,), and return
(n_samples,). The first two have the same gradient *direction* in exact arithmetic; only the first
keeps it in float32 when the ensemble is over-confident.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..losses import ensemble_log_proba


def member_logits(module: nn.Module, x: Tensor) -> Tensor:
    """Logits of every member, (n_members, n_samples, n_classes); one member for a plain module."""
    of_members: Callable[[Tensor], Tensor] | None = getattr(module, "member_logits", None)
    return module(x).unsqueeze(0) if of_members is None else of_members(x)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""Saturation-safe margin of the deployed mean probability.

    .. math:: \delta = \log\sum_{c\ne y} \bar p_c - \log \bar p_y

    from log-probabilities. The cross-entropy of the mean probability is softplus(delta), so
    ascending one ascends the other, but delta does not round to 0 at a logit gap of 16.
    """
    log_proba = ensemble_log_proba(logits)
    return torch.logsumexp(_others(log_proba, y), dim=1) - _of_label(log_proba, y)


def cw_margin(logits: Tensor, y: Tensor) -> Tensor:
    """Carlini-Wagner margin: the best wrong log-probability minus that of the label."""
    log_proba = ensemble_log_proba(logits)
    return _others(log_proba, y).amax(dim=1) - _of_label(log_proba, y)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the mean probability, -log pbar_y."""
    return -_of_label(ensemble_log_proba(logits), y)


def mean_member_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean of the members' own cross-entropies, which no confident member can hide from."""
    log_proba = F.log_softmax(logits, dim=-1).mean(dim=0)
    return -_of_label(log_proba, y)


def _of_label(log_proba: Tensor, y: Tensor) -> Tensor:
    return log_proba.gather(1, y[:, None]).squeeze(1)


def _others(log_proba: Tensor, y: Tensor) -> Tensor:
    # by index, never by multiplying with a mask: 0 is the largest log-probability there is
    return log_proba.scatter(1, y[:, None], -torch.inf)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "margin": margin,
    "cw_margin": cw_margin,
    "cross_entropy": cross_entropy,
    "member_cross_entropy": mean_member_cross_entropy,
}
