"""Validation of X, y, weights and user functions before a fit, and what is learned from them.

`check_X` validates arrays and data sets. The other functions are about the box, data sets, labels,
weights, and functions given by the user, in this order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import assert_all_finite, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from .._checks import as_array, check_sample_weight, near_one, warn, without_graph
from ..attacks.engine.balls import box_excess, check_box
from ..modules.layers import check_input_shape
from ..training import (
    AugmentationPipeline,
    EnsembleDataset,
    StreamedX,
    private_global_rng,
    split_item,
    to_float,
    to_tensor,
)
from .parameters import resolve_device

Box = tuple[float, float]


def check_X(
    estimator: Any, X: Any, y: Any = "no_validation", *, reset: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Validate X (and y) and reshape it for the members.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
        Gets `n_features_in_`, `feature_names_in_` and `input_shape_` if `reset`.
    X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
        Or a `torch.utils.data.Dataset` of such samples.
    y : array-like of shape (n_samples,), default="no_validation"
        As in scikit-learn's `validate_data`: by default, y is not validated.
    reset : bool
        Whether to learn the shape, or to compare it with the learned one.

    Returns
    -------
    X : ndarray of shape (n_samples, *input_shape_), float32 or uint8, or StreamedX
    y : ndarray of shape (n_samples,)
        Empty if none was given.

    Raises
    ------
    ValueError, TypeError
        With the given shape, the allowed ones, and how to fix it.
    """
    if is_dataset(X):
        return _check_dataset(estimator, X, y, reset=reset)
    X, y = without_graph(X, "X"), without_graph(y, "y")
    shape = _sample_shape(X)
    if shape is not None and len(shape) == 3:
        X = np.asarray(X).reshape(len(X), math.prod(shape))
    dtypes = [np.float32, np.float64, np.uint8]
    if not reset and shape is not None:
        _compare_shape(estimator, shape)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
        checked = validate_data(estimator, X, y, reset=reset, dtype=dtypes)
    X, y = checked if isinstance(checked, tuple) else (checked, np.empty(0))
    if reset:
        estimator.input_shape_ = _resolve_input_shape(estimator.input_shape, shape, X.shape[1])
    if X.dtype == np.float64:
        X = _to_float32(X)
    return X.reshape(len(X), *estimator.input_shape_), y


def _check_dataset(
    estimator: Any, dataset: Any, y: Any, *, reset: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Check a data set's first sample; the others are checked when they are read."""
    first, label = open_dataset(dataset)
    check_X(estimator, first, reset=reset)
    X: Any = stream(estimator, dataset, first)
    without = isinstance(y, str) and y == "no_validation"
    return X, np.empty(0) if without else check_labels(X, y, label)


def _sample_shape(X: Any) -> tuple[int, ...] | None:
    """Shape of one sample of an array; None if scikit-learn's own check decides."""
    if not hasattr(X, "shape"):
        X = as_array(X, "X") if isinstance(X, (list, tuple)) else X
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) < 2:
        return None
    if len(shape) not in (2, 4):
        hint = " For grey images add a channel axis: X[:, None]." if len(shape) == 3 else ""
        raise ValueError(
            "X must have shape (n_samples, n_features) or (n_samples, channels, height, width); "
            f"got {shape}.{hint}"
        )
    return tuple(int(size) for size in shape[1:])


def _compare_shape(estimator: Any, shape: tuple[int, ...]) -> None:
    fitted = estimator.input_shape_
    if len(shape) == 3 and shape != fitted:
        raise ValueError(
            f"X has samples of shape {shape}, but {type(estimator).__name__} was fitted with "
            f"{fitted}"
        )


def _resolve_input_shape(
    wanted: Any, shape: tuple[int, ...] | None, n_features: int
) -> tuple[int, ...]:
    if wanted is None:
        return shape or (n_features,)
    wanted = check_input_shape(wanted, owner="input_shape")
    if shape is not None and len(shape) == 3 and shape != wanted:
        raise ValueError(f"input_shape={wanted} but X has samples of shape {shape}")
    if math.prod(wanted) != n_features:
        raise ValueError(
            f"input_shape={wanted} has {math.prod(wanted)} numbers, but X has {n_features} "
            "features; their product must be the same"
        )
    return wanted


def _to_float32(X: NDArray[np.float64]) -> NDArray[np.float32]:
    largest = float(np.abs(X).max(initial=0))
    if largest > float(np.finfo(np.float32).max):
        raise ValueError(
            f"X holds values up to {largest:.3g}, too large for float32; scale X first, such as "
            "by a StandardScaler in a Pipeline"
        )
    return X.astype(np.float32)


def resolve_clip_values(clip_values: Any, X: Any) -> Box | None:
    """The box of the data.

    Parameters
    ----------
    clip_values : "auto", tuple of two floats, or None
    X : ndarray of shape (n_samples, ...), or StreamedX
        For the latter, only ``"auto"`` reads all samples, unless they are uint8. Whether a sample
        is in an explicit box is checked when it is read.

    Returns
    -------
    clip_values : tuple of two floats or None

    Raises
    ------
    ValueError
        If X is outside an explicit box.
    """
    if clip_values is None or (isinstance(clip_values, str) and X.dtype == np.uint8):
        return None if clip_values is None else (0.0, 1.0)
    if isinstance(X, StreamedX) and not isinstance(clip_values, str):
        check_box(clip_values, "estimator")
        X.box = float(clip_values[0]), float(clip_values[1])
        return X.box
    scale = 255 if X.dtype == np.uint8 else 1
    low, high = float(X.min()) / scale, float(X.max()) / scale
    if isinstance(clip_values, str):
        if low >= 0 and high <= 1:
            return (0.0, 1.0)
        if X.ndim == 4:
            warn(
                f"X spans [{low:.4g}, {high:.4g}], so attacks stay in no box, and their eps is in "
                f"these units: 8/255 is {8 / 255 / (high - low) if high > low else 0:.2g} of the "
                "span. For images give raw pixels in [0, 1] (or uint8) and normalise inside the "
                "module, or set clip_values."
            )
        return None
    check_box(clip_values, "estimator")
    box = (float(clip_values[0]), float(clip_values[1]))
    excess = box_excess(low, high, box)
    if excess:
        raise ValueError(
            f"X lies up to {excess:.3g} outside clip_values={box}: it spans [{low:.4g}, "
            f"{high:.4g}]. Give the box that the raw data live in, and scale inside the module "
            "(normalize=...) or in a Pipeline."
        )
    return box


