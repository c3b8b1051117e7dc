"""Predictions in batches."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..modules import RawInput

_BATCH_SIZE = 512


def member_log_proba(module: RawInput, X: ArrayLike) -> NDArray[np.float64]:
    """Log-probabilities of every member on raw X.

    Parameters
    ----------
    module : RawInput
    X : array-like of shape (n_samples, ...)

    Returns
    -------
    log_proba : ndarray of shape (n_members, n_samples, n_classes)
        Normalised in float64.
    """
    device = next(module.parameters()).device
    parts = []
    with torch.inference_mode():
        for x in _batches(X):
            logits = module.member_logits(x.to(device)).cpu().double()
            parts.append(torch.log_softmax(logits, dim=-1))
    result: NDArray[np.float64] = torch.cat(parts, dim=1).numpy()
    return result


def log_proba(module: RawInput, X: ArrayLike) -> NDArray[np.float64]:
    """Log mean probability on raw X, (n_samples, n_classes)."""
    members = member_log_proba(module, X)
    result: NDArray[np.float64] = np.logaddexp.reduce(members, axis=0) - np.log(len(members))
    return result


def _batches(X: Any) -> list[Tensor]:
    if isinstance(X, Tensor):
        return list(X.split(_BATCH_SIZE))
    array = np.asarray(X)
    starts = range(0, len(array), _BATCH_SIZE)
    # copies: X may be a read-only memory map
    return [torch.from_numpy(array[i : i + _BATCH_SIZE].copy()) for i in starts]
