"""What a file says of its estimator, beside the weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from .._system import versions
from ..attacks.engine.balls import check_box
from ..estimators import BaseEnsembleClassifier
from .values import (
    ENSEMBLES,
    NETWORKS,
    NotStorableError,
    decode,
    decode_array,
    decode_object,
    encode,
    encode_array,
    storable_params,
)

FORMAT = 1
"""Version of the format; raised when older versions of this package could not read a file."""

_MAX_SEED = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Header:
    """The header, in plain values that JSON knows.

    Parameters
    ----------
    format : int
    kind : str
        Class of the estimator.
    params : dict
        Its parameters.
    omitted : dict of str to str
        Parameters that could not be stored, and what they were.
    classes, feature_names : dict or None
        Arrays.
    input_shape : list of int
    clip_values : list of two floats, or None
    layers : list of lists of str, or None
        `layers_` of the methods that look into their members.
    seed : int
        Of the random streams of the fit.
    history : list of dict
    optimizer : dict
        What its parameter groups have become, and with its memory, what of that is no tensor.
    versions : dict of str to str
        Of what the file was written with. For the reader's information only.
    """

    format: int
    kind: str
    params: dict[str, Any]
    omitted: dict[str, str]
    classes: dict[str, Any]
    feature_names: dict[str, Any] | None
    input_shape: list[int]
    clip_values: list[float] | None
    layers: list[list[str]] | None
    seed: int
    history: list[Any]
    optimizer: dict[str, Any]
    versions: dict[str, str]

    def plain(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def describe(estimator: BaseEnsembleClassifier, optimizer: dict[str, Any]) -> Header:
    """The header of a fitted estimator.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    optimizer : dict
        Of the optimizer, in plain values.

    Returns
    -------
    header : Header

    Raises
    ------
    NotStorableError
        If the classes are of a type that cannot be stored.
    """
    params, omitted = _split(storable_params(estimator))
    names = getattr(estimator, "feature_names_in_", None)
    box = estimator.clip_values_
    return Header(
        format=FORMAT,
        kind=type(estimator).__name__,
        params=params,
        omitted=omitted,
        classes=encode_array(estimator.classes_),
        feature_names=None if names is None else encode_array(names),
        input_shape=[int(size) for size in estimator.input_shape_],
        clip_values=None if box is None else [float(bound) for bound in box],
        layers=getattr(estimator, "layers_", None),
        seed=int(estimator.net_.seed),
        history=[_split(row)[0] for row in estimator.history_.to_list()],
        optimizer=optimizer,
        versions=versions(),
    )


def read_header(plain: Any) -> Header:
    """Check the header of a file.

    Parameters
    ----------
    plain : object
        From JSON.

    Returns
    -------
    header : Header

    Raises
    ------
    ValueError
        If it was written by a newer version, or is none.
    """
    if not isinstance(plain, dict) or type(plain.get("format")) is not int:
        raise ValueError("its header has no format version")
    if plain["format"] != FORMAT:
        raise ValueError(
            f"it has format version {plain['format']}, this version of robust_ensembles reads "
            f"{FORMAT}; it was written with robust_ensembles "
            f"{str(plain.get('versions', {}))[:200]}: install that"
        )
    names = {field.name for field in fields(Header)}
    if set(plain) != names:
        raise ValueError(f"its header has other fields than {sorted(names)}")
    kinds = {"params": dict, "omitted": dict, "history": list, "optimizer": dict}
    for name, kind in kinds.items():
        if not isinstance(plain[name], kind):
            raise ValueError(f"{name} in its header is no {kind.__name__}")
    if type(plain["seed"]) is not int or not 0 <= plain["seed"] <= _MAX_SEED:
        raise ValueError("its seed is no whole number of 32 bits")
    return Header(**plain)


def unfitted(header: Header) -> BaseEnsembleClassifier:
    """The estimator with the parameters of a header.

    Parameters
    ----------
    header : Header

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


def set_fitted(estimator: BaseEnsembleClassifier, header: Header) -> None:
    """Set what a fit learns from the shape of X and from y.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    header : Header

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


def read_history(header: Header) -> list[dict[str, Any]]:
    """The rows of the training history.

    Parameters
    ----------
    header : Header

    Returns
    -------
    rows : list of dict

    Raises
    ------
    ValueError
    """
    if not all(isinstance(row, dict) for row in header.history):
        raise ValueError("its history has something else than rows")
    return [{name: decode(value) for name, value in row.items()} for row in header.history]


def _split(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Described values by name, and names of the types of those that cannot be described."""
    described, omitted = {}, {}
    for name, value in values.items():
        try:
            described[name] = encode(value)
        except NotStorableError as error:
            omitted[name] = str(error)
    return described, omitted
