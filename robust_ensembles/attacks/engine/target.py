"""A fitted estimator, as an attack sees it: a module, tensors of raw X, class indices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..._checks import as_array
from ...exceptions import NotDifferentiableError
from ...twins import as_torch, check_differentiable
from .._black_box import BlackBox
from .._checks import check_finite_values
from .._mode import untouched
from .._objective import device_of

_CHECKED_ROWS = 32


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Parameters
    ----------
    module : nn.Module
        From raw X to log-probabilities.
    classes : ndarray of shape (n_classes,)
        Labels, in the order of the module's outputs.
    scales_uint8 : bool
        Whether uint8 X means images in [0, 1] (an estimator of this package attacked directly) or
        plain numbers (a Pipeline, whose first step sees 0 to 255).
    dtype : torch.dtype, default=None
        What the module takes; None is float32 for float32 X and float64 for all else.
    """

    module: nn.Module
    classes: NDArray[Any]
    scales_uint8: bool
    dtype: torch.dtype | None = None

    def tensor(self, X: ArrayLike) -> Tensor:
        """Raw X as a floating point tensor on the module's device."""
        array = as_array(X, "X")
        if array.dtype.kind not in "biuf":
            raise ValueError(f"X must be numbers; got an array of {array.dtype}")
        if array.ndim < 2:
            raise ValueError(f"X must have shape (n_samples, n_features, ...); got {array.shape}")
        if array.dtype == np.uint8 and self.scales_uint8:
            array = array.astype(np.float32) / np.float32(255)
        elif array.dtype != np.float32:
            array = array.astype(np.float64)
        device = device_of(self.module, torch.device("cpu"))
        if device.type == "mps":
            array = array.astype(np.float32)
        # a copy: X may be a read-only memory map
        x = torch.tensor(array, device=device, dtype=self.dtype)
        check_finite_values(x)
        return x

    def encode(self, y: ArrayLike) -> Tensor:
        """Labels as class indices."""
        labels = as_array(y, "y")
        if labels.ndim != 1:
            raise ValueError(f"y must have shape (n_samples,); got {labels.shape}")
        index = {label: i for i, label in enumerate(self.classes.tolist())}
        unknown = sorted({str(label) for label in labels.tolist() if label not in index})
        if unknown:
            raise ValueError(
                f"y contains labels that the estimator was not trained on: {unknown[:5]}; it "
                f"knows {self.classes.tolist()[:10]}"
            )
        device = device_of(self.module, torch.device("cpu"))
        return torch.tensor([index[label] for label in labels.tolist()], device=device)


def refuse_dataset(X: Any) -> None:
    """Raise for a data set of torch's.

    Parameters
    ----------
    X : object

    Raises
    ------
    TypeError
    """
    if isinstance(X, Dataset):
        raise TypeError(
            f"attacks, scorers and reports take arrays; got {type(X).__name__}. Give a sample of "
            "the data as an array, such as numpy.stack([dataset[i][0].numpy() for i in chosen])"
        )


def as_classifier(estimator: Any, *, gradient: bool = True) -> nn.Module:
    """The differentiable twin of a fitted classifier, or a module itself.

    Parameters
    ----------
    estimator : fitted estimator or nn.Module
    gradient : bool, default=True
        False also takes a classifier without a twin, by its `predict_proba`.

    Returns
    -------
    module : nn.Module

    Raises
    ------
    NotDifferentiableError
        If a step has no differentiable twin, and there is no other way.
    TypeError
        For something else.
    """
    try:
        module = as_torch(estimator)
    except NotDifferentiableError:
        if gradient or not hasattr(estimator, "predict_proba"):
            raise
        module = BlackBox(estimator)
    if estimator is not module and not hasattr(estimator, "classes_"):
        raise TypeError(
            f"{estimator!r} is no fitted classifier and no nn.Module: it has no classes_"
        )
    return module


def resolve_target(estimator: Any, X: ArrayLike, *, gradient: bool = True) -> Target:
    """Differentiable view of a fitted estimator, or one of its outputs.

    Parameters
    ----------
    estimator : fitted estimator or nn.Module
        A bare module returns logits; its classes are 0, 1, ...
    X : array-like of shape (n_samples, ...)
        Its first rows check that the view computes what the estimator does.
    gradient : bool, default=True
        Whether gradients must reach X. Otherwise any classifier with a `predict_proba` will do.

    Returns
    -------
    target : Target

    Raises
    ------
    TypeError
        For a data set of torch's.
    NotDifferentiableError
        If a step has no differentiable twin, unless outputs are enough.
    """
    refuse_dataset(X)
    module = as_classifier(estimator, gradient=gradient)
    if estimator is module:
        return _bare(module, X, gradient)
    final = getattr(estimator, "best_estimator_", estimator)
    target = Target(module, np.asarray(estimator.classes_), hasattr(final, "as_module"))
    x = _first_rows(target, X)
    if gradient:
        # names of columns, if there are some, are for the estimator
        check_differentiable(module, estimator, X if hasattr(X, "iloc") else x)
    elif not _takes(module, x) and hasattr(estimator, "predict_proba"):
        target = replace(target, module=BlackBox(estimator))
    return target


def _bare(module: nn.Module, X: Any, gradient: bool) -> Target:
    """A module that comes without an estimator."""
    dtype = next((p.dtype for p in module.parameters()), None)
    target = Target(module, np.empty(0), scales_uint8=True, dtype=dtype)
    rows = _first_rows(target, X)
    with untouched(module):
        if gradient:
            check_differentiable(module, module, rows)
        with torch.no_grad():
            n_classes = module(rows).shape[1]
    return replace(target, classes=np.arange(n_classes))


def _first_rows(target: Target, X: Any) -> Tensor:
    """Enough of X to check with, as the module takes it."""
    # not an array of one number, which has no rows
    rows = X.iloc if hasattr(X, "iloc") else np.atleast_1d(as_array(X, "X"))
    return target.tensor(rows[:_CHECKED_ROWS])


def _takes(module: nn.Module, x: Tensor) -> bool:
    """Whether a twin can be called: that of a function shows only then that it cannot."""
    try:
        with torch.no_grad(), untouched(module):
            module(x)
    except NotDifferentiableError:
        return False
    except (IndexError, RuntimeError, TypeError, ValueError):
        # X is not what the estimator takes: the attack's own checks say so
        return True
    return True
