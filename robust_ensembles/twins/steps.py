"""Torch modules that compute the same as fitted scikit-learn preprocessing steps.

A fitted constant keeps the dtype it was fitted in (nearly always float64) and is combined with the
input in the promoted dtype, as in scikit-learn. Therefore float64 data loses no precision, and
float32 data gives the same results as in scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ..exceptions import NotDifferentiableError

WAYS_OUT = (
    "Ways out: move the step into the module that is trained; register a twin with "
    "as_torch.register; or attack without gradients (black box), with Square or with Transfer "
    "from a surrogate."
)

FUNCTION_WAYS_OUT = (
    "Write the function so that it takes tensors as well as arrays, with torch functions for "
    "tensors (`torch.log1p(X) if isinstance(X, torch.Tensor) else np.log1p(X)`), or write a "
    "transformer class of your own and register its twin with as_torch.register. " + WAYS_OUT
)


def as_rows(x: Tensor) -> Tensor:
    """Check that ``x`` is a table of rows and make it floating, as scikit-learn does.

    Parameters
    ----------
    x : Tensor of shape (n, n_features)
        Raw rows; integers and booleans become floats.

    Returns
    -------
    Tensor of shape (n, n_features)
        ``x`` itself if it is already floating.

    Raises
    ------
    ValueError
        If ``x`` is not 2-D.
    """
    if x.ndim != 2:
        raise ValueError(
            f"expected X of shape (n, n_features), got shape {tuple(x.shape)}: "
            "scikit-learn's preprocessing steps take 2-D data"
        )
    if x.is_floating_point():
        return x
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


class Twin(nn.Module):
    """Base class of twins: keeps fitted constants as buffers that can move to any device."""

    def _constant(self, name: str, values: Any) -> None:
        """Register a copy of ``values`` as the buffer ``name`` (None stays None)."""
        self.register_buffer(name, None if values is None else torch.tensor(np.asarray(values)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Twin:
        """Move the constants, as float32 to a device that has no float64 (MPS)."""

        def fn_without_float64(tensor: Tensor) -> Tensor:
            try:
                return fn(tensor)
            except TypeError:
                # raised by PyTorch for float64 on MPS
                if tensor.dtype != torch.float64:
                    raise
                return fn(tensor.float())

        super()._apply(fn_without_float64, recurse)
        return self


class StandardTwin(Twin):
    """Twin of ``StandardScaler``: ``(x - mean) / scale``.

    Parameters
    ----------
    mean, scale : array of shape (n_features,) or None
        Fitted constants, in the units of the features; None skips the operation.
    """

    mean: Tensor | None
    scale: Tensor | None

    def __init__(self, mean: Any, scale: Any) -> None:
        super().__init__()
        self._constant("mean", mean)
        self._constant("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardized rows, of the shape and floating dtype of ``x``."""
        x = as_rows(x)
        # StandardScaler is the only scaler that first rounds its constants to X's dtype
        if self.mean is not None:
            x = x - self.mean.to(x.dtype)
        if self.scale is not None:
            x = x / self.scale.to(x.dtype)
        return x


class CenterScaleTwin(Twin):
    """Twin of ``RobustScaler`` and ``MaxAbsScaler``: ``(x - center) / scale``, then clipping.

    Parameters
    ----------
    center, scale : array of shape (n_features,) or None
        Fitted constants, in the units of the features; None skips the operation.
    clip : tuple (low, high) or None
        Interval for the scaled values.
    """

    center: Tensor | None
    scale: Tensor | None

    def __init__(self, center: Any, scale: Any, clip: tuple[float, float] | None = None) -> None:
        super().__init__()
        self._constant("center", center)
        self._constant("scale", scale)
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled rows, of the shape and floating dtype of ``x``."""
        x = as_rows(x)
        # each operation is rounded to X's dtype: scikit-learn works in place
        if self.center is not None:
            x = (x - self.center).to(x.dtype)
        if self.scale is not None:
            x = (x / self.scale).to(x.dtype)
        return x if self.clip is None else x.clamp(*self.clip)


class MinMaxTwin(Twin):
    """Twin of ``MinMaxScaler``: ``x * scale + shift``, then clipping.

    Parameters
    ----------
    scale, shift : array of shape (n_features,)
        The scaler's ``scale_`` and ``min_``.
    clip : tuple (low, high) or None
        Interval for the scaled values.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Any, shift: Any, clip: tuple[float, float] | None = None) -> None:
        super().__init__()
        self._constant("scale", scale)
        self._constant("shift", shift)
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled rows, of the shape and floating dtype of ``x``."""
        x = as_rows(x)
        x = (x * self.scale).to(x.dtype)
        x = (x + self.shift).to(x.dtype)
        return x if self.clip is None else x.clamp(*self.clip)


class NormalizerTwin(Twin):
    """Twin of ``Normalizer``: each row is divided by its norm, zero rows are unchanged.

    Parameters
    ----------
    norm : {"l1", "l2", "max"}
        Norm of a row.
    """

    _ORDERS: Mapping[str, float] = {"l1": 1.0, "l2": 2.0, "max": float("inf")}

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.order = self._ORDERS[norm]

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalized rows, of the shape and floating dtype of ``x``."""
        x = as_rows(x)
        norms = torch.linalg.vector_norm(x, ord=self.order, dim=1, keepdim=True)
        # scikit-learn's threshold for a norm that counts as zero
        tiny = norms < 10 * torch.finfo(x.dtype).eps
        return x / torch.where(tiny, torch.ones_like(norms), norms)


