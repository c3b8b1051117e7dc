"""The target of an attack: a fitted model with its images, as a module and tensors.

`Target` is what metrics, protocols, reports and displays attack; `resolve_target` makes one from
any fitted model. The file also holds a module for classifiers without a differentiable twin
(`BlackBox`), and the checks of an attack's input before its first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..._checks import as_array, warn
from ..._system import is_out_of_memory
from ...exceptions import NotDifferentiableError
from ...modules.combiners import combiner_of
from ...twins import as_torch, check_differentiable
from .ascent import is_broken
from .balls import Box, box_excess
from .forward import device_of, frozen, member_logits

if TYPE_CHECKING:
    from ..base import Attack

Mask = NDArray[np.bool_]

_CHECKED_ROWS = 32
_BATCH_SIZE = 256


@dataclass(frozen=True, eq=False)
class Target:
    """A fitted model, and the images that it is attacked on.

    Parameters
    ----------
    module : nn.Module
        Maps raw X to log-probabilities.
    classes : ndarray of shape (n_classes,)
        Labels, in the order of the module's outputs.
    scales_uint8 : bool, default=True
        Whether uint8 X means images in [0, 1] (an estimator of this package attacked directly) or
        plain numbers (a Pipeline, whose first step sees 0 to 255).
    dtype : torch.dtype, default=None
        The dtype that the module takes; None is float32 for float32 X and float64 otherwise.
    x : Tensor of shape (n_samples, ...), default=empty
        Raw X, with the dtype and device of the module; see `on`.
    y : Tensor of shape (n_samples,), default=empty
        Class indices; -1 is a label that the model was not trained on.
    name : str, default=""
        The name in tables.
    """

    module: nn.Module
    classes: NDArray[Any]
    scales_uint8: bool = True
    dtype: torch.dtype | None = None
    x: Tensor = field(default_factory=lambda: torch.empty(0, 0))
    y: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    name: str = ""

    def on(self, X: ArrayLike, y: ArrayLike, *, allow_unknown: bool = False) -> Target:
        """The same model with images and their labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        allow_unknown : bool, default=False
            Whether to encode a label that the model was not trained on as -1, which is never
            predicted, instead of raising.

        Returns
        -------
        target : Target

        Raises
        ------
        ValueError
            If X is not numeric, or y does not have a known label for each sample.
        """
        x = self.tensor(X)
        labels = as_array(y, "y")
        if labels.shape != (len(x),):
            raise ValueError(
                f"y must have shape ({len(x)},), a label for each sample; got {labels.shape}"
            )
        return replace(self, x=x, y=self.encode(labels, allow_unknown=allow_unknown))

    def take(self, rows: NDArray[Any]) -> Target:
        """The same model with a subset of the images, by indices or a mask."""
        index = torch.from_numpy(rows).to(self.x.device)
        return replace(self, x=self.x[index], y=self.y[index])

    @property
    def known(self) -> Mask:
        """Which labels the model was trained on."""
        mask: Mask = (self.y >= 0).cpu().numpy()
        return mask

    def right(self) -> Mask:
        """Which images are classified correctly without an attack; computed once."""
        return self._clean.copy()

    @cached_property
    def _clean(self) -> Mask:
        return ~self.broken(self.x)

    def broken(self, x_adv: Tensor) -> Mask:
        """Which perturbed images, on any device, are misclassified.

        Judged by a separate forward pass in eval mode and the deployed rule.

        Parameters
        ----------
        x_adv : Tensor of the shape of x

        Returns
        -------
        broken : bool ndarray of shape (n_samples,)
        """
        broken: Mask = is_broken(self.module, x_adv.to(self.x), self.y).cpu().numpy()
        return broken

    def withstood(self, attacks: Sequence[Attack]) -> Mask:
        """Which images are classified correctly without an attack and after each of the attacks.

        Parameters
        ----------
        attacks : sequence of Attack
            Untargeted. Each runs on the images not broken by those before it.

        Returns
        -------
        withstood : bool ndarray of shape (n_samples,)
        """
        left = self.right()
        for attack in attacks:
            part = self.take(left)
            left[left.copy()] = ~part.broken(attack(part.module, part.x, part.y))
        return left

    def last_iterates(self, attack: Attack) -> Tensor:
        """Examples after all steps, broken or not, as released attacks return them."""
        return attack(self.module, self.x, self.y, stop_when_broken=False)

    def member_logits(self, *, as_given: bool = False) -> Tensor:
        """Logits of each member, (n_members, n_samples, n_classes), on the CPU.

        Parameters
        ----------
        as_given : bool, default=False
            Whether to use the present modes of the module's parts instead of eval mode.
        """
        modes = {part: part.training for part in self.module.modules()}
        with frozen(self.module), torch.no_grad():
            if as_given:
                for part, training in modes.items():
                    part.training = training
            parts = [member_logits(self.module, x).cpu() for x in self.x.split(_BATCH_SIZE)]
        return torch.cat(parts, dim=1)

    def proba(self, *, as_given: bool = False) -> NDArray[np.float64]:
        """Probabilities by the deployed rule, (n_samples, n_classes); see `member_logits`."""
        logits = self.member_logits(as_given=as_given).double()
        proba: NDArray[np.float64] = combiner_of(self.module).log_proba(logits).exp().numpy()
        return proba

    def tensor(self, X: ArrayLike) -> Tensor:
        """Convert raw X to a floating point tensor on the module's device."""
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

    def encode(self, y: ArrayLike, *, allow_unknown: bool = False) -> Tensor:
        """Labels as class indices; unknown ones are -1 where they are allowed."""
        labels = as_array(y, "y")
        if labels.ndim != 1:
            raise ValueError(f"y must have shape (n_samples,); got {labels.shape}")
        index = {label: i for i, label in enumerate(self.classes.tolist())}
        unknown = sorted({str(label) for label in labels.tolist() if label not in index})
        if unknown and not allow_unknown:
            raise ValueError(
                f"y contains labels that the estimator was not trained on: {unknown[:5]}; it "
                f"knows {self.classes.tolist()[:10]}"
            )
        device = device_of(self.module, torch.device("cpu"))
        return torch.tensor(
            [index.get(label, -1) for label in labels.tolist()], dtype=torch.int64, device=device
        )


