"""`as_torch`: the twins of estimators, and checks that they agree with them."""

from __future__ import annotations

from functools import singledispatch
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    RobustScaler,
    StandardScaler,
)
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from ..exceptions import NotDifferentiableError
from .steps import (
    FUNCTION_WAYS_OUT,
    WAYS_OUT,
    CenterScaleTwin,
    FunctionTwin,
    HasMemberLogits,
    MinMaxTwin,
    NormalizerTwin,
    PCATwin,
    StandardTwin,
    TwinEnsemblePipeline,
    TwinPipeline,
    match_parameters,
)

# not public, but the common base class of all searches, also of other packages


__all__ = ["as_torch", "check_differentiable"]

_CHECKED_ROWS = 32
_TOLERANCE = 1e-3  # on probabilities: wide enough for float32 on any device


@singledispatch
def as_torch(estimator: Any) -> nn.Module:
    """Return the differentiable twin of a fitted estimator.

    Twins exist for ``StandardScaler``, ``MinMaxScaler``, ``MaxAbsScaler``, ``RobustScaler``,
    ``Normalizer``, ``PCA``, ``FunctionTransformer``, ``Pipeline``, searches such as
    ``GridSearchCV`` (the best estimator's twin), ``"passthrough"`` and None. For any other object
    with a method ``as_module()``, its result is returned, and an ``nn.Module`` is returned itself.

    Parameters
    ----------
    estimator : object
        Fitted transformer, classifier, Pipeline or search.

    Returns
    -------
    nn.Module
        Takes the estimator's X as a tensor. For a Pipeline that ends in a classifier, it has
        ``member_logits`` if the classifier's module has it, and its ``clip_values`` are None unless
        every step before the classifier is an identity.

    Raises
    ------
    NotDifferentiableError
        If a step has no twin.
    sklearn.exceptions.NotFittedError
        If a step is not fitted.

    Examples
    --------
    A twin for your own transformer (it receives x in the dtype of raw X)::

        @as_torch.register(MyTransformer)
        def _(step: MyTransformer) -> nn.Module:
            return MyTwin(step.scale_)
    """
    if hasattr(estimator, "as_module"):
        return cast(nn.Module, estimator.as_module())
    if isinstance(estimator, nn.Module):
        return estimator
    raise NotDifferentiableError(
        f"{type(estimator).__name__} has no differentiable twin: gradients cannot pass "
        f"through it. {WAYS_OUT}"
    )


@as_torch.register(type(None))
def _none(step: None) -> nn.Module:
    return nn.Identity()


@as_torch.register(str)
def _string(step: str) -> nn.Module:
    if step != "passthrough":
        raise NotDifferentiableError(f"{step!r} is not a step: only 'passthrough' is. {WAYS_OUT}")
    return nn.Identity()


@as_torch.register(StandardScaler)
def _standard_scaler(step: StandardScaler) -> nn.Module:
    check_is_fitted(step)
    # fitted attributes exist even if the operation is switched off
    return StandardTwin(
        mean=step.mean_ if step.with_mean else None, scale=step.scale_ if step.with_std else None
    )


@as_torch.register(RobustScaler)
def _robust_scaler(step: RobustScaler) -> nn.Module:
    check_is_fitted(step)
    return CenterScaleTwin(
        center=step.center_ if step.with_centering else None,
        scale=step.scale_ if step.with_scaling else None,
    )


@as_torch.register(MaxAbsScaler)
def _max_abs_scaler(step: MaxAbsScaler) -> nn.Module:
    check_is_fitted(step)
    # the parameter `clip` was added in scikit-learn 1.9
    clip = (-1.0, 1.0) if getattr(step, "clip", False) else None
    return CenterScaleTwin(center=None, scale=step.scale_, clip=clip)


@as_torch.register(MinMaxScaler)
def _min_max_scaler(step: MinMaxScaler) -> nn.Module:
    check_is_fitted(step)
    low, high = step.feature_range
    return MinMaxTwin(step.scale_, step.min_, clip=(low, high) if step.clip else None)


@as_torch.register(Normalizer)
def _normalizer(step: Normalizer) -> nn.Module:
    return NormalizerTwin(step.norm)


@as_torch.register(PCA)
def _pca(step: PCA) -> nn.Module:
    check_is_fitted(step)
    if not step.whiten:
        return PCATwin(step.components_, step.mean_, None)
    scale = np.sqrt(step.explained_variance_)
    # scikit-learn's lower bound for the components of rank-deficient data
    return PCATwin(step.components_, step.mean_, np.maximum(scale, np.finfo(scale.dtype).eps))


@as_torch.register(FunctionTransformer)
def _function_transformer(step: FunctionTransformer) -> nn.Module:
    if step.func is None:
        return nn.Identity()
    name = getattr(step.func, "__name__", repr(step.func))
    return FunctionTwin(step.func, step.kw_args or {}, f"FunctionTransformer(func={name})")


