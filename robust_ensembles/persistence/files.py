"""A fitted ensemble becomes a file."""

from __future__ import annotations

import json
import os

from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..estimators import BaseEnsembleClassifier
from ..state.container import write
from ._allowed import ENSEMBLES
from .header import describe
from .optimizer import split_state

KEY = "robust_ensembles"
"""Under which name the header stands in the file's metadata."""

MODULE, AUXILIARY = "module.", "auxiliary."
"""How names of tensors begin: of the members, and of what is trained beside them."""


def save(
    estimator: BaseEnsembleClassifier,
    path: str | os.PathLike[str],
    *,
    optimizer_state: bool = False,
) -> None:
    """Write a fitted ensemble to a file; the same as ``estimator.save``.

    Parameters
    ----------
    estimator : fitted estimator of this package
    path : path-like
        Replaced as a whole, or left as it was.
    optimizer_state : bool, default=False
        Whether the optimizer's memory is kept, for training on. It makes the file two (SGD with
        momentum) or three times (Adam) as large.

    Raises
    ------
    NotFittedError
    TypeError
        If the estimator is none of this package: a Pipeline, or a class derived from ours.
    ValueError
        If labels or weights are of a type that cannot be stored.
    FileNotFoundError
        If there is no folder to write it to.

    See Also
    --------
    load : What is stored, and how it comes back.
    """
    if ENSEMBLES.get(type(estimator).__name__) is not type(estimator):
        raise TypeError(
            f"save writes the ensembles of robust_ensembles, not a {type(estimator).__name__}; "
            "save the last step of a Pipeline, the best_estimator_ of a search. joblib.dump takes "
            "anything, but its files run code when they are read"
        )
    check_is_fitted(estimator)
    net = estimator.net_
    optimizer, memory = split_state(net.optimizer_, memory=optimizer_state)
    tensors: dict[str, Tensor] = {
        **{MODULE + name: value for name, value in net.module_.state_dict().items()},
        **memory,
    }
    if net.has_auxiliary_:
        state = net.auxiliary_.state_dict()
        tensors.update({AUXILIARY + name: value for name, value in state.items()})
    other = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if other:
        raise ValueError(f"the state of the members has more than tensors: {other[:5]}")
    try:
        header = describe(estimator, optimizer)
    except TypeError as error:
        raise ValueError(f"the labels cannot be stored: {error}") from error
    write(path, tensors, json.dumps(header.plain(), allow_nan=False), KEY)