def resolve_target(
    estimator: Any, X: ArrayLike, y: ArrayLike | None = None, *, gradient: bool = True
) -> Target:
    """The target for a fitted estimator or a module.

    Parameters
    ----------
    estimator : fitted estimator or nn.Module
        A bare module returns logits; its classes are 0, 1, ...
    X : array-like of shape (n_samples, ...)
        Its first rows serve to check that the module computes what the estimator does.
    y : array-like of shape (n_samples,), default=None
        Labels; with them the target holds X and y, to be attacked.
    gradient : bool, default=True
        Whether gradients must reach X. Otherwise any classifier with a `predict_proba` is allowed.

    Returns
    -------
    target : Target

    Raises
    ------
    TypeError
        For a `torch.utils.data.Dataset`.
    NotDifferentiableError
        If a step has no differentiable twin and `gradient` is true.
    """
    refuse_dataset(X)
    target = _view(estimator, X, gradient)
    return target if y is None else target.on(X, y)


def _view(estimator: Any, X: ArrayLike, gradient: bool) -> Target:
    """A target without images, checked on X."""
    module = as_classifier(estimator, gradient=gradient)
    if estimator is module:
        return _bare(module, X, gradient)
    final = getattr(estimator, "best_estimator_", estimator)
    target = Target(module, np.asarray(estimator.classes_), hasattr(final, "as_module"))
    x = _first_rows(target, X)
    if gradient:
        # column names, if any, are for the estimator
        check_differentiable(module, estimator, X if hasattr(X, "iloc") else x)
    elif not _takes(module, x) and hasattr(estimator, "predict_proba"):
        target = replace(target, module=BlackBox(estimator))
    return target


