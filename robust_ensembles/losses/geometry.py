"""Norms and cosines of input gradients, safe to differentiate twice."""

from typing import Literal

import torch
from torch import Tensor

# cos = <a, b> / (max(|a|, EPS) max(|b|, EPS)), torch's own definition since 1.12
COSINE_EPS = 1e-8

CosineEpsMode = Literal["torch2", "torch1"]


def safe_norm(v: Tensor, eps: float = COSINE_EPS) -> Tensor:
    """L2 norm over the last axis, at least ``eps``, with a finite derivative at zero.

    A confident member can have an input gradient of exactly zero in float32. The plain norm has
    no second derivative there; the clamp on the *squared* norm has one, zero.

    Parameters
    ----------
    v : Tensor of shape (..., n_features)
    eps : float, default=1e-8

    Returns
    -------
    norm : Tensor of shape (...)
    """
    return v.square().sum(dim=-1).clamp_min(eps**2).sqrt()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between vectors along the last axis.

    Parameters
    ----------
    a, b : Tensor of shape (..., n_features), broadcast against each other

    Returns
    -------
    cosine : Tensor of shape (...)
    """
    return (a * b).sum(dim=-1) / (safe_norm(a) * safe_norm(b))


def pair_cosines(g: Tensor, *, eps_mode: CosineEpsMode = "torch2") -> Tensor:
    """Cosines of all pairs of members, from one Gram matrix per sample.

    Parameters
    ----------
    g : Tensor of shape (n_members, n_samples, n_features)
        Input gradients.
    eps_mode : {"torch2", "torch1"}, default="torch2"
        ``"torch1"`` divides by ``sqrt(max(|a|^2 |b|^2, 1e-16))`` as torch did before 1.12, with
        which the published GAL, TRS and CLDL results were obtained. It shrinks the cosine of
        well-fitted samples, whose gradients are short.

    Returns
    -------
    cosines : Tensor of shape (n_pairs, n_samples)
        Pairs (i, j), i < j, in lexicographic order; no row for a single member.
    """
    i, j = torch.triu_indices(len(g), len(g), offset=1, device=g.device)
    per_sample = g.transpose(0, 1)
    if eps_mode == "torch2":
        unit = per_sample / safe_norm(per_sample).unsqueeze(-1)
        return (unit @ unit.transpose(1, 2))[:, i, j].T
    gram = per_sample @ per_sample.transpose(1, 2)
    squared = gram.diagonal(dim1=1, dim2=2)
    scale = (squared[:, i] * squared[:, j]).clamp_min(COSINE_EPS**2).sqrt()
    return (gram[:, i, j] / scale).T
