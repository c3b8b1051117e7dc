"""Predictions in batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..attacks._passes import Passes
from ..modules import Ensemble, RawInput
from ._streaming import StreamedX

_BATCH_SIZE = 512


def member_log_proba(module: RawInput, X: ArrayLike) -> NDArray[np.float64]:
    """Log-probabilities of every member on raw X.

    Parameters
    ----------
    module : RawInput
    X : array-like of shape (n_samples, ...), or StreamedX

    Returns
    -------
    log_proba : ndarray of shape (n_members, n_samples, n_classes)
        Normalised in float64.

    Raises
    ------
    ValueError
        Where a member's outputs are NaN or infinite, so that there is no answer.
    """
    device = next(module.parameters()).device
    passes = Passes(_BATCH_SIZE)

    def answers(x: Tensor) -> tuple[Tensor, ...]:
        logits = module.member_logits(x.to(device)).cpu().double()
        return (torch.log_softmax(logits, dim=-1).movedim(0, 1),)

    with torch.inference_mode():
        parts = [passes.map(answers, x)[0] for x in _batches(X)]
    result: NDArray[np.float64] = torch.cat(parts).movedim(1, 0).numpy()
    unknown = np.asarray(np.isnan(result).any(axis=(0, 2)))
    if unknown.any():
        raise ValueError(
            f"the members' outputs are NaN or infinite for {unknown.sum()} of {len(unknown)} "
            f"samples, the first of which is X[{unknown.argmax()}]; X is far from what they were "
            "trained on, or their weights are not finite"
        )
    return result


def log_proba(module: RawInput, X: ArrayLike) -> NDArray[np.float64]:
    """Log mean probability on raw X, (n_samples, n_classes)."""
    members = member_log_proba(module, X)
    result: NDArray[np.float64] = np.logaddexp.reduce(members, axis=0) - np.log(len(members))
    return result


def _batches(X: Any) -> Iterable[Tensor]:
    if isinstance(X, StreamedX):
        return X.in_order(_BATCH_SIZE)
    if isinstance(X, Tensor):
        return X.split(_BATCH_SIZE)
    array = np.asarray(X)
    starts = range(0, len(array), _BATCH_SIZE)
    # copies: X may be a read-only memory map
    return (torch.from_numpy(array[i : i + _BATCH_SIZE].copy()) for i in starts)


class Answers:
    """What a net answers to raw X; skorch's callbacks ask it, too."""

    module_: Ensemble
    input_shape: tuple[int, ...]
    clip_values: tuple[float, float] | None

    def as_module(self) -> RawInput:
        """The members behind raw X, in eval mode."""
        return RawInput(self.module_, self.input_shape, self.clip_values).eval()

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Mean probabilities, (n_samples, n_classes)."""
        proba: NDArray[np.float64] = np.exp(log_proba(self.as_module(), X))
        return proba

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Class indices, (n_samples,)."""
        return self.predict_proba(X).argmax(axis=1)
