"""Checks of data sets that are read sample by sample, as `_inputs` does with arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import column_or_1d
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from ..training import StreamedX, private_global_rng, split_item, to_tensor


def is_dataset(X: Any) -> bool:
    """Whether X is a data set of torch's, and not an array."""
    return isinstance(X, Dataset)


def open_dataset(dataset: Any) -> tuple[NDArray[Any], Any]:
    """Look at the first sample of a data set.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset

    Returns
    -------
    x : ndarray of shape (1, ...), float32 or uint8
    label : object
        What stands beside it, or None.

    Raises
    ------
    TypeError
        If samples cannot be taken in an order.
    ValueError
        If there are none, or the first is no sample.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{kind} gives its samples in an order of its own and without a length, so epochs, "
            "splits and interrupted fits could not be reproduced. Give a data set with "
            "__len__ and __getitem__ (an index over the files is enough), or an array, which may "
            "be a memory map: numpy.load(path, mmap_mode='r')"
        )
    if not len(dataset):
        raise ValueError(f"{kind} is empty; at least one sample is needed")
    with private_global_rng(0):  # of a data set that augments
        x, label = split_item(dataset[0])
    return to_tensor(x, 0).numpy()[None], label


def stream(estimator: Any, dataset: Any, first: NDArray[Any]) -> StreamedX:
    """The inputs of a data set, in the shape that the estimator has learned.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
        With `input_shape_`.
    dataset : torch.utils.data.Dataset
    first : ndarray of shape (1, ...)

    Returns
    -------
    X : StreamedX
    """
    return StreamedX(
        dataset,
        sample_shape=first.shape[1:],
        input_shape=estimator.input_shape_,
        dtype=first.dtype,
        num_workers=estimator.num_workers,
    )


def check_labels(X: StreamedX, y: ArrayLike | None, first: Any) -> NDArray[Any]:
    """Labels of a data set: those given, else its own.

    Parameters
    ----------
    X : StreamedX
    y : array-like of shape (n_samples,) or None
        None takes them from the attribute ``targets``, or ``tensors`` of a `TensorDataset`, and
        else by a pass over the data.
    first : object
        What stands beside the first sample.

    Returns
    -------
    y : ndarray of shape (n_samples,)

    Raises
    ------
    ValueError
        If there are none, or not one for each sample.
    """
    if y is None:
        y = _known_labels(X.dataset)
        y = _as_array(X.labels() if y is None else y)
        if y[:1].tolist() != _as_array([first]).tolist():
            raise ValueError(
                f"the attribute targets of the data set begins with the label {y[:1].tolist()}, "
                f"its first item has {first!r}; give the right labels: clf.fit(dataset, y)"
            )
    labels: NDArray[Any] = column_or_1d(y)
    if len(labels) != len(X):
        raise ValueError(f"the data set has {len(X)} samples, and y {len(labels)} labels")
    if labels.dtype.kind == "f":
        assert_all_finite(labels, input_name="y")
    return labels


def _known_labels(dataset: Any) -> Any:
    """Labels that can be had without reading any sample, or None."""
    if isinstance(dataset, Subset):
        inner = _known_labels(dataset.dataset)
        return None if inner is None else _as_array(inner)[np.asarray(dataset.indices)]
    if hasattr(dataset, "tensors") and len(dataset.tensors) > 1:
        return dataset.tensors[1]
    # a transform of labels would change them
    if getattr(dataset, "target_transform", None) is None:
        return getattr(dataset, "targets", None)
    return None


def _as_array(labels: Any) -> NDArray[Any]:
    if isinstance(labels, Tensor | np.ndarray):
        return np.asarray(labels)
    plain = [getattr(label, "item", lambda label=label: label)() for label in labels]
    if any(label is None for label in plain):
        raise ValueError(
            "the data set gives no labels: let its items be (x, y), or give y beside it, as in "
            "clf.fit(dataset, y)"
        )
    return np.asarray(plain)
