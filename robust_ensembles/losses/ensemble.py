"""Common to all methods: the ensemble's output, cross-entropy and weighted means."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Formulation = Literal["paper", "released"]
"""The formula of the paper, or that of the authors' code."""


def ensemble_log_proba(logits: Tensor) -> Tensor:
    r"""Log mean probability of an ensemble.

    .. math:: \log \bar p_c = \log\sum_i \exp(\log \mathrm{softmax}(z_i)_c) - \log N

    computed in log space, so that nothing underflows.

    Parameters
    ----------
    logits : Tensor of shape (n_members, n_samples, n_classes)
        Logits or log-probabilities of the members.

    Returns
    -------
    log_proba : Tensor of shape (n_samples, n_classes)
    """
    return log_mean(F.log_softmax(logits, dim=-1))


def log_mean(log_q: Tensor) -> Tensor:
    """Logarithm of the mean of probabilities over the first axis, without underflow.

    Parameters
    ----------
    log_q : Tensor of shape (n, ...)
        Log-probabilities.

    Returns
    -------
    log_mean_q : Tensor of shape (...)
    """
    return torch.logsumexp(log_q, dim=0) - math.log(len(log_q))


def batch_mean(values: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Mean over the batch of per-sample values, weighted if weights are given.

    Parameters
    ----------
    values : Tensor of shape (n_samples,)
    sample_weight : Tensor of shape (n_samples,), default=None
        Weights with mean 1 over the *training set*: the sum is divided by the batch's size, so
        that a batch of light samples counts less than a batch of heavy ones.

    Returns
    -------
    mean : scalar Tensor
    """
    return values.mean() if sample_weight is None else (values * sample_weight).mean()


def member_cross_entropy(logits: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of every member, averaged over the batch.

    Parameters
    ----------
    logits : Tensor of shape (n_members, n_samples, n_classes)
    y : Tensor of shape (n_samples,)
        Class indices.
    sample_weight : Tensor of shape (n_samples,), default=None

    Returns
    -------
    cross_entropy : Tensor of shape (n_members,)
    """
    losses = []
    for member in logits:
        per_sample = F.cross_entropy(member, y, reduction="none")
        losses.append(batch_mean(per_sample, sample_weight))
    return torch.stack(losses)


def without_true_class(p: Tensor, y: Tensor) -> Tensor:
    """Drop the label's entry of each sample, without renormalising the others.

    Parameters
    ----------
    p : Tensor of shape (n_members, n_samples, n_classes)
    y : Tensor of shape (n_samples,)
        Class indices.

    Returns
    -------
    others : Tensor of shape (n_members, n_samples, n_classes - 1)
    """
    n_members, _, n_classes = p.shape
    rank = torch.arange(n_classes - 1, device=p.device)
    # by indices: a mask would make a GPU wait for the count of its entries
    others = rank + (rank >= y[:, None])
    return p.gather(-1, others.expand(n_members, -1, -1))