def _bare(module: nn.Module, X: Any, gradient: bool) -> Target:
    """The target for a module without an estimator."""
    dtype = next((p.dtype for p in module.parameters()), None)
    target = Target(module, np.empty(0), scales_uint8=True, dtype=dtype)
    rows = _first_rows(target, X)
    with frozen(module):
        if gradient:
            check_differentiable(module, module, rows)
        with torch.no_grad():
            n_classes = module(rows).shape[1]
    return replace(target, classes=np.arange(n_classes))


def _first_rows(target: Target, X: Any) -> Tensor:
    """The first rows of X, as a tensor for the module."""
    # not for an array of a single number, which has no rows
    rows = X.iloc if hasattr(X, "iloc") else np.atleast_1d(as_array(X, "X"))
    return target.tensor(rows[:_CHECKED_ROWS])


def _takes(module: nn.Module, x: Tensor) -> bool:
    """Whether a twin can be called: the twin of a function may fail only then."""
    try:
        with torch.no_grad(), frozen(module):
            module(x)
    except NotDifferentiableError:
        return False
    except (IndexError, RuntimeError, TypeError, ValueError):
        # the estimator does not accept X: the attack's own checks report it
        return True
    return True


def as_classifier(estimator: Any, *, gradient: bool = True) -> nn.Module:
    """The differentiable twin of a fitted classifier, or a module itself.

    Parameters
    ----------
    estimator : fitted estimator or nn.Module
    gradient : bool, default=True
        False also allows a classifier without a twin, called through its `predict_proba`.

    Returns
    -------
    module : nn.Module

    Raises
    ------
    NotDifferentiableError
        If a step has no differentiable twin and gradients are required.
    TypeError
        For other objects.
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


class BlackBox(nn.Module):
    """Log-probabilities of a fitted classifier through its `predict_proba`, without gradients.

    Parameters
    ----------
    estimator : fitted classifier
        Of any package. A classifier fitted on a DataFrame is called with one of the same columns.
    """

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
            Raw X.

        Returns
        -------
        log_probabilities : Tensor of shape (n_samples, n_classes)
            Where a probability is 0, the logarithm of the smallest number of the dtype of `x`.
        """
        if not len(x):
            # scikit-learn's estimators refuse NaN
            return x.new_empty(0, len(self.estimator.classes_))
        probabilities = np.array(self.estimator.predict_proba(self._given(x)))
        values = torch.from_numpy(probabilities).to(x)
        return values.clamp_min(torch.finfo(x.dtype).tiny).log()

    def _given(self, x: Tensor) -> Any:
        rows = x.detach().cpu().numpy()
        names = getattr(self.estimator, "feature_names_in_", None)
        if names is None:
            return rows
        # column names come from a DataFrame, so pandas is installed
        import pandas as pd

        return pd.DataFrame(rows, columns=names)


def refuse_dataset(X: Any) -> None:
    """Raise for a `torch.utils.data.Dataset`.

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


def warn_of_units(X: Tensor, eps: float, norm: str, box: Box | None) -> None:
    """Warn if X looks like 8-bit images and the radius like one for pixels from 0 to 1."""
    if norm != "linf" or box is not None or X.ndim != 4 or not X.numel() or not 0 < eps < 0.5:
        return
    low, high = float(X.min()), float(X.max())
    if high - low > 100:
        warn(
            f"X spans [{low:g}, {high:g}], and eps={eps:.3g} is less than half of a grey level: "
            "eps is in the units of X, so hardly anything is attacked. Give uint8 images or X / "
            f"255 to an estimator trained on these, or eps={255 * eps:.3g}"
        )


def check_batch(module: nn.Module, X: Any, y: Any, box: Box | None) -> Tensor:
    """Validate the input of an attack before its first step.

    Parameters
    ----------
    module : nn.Module
        Called with one sample, if X has any.
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
    """Number of classes of a module, from its output for one sample."""
    try:
        with frozen(module), torch.no_grad():
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