class PCATwin(Twin):
    """Twin of ``PCA``: ``(x @ components.T - mean @ components.T) / scale``.

    Parameters
    ----------
    components : array of shape (n_components, n_features)
        Principal axes.
    mean : array of shape (n_features,)
        Fitted mean, in the units of the features.
    scale : array of shape (n_components,) or None
        Standard deviations to divide by (whitening), or None.
    """

    components: Tensor
    offset: Tensor
    scale: Tensor | None

    def __init__(self, components: Any, mean: Any, scale: Any) -> None:
        super().__init__()
        self._constant("components", components)
        self._constant("offset", mean @ components.T)
        self._constant("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores, (n, n_components), in the promoted dtype of ``x`` and constants."""
        x = as_rows(x)
        # unlike the scalers, scikit-learn's PCA returns float64 for float32 X if it was fitted in
        # float64; unlike arithmetic, torch's matrix product does not promote dtypes
        x = x.to(torch.promote_types(x.dtype, self.components.dtype))
        scores = x @ self.components.to(x.dtype).T - self.offset
        return scores if self.scale is None else scores / self.scale


class FunctionTwin(Twin):
    """Twin of ``FunctionTransformer``: its function, called on tensors.

    Parameters
    ----------
    func : callable
        Function of a tensor.
    kw_args : mapping
        Its keyword arguments.
    label : str
        Name of the step in errors.
    """

    def __init__(self, func: Callable[..., Any], kw_args: Mapping[str, Any], label: str) -> None:
        super().__init__()
        self.func = func
        self.kw_args = dict(kw_args)
        self.label = label

    def forward(self, x: Tensor) -> Tensor:
        """Return ``func(x)``.

        Raises
        ------
        NotDifferentiableError
            If the function fails on a tensor, does not return a tensor, or cuts the gradient.
        """
        try:
            out = self.func(x, **self.kw_args)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, AttributeError) as error:
            # NumPy functions raise RuntimeError for tensors that require a gradient
            raise NotDifferentiableError(
                f"{self.label} failed on a torch tensor ({error}). {FUNCTION_WAYS_OUT}"
            ) from error
        if not isinstance(out, Tensor):
            raise NotDifferentiableError(
                f"{self.label} gave {type(out).__name__} for a torch tensor. {FUNCTION_WAYS_OUT}"
            )
        # the graph is recorded only if gradients are enabled
        if torch.is_grad_enabled() and x.requires_grad and not out.requires_grad:
            raise NotDifferentiableError(
                f"{self.label} passes no gradient to its input. {FUNCTION_WAYS_OUT}"
            )
        return out


@runtime_checkable
class HasMemberLogits(Protocol):
    """A module of several members that returns the logits of each."""

    def member_logits(self, x: Tensor) -> Tensor:
        """Return logits of shape (n_members, n, n_classes)."""


def match_parameters(x: Tensor, module: nn.Module) -> Tensor:
    """Cast ``x`` to the floating dtype of a module's parameters (or else of its buffers).

    Parameters
    ----------
    x : Tensor
        Input for ``module``.
    module : nn.Module
        A module made by `as_torch` takes raw X in any floating dtype and casts it itself, so that
        its steps use the full precision of X: for such a module, ``x`` is not changed.

    Returns
    -------
    Tensor
        ``x``, differentiably cast if necessary.
    """
    if isinstance(module, TwinPipeline):
        return x
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            return x.to(tensor.dtype)
    return x


class TwinPipeline(nn.Module):
    """Twins of a Pipeline's steps, one after the other.

    Parameters
    ----------
    steps : sequence of nn.Module
        Twins of the transformers.
    final : nn.Module or None
        Module of the predictor at the end, if there is one. Its input is cast to the dtype of
        its parameters.

    Attributes
    ----------
    clip_values : None
        The final module's box applies to its input after the steps, not to raw X, so it is not
        passed on.
    """

    clip_values: None = None

    def __init__(self, steps: Sequence[nn.Module], final: nn.Module | None = None) -> None:
        super().__init__()
        self.steps = nn.Sequential(*steps)
        self.final = final

    def _transform(self, x: Tensor) -> Tensor:
        """Return the input of the final module."""
        x = self.steps(x)
        return x if self.final is None else match_parameters(x, self.final)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last module for raw ``x`` of shape (n, n_features)."""
        x = self._transform(x)
        return x if self.final is None else self.final(x)


class TwinEnsemblePipeline(TwinPipeline):
    """A `TwinPipeline` whose final module is an ensemble with ``member_logits``."""

    @property
    def combiner(self) -> Any:
        """The combiner of the ensemble, if it has one."""
        return cast(Any, self.final).combiner

    def member_logits(self, x: Tensor) -> Tensor:
        """Return each member's logits for raw X.

        Parameters
        ----------
        x : Tensor of shape (n, n_features)
            Raw rows.

        Returns
        -------
        Tensor of shape (n_members, n, n_classes)
            Logits.
        """
        return cast(HasMemberLogits, self.final).member_logits(self._transform(x))
