"""The description of an estimator in the header of its file."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ..attacks.engine.balls import check_box
from ..estimators import BaseEnsembleClassifier
from ..state.values import NotStorableError, decode_array, encode_array
from .values import ENSEMBLES, NETWORKS, decode_object, encode, storable_params


@dataclass(frozen=True)
class EstimatorHeader:
    """The description of an estimator, in plain values for JSON.

    Parameters
    ----------
    kind : str
        Class of the estimator.
    params : dict
        Its parameters.
    omitted : dict of str to str
        Parameters that could not be stored, with a description.
    classes, feature_names : dict or None
        Arrays.
    input_shape : list of int
    clip_values : list of two floats, or None
    layers : list of lists of str, or None
        `layers_` of methods that use features of their members.
    """

    kind: str
    params: dict[str, Any]
    omitted: dict[str, str]
    classes: dict[str, Any]
    feature_names: dict[str, Any] | None
    input_shape: list[int]
    clip_values: list[float] | None
    layers: list[list[str]] | None


def describe(estimator: BaseEnsembleClassifier) -> dict[str, Any] | str:
    """Describe an estimator that has the attributes learned from its data.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier

    Returns
    -------
    plain : dict or str
        The fields of an `EstimatorHeader`, or why there are none: `load` can only make estimators
        of this package, with labels that JSON can hold.
    """
    kind = type(estimator)
    if ENSEMBLES.get(kind.__name__) is not kind:
        return f"a {kind.__module__}.{kind.__qualname__}, which is no class of robust_ensembles"
    names = getattr(estimator, "feature_names_in_", None)
    try:
        classes = encode_array(estimator.classes_)
        features = None if names is None else encode_array(names)
    except NotStorableError as error:
        return f"a {kind.__name__} with labels or feature names that are an {error}"
    params, omitted = _split(storable_params(estimator))
    box = estimator.clip_values_
    header = EstimatorHeader(
        kind=kind.__name__,
        params=params,
        omitted=omitted,
        classes=classes,
        feature_names=features,
        input_shape=[int(size) for size in estimator.input_shape_],
        clip_values=None if box is None else [float(bound) for bound in box],
        layers=getattr(estimator, "layers_", None),
    )
    return asdict(header)


def read_estimator(plain: dict[str, Any]) -> EstimatorHeader:
    """Check the description of an estimator.

    Parameters
    ----------
    plain : dict
        From JSON.

    Returns
    -------
    header : EstimatorHeader

    Raises
    ------
    ValueError
    """
    names = {field.name for field in fields(EstimatorHeader)}
    if set(plain) != names:
        raise ValueError(f"estimator in its header has other fields than {sorted(names)}")
    for name in ("params", "omitted"):
        if not isinstance(plain[name], dict):
            raise ValueError(f"{name} in its header is no dict")
    return EstimatorHeader(**plain)


def unfitted(header: EstimatorHeader) -> BaseEnsembleClassifier:
    """The estimator with the parameters of a header.

    Parameters
    ----------
    header : EstimatorHeader

    Returns
    -------
    estimator : BaseEnsembleClassifier

    Raises
    ------
    ValueError
    """
    estimator = decode_object(header.kind, header.params, ENSEMBLES)
    estimator._validate_params()
    given = estimator.module
    networks = given if isinstance(given, (list, tuple)) else [given]
    for network in networks:  # they are called: attacks among the objects can be called too
        if not isinstance(network, (str, type(None))) and network not in NETWORKS.values():
            raise ValueError(f"its module {str(network)[:80]} is no network of this package")
    return estimator


def set_fitted(estimator: BaseEnsembleClassifier, header: EstimatorHeader) -> None:
    """Set the attributes that a fit learns from the shape of X and from y.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    header : EstimatorHeader

    Raises
    ------
    ValueError
    """
    classes = decode_array(header.classes)
    if len(classes) < 2 or not np.array_equal(np.unique(classes), classes):
        raise ValueError("its classes are not two or more different labels in their order")
    shape = header.input_shape
    if not isinstance(shape, list) or any(type(s) is not int or s < 1 for s in shape) or not shape:
        raise ValueError(f"its input_shape is {str(shape)[:80]}, not whole numbers from 1")
    estimator.classes_ = classes
    estimator.input_shape_ = tuple(shape)
    estimator.n_features_in_ = math.prod(shape)
    estimator.clip_values_ = None
    if header.clip_values is not None:
        check_box(header.clip_values, "its header")
        estimator.clip_values_ = (float(header.clip_values[0]), float(header.clip_values[1]))
    if header.feature_names is not None:
        names = decode_array(header.feature_names)
        if len(names) != estimator.n_features_in_:
            raise ValueError(f"it has {len(names)} feature names for {shape}")
        estimator.feature_names_in_ = names


def _split(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Described values by name, and names of the types of those that cannot be described."""
    described, omitted = {}, {}
    for name, value in values.items():
        try:
            described[name] = encode(value)
        except NotStorableError as error:
            omitted[name] = str(error)
    return described, omitted
