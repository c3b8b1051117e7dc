"""Identity of a fit: its data and parameters as plain values, comparable between processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from .._plain import describe, digest, type_name
from .._strategy import current_strategy
from ..training import StreamedX, differences
from .parameters import EnsembleParameters

# parameters that affect how a fit runs, and not its result
_HOW = {"accelerate", "checkpoint_dir", "device", "num_workers", "verbose"}


def describe_fit(
    estimator: Any, X: NDArray[Any], y: NDArray[np.int64], sample_weight: NDArray[Any] | None
) -> dict[str, Any]:
    """Describe the parameters and the data of a fit.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
        With `classes_`.
    X : ndarray of shape (n_samples, ...), or StreamedX
        Of the latter, a few samples represent all.
    y : int64 ndarray of shape (n_samples,)
        Class indices.
    sample_weight : ndarray of shape (n_samples,) or None

    Returns
    -------
    about : dict
        Values that JSON can hold, by name. Functions are represented by their names.
    """
    data = {"X": X, "y": y, "classes": estimator.classes_, "sample_weight": sample_weight}
    described = {"estimator": type_name(estimator), **_params(estimator)}
    return {**described, **{name: _describe(value) for name, value in data.items()}}


def fit_folder(checkpoint_dir: str | os.PathLike[str], about: dict[str, Any]) -> Path:
    """The folder of a fit.

    Parameters
    ----------
    checkpoint_dir : path-like
        A folder, in whose name ``{fit}`` is replaced by a digest of the fit.
    about : dict
        From `describe_fit`.

    Returns
    -------
    folder : Path
    """
    return Path(os.fspath(checkpoint_dir).replace("{fit}", digest(about)[:20]))


def check_same_fit(estimator: Any, get_description: Callable[[], dict[str, Any]]) -> None:
    """Raise unless all processes that train together have the same fit.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    get_description : callable
        Returns the result of `describe_fit`, which takes time for large data.

    Raises
    ------
    ValueError
        In all processes.
    """
    strategy = current_strategy()
    if strategy.is_single:
        return
    if estimator.batch_size == "auto":  # one process alone would begin again
        raise ValueError(
            "batch_size='auto' cannot be used with data_parallel, since memory may run out in one "
            "process only; give the size of the whole batch, of which each process takes its share"
        )
    # the folder's name may differ from host to host: only the first process uses it
    kept = {"checkpoint_dir": "None" if estimator.checkpoint_dir is None else "a folder"}
    strategy.check_same({**get_description(), **kept}, _explain)


def _explain(first: dict[str, Any], other: dict[str, Any], rank: int) -> str:
    return "; ".join(differences(first, other, ("in process 0", f"in process {rank}")))


def _params(estimator: Any) -> dict[str, Any]:
    skipped = _HOW if isinstance(estimator, EnsembleParameters) else set()
    params = estimator.get_params(deep=False)
    return {name: _describe(value) for name, value in params.items() if name not in skipped}


def _describe(value: Any) -> Any:
    return describe(value, _describe_object)


def _describe_object(value: Any) -> Any:
    if isinstance(value, StreamedX):
        return {"shape": list(value.shape), "fingerprint": value.fingerprint()}
    if isinstance(value, np.random.RandomState):
        state = value.get_state(legacy=True)
        return {"type": "RandomState", "state": [_describe(part) for part in state]}
    if isinstance(value, nn.Module):
        weights = {name: _describe(part) for name, part in value.state_dict().items()}
        return {"type": type_name(value), "weights": weights}
    if isinstance(value, partial):
        return [_describe(part) for part in (value.func, value.args, value.keywords)]
    if hasattr(value, "__qualname__"):
        return type_name(value)
    if not hasattr(value, "get_params"):
        return {"type": type_name(value), "attributes": _plain_attributes(value)}
    fitted = {"module": _describe(value.module_)} if hasattr(value, "net_") else {}
    return {"type": type_name(value), "params": _params(value), **fitted}


def _plain_attributes(value: Any) -> dict[str, Any]:
    """Settings of an object such as skorch's `ValidSplit`, which has no `get_params`."""
    return {
        name: _describe(part)
        for name, part in getattr(value, "__dict__", {}).items()
        if not name.startswith("_")
        and not name.endswith("_")
        and (part is None or isinstance(part, bool | str | Real))
    }
