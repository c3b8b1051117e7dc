"""The user's own functions that training calls, tried or checked before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch.utils.data import Subset

from ..training import (
    AugmentationPipeline,
    EnsembleDataset,
    StreamedX,
    private_global_rng,
    to_float,
)
from ._components import resolve_device


def resolve_train_split(train_split: Any, seed: int) -> Any:
    """A fraction becomes a stratified split, and errors of all splits name the parameter."""
    if train_split is None:
        return None
    if callable(train_split):
        return TrainSplit(train_split)
    return TrainSplit(ValidSplit(float(train_split), stratified=True, random_state=seed))


@dataclass(frozen=True)
class TrainSplit:
    """A split whose failures say where it came from.

    Parameters
    ----------
    split : callable
        ``(dataset, y) -> (training part, part that is held back or None)``.
    """

    split: Any

    def __call__(self, dataset: Any, y: Any = None, **kwargs: Any) -> tuple[Any, Any]:
        """Split; called by skorch.

        Parameters
        ----------
        dataset : EnsembleDataset
        y : ndarray of shape (n_samples,)
        **kwargs : dict

        Returns
        -------
        training, held_back : data sets

        Raises
        ------
        ValueError
        """
        try:
            training, held_back = self.split(dataset, y, **kwargs)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"train_split={self.split!r} cannot split {len(dataset)} samples: {error}"
            ) from error
        for part in (training, held_back):
            if part is not None and not isinstance(part, (EnsembleDataset, Subset)):
                raise ValueError(
                    f"train_split={self.split!r} must give two parts of the data set that it is "
                    f"called with, such as ValidSplit does; it gave a {type(part).__name__}"
                )
        return training, held_back


def try_callables(estimator: Any, X: NDArray[Any] | StreamedX, y: NDArray[np.int64]) -> None:
    """Call the user's own functions that training calls, while nothing is built yet.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    X : ndarray of shape (n_samples, ...), float32 or uint8, or StreamedX
        The first samples are augmented.
    y : int64 ndarray of shape (n_samples,)

    Raises
    ------
    TypeError, ValueError
        If `augmentation` or `train_split` do not give what is asked of them.
    """
    split = resolve_train_split(estimator.train_split, seed=0)
    if split is not None:
        split(EnsembleDataset(X, y), y)
    if estimator.augmentation is None:
        return
    with private_global_rng(0):  # of a data set that draws
        first = X.read([0])[0] if isinstance(X, StreamedX) else torch.from_numpy(X[:2].copy())
    tried = to_float(first.to(resolve_device(estimator.device)), torch.float32)
    AugmentationPipeline(estimator.augmentation).check(tried)


def check_callbacks(callbacks: Any) -> None:
    """Raise for what is no callback of skorch.

    Parameters
    ----------
    callbacks : list or None

    Raises
    ------
    TypeError
    """
    for entry in callbacks or ():
        named = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)
        callback = entry[1] if named else entry
        kind = callback if isinstance(callback, type) else type(callback)
        if not issubclass(kind, Callback):
            raise TypeError(
                "callbacks must be a list of skorch callbacks, or of pairs of a name and one; "
                f"got {entry!r}"
            )