def is_dataset(X: Any) -> bool:
    """Whether X is a `torch.utils.data.Dataset`, and not an array."""
    return isinstance(X, Dataset)


def open_dataset(dataset: Any) -> tuple[NDArray[Any], Any]:
    """Read the first sample of a data set.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset

    Returns
    -------
    x : ndarray of shape (1, ...), float32 or uint8
    label : object
        Its label, or None.

    Raises
    ------
    TypeError
        If samples cannot be read by index.
    ValueError
        If there are none, or the first is not a valid sample.
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
    """The inputs of a data set, in the input shape of the estimator.

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
        None takes them from the attribute ``targets``, or ``tensors`` of a `TensorDataset`,
        otherwise from a pass over the data.
    first : object
        The label of the first sample.

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
    """Labels that are available without reading any sample, or None."""
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


def check_classes(estimator: Any, y: NDArray[Any], *, classes: Any, reset: bool) -> Any:
    """Set or check `classes_`; return class indices.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    y : ndarray of shape (n_samples,)
    classes : array-like of shape (n_classes,) or None
        All classes, if known.
    reset : bool

    Returns
    -------
    index : int64 ndarray of shape (n_samples,)
    """
    check_classification_targets(y)
    if classes is not None:
        classes = _distinct(classes)
    if reset:
        found = np.unique(y) if classes is None else classes
        if len(found) < 2:
            raise ValueError(
                f"y holds {len(found)} class ({found.tolist()}); a classifier needs 2 or more"
            )
        estimator.classes_ = found
    elif classes is not None and not np.array_equal(classes, estimator.classes_):
        raise ValueError(f"classes={classes!r} differs from the first call's {estimator.classes_}")
    # not by NumPy's comparison, for which the string "1" equals the number 1
    index = {label: i for i, label in enumerate(estimator.classes_.tolist())}
    labels = y.tolist()
    unknown = {label: None for label in labels if label not in index}
    if unknown:
        raise ValueError(
            f"y holds labels that are not among the classes: {list(unknown)[:5]}; known are "
            f"{estimator.classes_[:10].tolist()}"
        )
    return np.array([index[label] for label in labels], dtype=np.int64)


def _distinct(classes: Any) -> NDArray[Any]:
    """The given classes, sorted."""
    given = as_array(classes, "classes")
    try:
        found = np.unique(given)
        comparable = given.ndim == 1 and bool((found == found).all())  # NaN is not itself
    except TypeError:  # numbers and strings together
        comparable = False
    if not comparable:
        raise ValueError(
            f"classes must be a flat list of labels of one kind, without None or NaN; got "
            f"{classes!r}"
        )
    return found


def check_weights(
    class_weight: Any, sample_weight: Any, X: NDArray[Any], y: NDArray[Any]
) -> NDArray[np.float32] | None:
    """Sample weights times class weights, of mean 1; None if all are equal.

    Parameters
    ----------
    class_weight : dict, "balanced" or None
    sample_weight : array-like of shape (n_samples,) or None
    X : ndarray of shape (n_samples, ...)
    y : ndarray of shape (n_samples,)
        Labels.

    Returns
    -------
    weight : float32 ndarray of shape (n_samples,) or None
    """
    if sample_weight is None and class_weight is None:
        return None
    weight = check_sample_weight(sample_weight, X)
    if class_weight is not None:
        class_weights = compute_sample_weight(class_weight, y)
        if not ((class_weights >= 0) & (class_weights < np.inf)).all():
            raise ValueError(f"class_weight must not be negative or infinite; got {class_weight!r}")
        weight = weight * near_one(class_weights)
    weight = near_one(weight)
    total = weight.sum()
    if total <= 0:
        raise ValueError("sample_weight and class_weight leave no sample with a positive weight")
    normalized: NDArray[np.float32] = (weight * (len(weight) / total)).astype(np.float32)
    return normalized


def resolve_train_split(train_split: Any, seed: int) -> Any:
    """Turn a fraction into a stratified split, and let errors of all splits name the parameter."""
    if train_split is None:
        return None
    if callable(train_split):
        return TrainSplit(train_split)
    return TrainSplit(ValidSplit(float(train_split), stratified=True, random_state=seed))


@dataclass(frozen=True)
class TrainSplit:
    """A split whose errors name the parameter that it came from.

    Parameters
    ----------
    split : callable
        ``(dataset, y) -> (training part, held-out part or None)``.
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
    """Try out the user's functions that training will call, before anything is built.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    X : ndarray of shape (n_samples, ...), float32 or uint8, or StreamedX
        The first samples are augmented.
    y : int64 ndarray of shape (n_samples,)

    Raises
    ------
    TypeError, ValueError
        If `augmentation` or `train_split` return something else than required.
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
    """Raise for entries that are not skorch callbacks.

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
