"""Whether a batch, and its box, can be attacked."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import is_number
from .._memory_errors import is_out_of_memory
from ._mode import untouched
from ._objective import device_of
from .engine.balls import Box
from .engine.margins import member_logits

# X may lie this part of the box's size outside it: what float32 does to a scaled image
_BOX_TOLERANCE = 1e-6


def check_box(clip_values: Any, owner: str) -> None:
    """Raise unless `clip_values` is a pair (low, high) of numbers with low < high."""
    try:
        low, high = clip_values
        valid = is_number(low) and is_number(high) and bool(low < high)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"{owner}: clip_values must be a pair (low, high) of numbers with low < high, such as "
            f"(0, 1); "
            f"got {clip_values!r}"
        )


def box_excess(low: float, high: float, box: Box) -> float:
    """How far values from low to high lie outside a box; 0 within the tolerance of rounding."""
    excess = max(box[0] - low, high - box[1])
    return excess if excess > _BOX_TOLERANCE * max(1.0, abs(box[0]), abs(box[1])) else 0.0


def check_radius(eps: float, norm: str, box: Box | None, owner: str) -> None:
    """Raise for a radius in the maximum norm that is larger than the box: of other units."""
    if norm != "linf" or box is None or eps <= (box[1] - box[0]) * (1 + _BOX_TOLERANCE):
        return
    hint = f"; did you mean {eps:g}/255?" if tuple(box) == (0, 1) else ""
    raise ValueError(
        f"{owner}: eps={eps:g} is more than X can change, whose values lie in [{box[0]:g}, "
        f"{box[1]:g}]: eps is in the units of X{hint}"
    )


def warn_of_units(X: Tensor, eps: float, norm: str, box: Box | None) -> None:
    """Warn where images look like bytes and the radius like one for pixels from 0 to 1."""
    if norm != "linf" or box is not None or X.ndim != 4 or not X.numel() or not 0 < eps < 0.5:
        return
    low, high = float(X.min()), float(X.max())
    if high - low > 100:
        warnings.warn(
            f"X spans [{low:g}, {high:g}], and eps={eps:.3g} is less than half of a grey level: "
            "eps is in the units of X, so hardly anything is attacked. Give uint8 images or X / "
            f"255 to an estimator trained on these, or eps={255 * eps:.3g}",
            stacklevel=3,
        )


def check_batch(module: nn.Module, X: Any, y: Any, box: Box | None) -> Tensor:
    """Raise, before the first step, for what cannot be attacked.

    Parameters
    ----------
    module : nn.Module
        One sample goes through it, if there is one.
    X : Tensor of shape (n_samples, ...)
    y : Tensor of shape (n_samples,)
    box : tuple of two floats or None

    Returns
    -------
    y : int64 Tensor of shape (n_samples,)

    Raises
    ------
    TypeError, ValueError
    """
    _check_tensors(X, y)
    check_finite_values(X)
    if not len(X):
        return y.long()
    if box is not None:
        low, high = X.min().item(), X.max().item()
        excess = box_excess(low, high, box)
        if excess:
            raise ValueError(
                f"X lies up to {excess:.3g} outside clip_values={box}: it spans "
                f"[{low:.4g}, {high:.4g}]. Give the box that the raw data live in, or move the "
                "scaling of X into the module or a Pipeline."
            )
    n_classes = _count_classes(module, X)
    if y.min() < 0 or y.max() >= n_classes:
        raise ValueError(
            f"y must hold class indices from 0 to {n_classes - 1}, which the module's outputs "
            f"stand for; got {int(y.min())} to {int(y.max())}"
        )
    return y.long()


def check_finite_values(X: Tensor) -> None:
    """Raise for NaN and infinity."""
    if not torch.isfinite(X).all():
        raise ValueError("X contains NaN or infinity; remove or impute these samples first")


def _check_tensors(X: Any, y: Any) -> None:
    for name, value in (("X", X), ("y", y)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} must be a torch tensor; got a {type(value).__name__}. For arrays take "
                "attack.generate(estimator, X, y)"
            )
        if value.is_meta or value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor that holds numbers")
    if X.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"X must be float32 or float64; got {X.dtype}. Convert it with X.float(); scale "
            "images to [0, 1] first."
        )
    if X.ndim < 2 or not X.shape[1:].numel():
        raise ValueError(f"X must have shape (n_samples, n_features, ...); got {tuple(X.shape)}")
    if y.ndim != 1 or y.dtype == torch.bool or y.is_floating_point() or y.is_complex():
        raise ValueError(
            f"y must be whole numbers, the indices of classes, of shape (n_samples,); got "
            f"{y.dtype} of shape {tuple(y.shape)}"
        )
    if len(X) != len(y):
        raise ValueError(f"X has {len(X)} samples but y has {len(y)} labels")


def _count_classes(module: nn.Module, X: Tensor) -> int:
    """How many classes a module tells apart."""
    try:
        with untouched(module), torch.no_grad():
            logits = member_logits(module, X[:1].to(device_of(module, X.device)))
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"the module does not take X, {X.dtype} of shape {tuple(X.shape)}: {error}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[2] < 2:
        raise ValueError(
            "the module must return logits of shape (n_samples, n_classes), of two classes or "
            f"more; got {tuple(getattr(logits, 'shape', ()))[1:]} for one sample"
        )
    return int(logits.shape[2])
