"""One measurement: an estimator under an attack."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..attacks import Attack, as_torch
from ..attacks._objective import device_of
from ..metrics.robust import correct_mask, robust_mask
from ._report._bounds import Witness

Mask = NDArray[np.bool_]
CLEAN, WORST = "clean", "worst"


@dataclass(frozen=True, eq=False)
class Cell:
    """What one attack has left of one estimator.

    Parameters
    ----------
    estimator, attack : str
        Names; the attack ``"clean"`` is none at all.
    fingerprint : str
        Of the data, the estimator and the attack.
    robust : bool ndarray of shape (n_samples,) or None
        Samples that are right before and after the attack; None if it failed.
    seconds : float
    device : str
    error : str or None
        Why there is no number.
    outside : tuple of int
        Samples whose example left the ball or the box.
    excess : float
        How far at most, in the units of X.
    """

    estimator: str
    attack: str
    fingerprint: str
    robust: Mask | None
    seconds: float
    device: str
    error: str | None = None
    outside: tuple[int, ...] = ()
    excess: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the mask as a text of 0 and 1."""
        robust = None if self.robust is None else "".join("01"[int(r)] for r in self.robust)
        plain = {**vars(self), "robust": robust, "outside": list(self.outside)}
        # infinite for an example that is NaN, which JSON cannot say
        return {**plain, "excess": self.excess if np.isfinite(self.excess) else "inf"}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Cell:
        """The inverse of `to_dict`."""
        text = plain["robust"]
        robust = None if text is None else np.array([digit == "1" for digit in text], dtype=bool)
        outside, excess = tuple(plain["outside"]), float(plain["excess"])
        return cls(**{**plain, "robust": robust, "outside": outside, "excess": excess})


def measure(
    name: str,
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    attack_name: str,
    attack: Attack | None,
    *,
    fingerprint: str,
    clean: Mask | None = None,
) -> Cell:
    """Measure one cell; what goes wrong is noted in it, so that the others are not lost.

    Parameters
    ----------
    name : str
        Of the estimator.
    estimator : fitted estimator or nn.Module
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)
    attack_name : str
    attack : Attack or None
        None is no attack.
    fingerprint : str
    clean : bool ndarray of shape (n_samples,), default=None
        Samples that are right without an attack: those that are attacked.

    Returns
    -------
    cell : Cell
    """
    witness = None if attack is None else Witness(attack)
    robust: Mask | None = None
    error = None
    device = "unknown"
    start = time.perf_counter()
    try:
        device = str(device_of(as_torch(estimator), torch.device("cpu")))
        if witness is None:
            robust = correct_mask(estimator, X, y)
        else:
            robust = robust_mask(estimator, X, y, attack=witness)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    seconds = time.perf_counter() - start
    outside, excess = ((), 0.0) if witness is None else _outside(witness, clean)
    return Cell(name, attack_name, fingerprint, robust, seconds, device, error, outside, excess)


def _outside(witness: Witness, clean: Mask | None) -> tuple[tuple[int, ...], float]:
    """Samples whose examples lie outside, and how far the worst of them does."""
    outside = np.flatnonzero(witness.excess)
    if not len(outside):
        return (), 0.0
    # only the samples that are right are attacked; with random outputs nobody knows which
    attacked = None if clean is None else np.flatnonzero(clean)
    known = attacked is not None and len(attacked) == len(witness.excess)
    samples = attacked[outside] if attacked is not None and known else outside
    return tuple(samples.tolist()), float(witness.excess.max())