@as_torch.register(BaseSearchCV)
def _search(search: BaseSearchCV) -> nn.Module:
    check_is_fitted(
        search, "best_estimator_", msg="%(name)s has no best_estimator_: fit it with refit=True"
    )
    return as_torch(search.best_estimator_)


@as_torch.register(Pipeline)
def _pipeline(pipeline: Pipeline) -> nn.Module:
    twins = [_step_twin(name, step) for name, step in pipeline.steps]
    final = twins.pop() if _is_predictor(pipeline.steps[-1][1]) else None
    twins = [twin for twin in twins if not isinstance(twin, nn.Identity)]
    if not twins:
        # after identities only, the final module receives raw X, so its clip_values apply
        return nn.Identity() if final is None else final
    if isinstance(final, HasMemberLogits):
        return TwinEnsemblePipeline(twins, final)
    return TwinPipeline(twins, final)


def _is_predictor(step: Any) -> bool:
    """Whether the last step of a Pipeline is a predictor, not another transformer."""
    if step is None or isinstance(step, str):
        return False
    return hasattr(step, "predict_proba") or not hasattr(step, "transform")


def _step_twin(name: str, step: Any) -> nn.Module:
    """Return the twin of a Pipeline's step; errors name the step."""
    try:
        twin = as_torch(step)
    except NotDifferentiableError as error:
        raise NotDifferentiableError(f"Pipeline step {name!r}: {error}") from None
    if isinstance(twin, FunctionTwin):
        # a function may turn out not to be differentiable when called, so its name is passed on
        twin.label = f"Pipeline step {name!r}: {twin.label}"
    return twin


def check_differentiable(module: nn.Module, estimator: Any, X: Any) -> None:
    """Check that a twin passes gradients to X and computes what its estimator does.

    Parameters
    ----------
    module : nn.Module
        Twin of ``estimator``, from `as_torch`; gives logits (or log-probabilities) of shape
        (n, n_classes). It is called in its present mode, training or evaluation.
    estimator : object
        Fitted classifier. Without a ``predict_proba``, only the gradient is checked.
    X : array-like, DataFrame or Tensor of shape (n, ...)
        Raw data; the first 32 rows are used.

    Raises
    ------
    NotDifferentiableError
        If X gets no gradient, or one that is not finite. A gradient of zeros is allowed: saturated
        models have one.
    ValueError
        If a probability differs from ``estimator.predict_proba`` by more than 0.001.
    """
    rows = X.iloc[:_CHECKED_ROWS] if hasattr(X, "iloc") else X[:_CHECKED_ROWS]
    if isinstance(rows, Tensor):
        rows = rows.detach().cpu().numpy()
    x = _leaf(rows, module)
    name = type(estimator).__name__
    with torch.enable_grad():
        try:
            output = module(match_parameters(x, module))
        except NotDifferentiableError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name} does not take X, whose first rows have shape {tuple(x.shape)}: {error}"
            ) from error
        gradient = _input_gradient(output, x)
    if gradient is None:
        raise NotDifferentiableError(
            f"the output of {name}'s twin is not connected to X: a step cuts the gradient. "
            f"{FUNCTION_WAYS_OUT}"
        )
    if not bool(gradient.isfinite().all()):
        raise NotDifferentiableError(
            f"the gradient of {name}'s twin with respect to X is not finite for some of the "
            f"first {len(rows)} rows. {WAYS_OUT}"
        )
    if hasattr(estimator, "predict_proba"):
        _check_agreement(output.detach(), np.asarray(estimator.predict_proba(rows)), name)


def _leaf(rows: Any, module: nn.Module) -> Tensor:
    """Return rows as a tensor that requires a gradient, on the module's device."""
    values = np.asarray(rows)
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    x = torch.tensor(values)
    tensor = next(chain(module.parameters(), module.buffers()), None)
    if tensor is not None:
        # MPS has no float64
        x = x.float() if tensor.device.type == "mps" else x
        x = x.to(tensor.device)
    return x.requires_grad_()


def _input_gradient(output: Tensor, x: Tensor) -> Tensor | None:
    """Return the gradient of the summed output for ``x``, None if they are not connected."""
    if not output.requires_grad:
        return None
    return torch.autograd.grad(output.sum(), x, allow_unused=True)[0]


def _check_agreement(logits: Tensor, expected: np.ndarray, name: str) -> None:
    """Raise ValueError unless the softmax of ``logits`` is ``expected``."""
    found = logits.softmax(dim=-1).cpu().numpy()
    if found.shape != expected.shape:
        raise ValueError(
            f"the twin of {name} gives outputs of shape {found.shape}, its predict_proba "
            f"{expected.shape}"
        )
    gap = float(np.abs(found - expected).max())
    # written so that NaN fails, too
    if not gap <= _TOLERANCE:
        raise ValueError(
            f"the twin does not compute what {name} does: probabilities differ by up to "
            f"{gap:.3g} (allowed: {_TOLERANCE:g}). Is the module in evaluation mode, and does "
            "each registered twin repeat its step's transform?"
        )
