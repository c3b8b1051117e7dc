"""Masks that the scorers of one pass share, so that no attack runs twice."""

from __future__ import annotations

import pickle
import threading
import weakref
from collections import OrderedDict
from pickle import PicklingError
from typing import Any

import joblib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import as_array
from ..attacks import Attack
from ..attacks._black_box import BlackBox
from ..attacks.engine.target import as_classifier, refuse_dataset
from .robust import correct_mask, robust_mask

Mask = NDArray[np.bool_]
_MAX_PASSES = 4


class SharedMasks:
    """Robust masks, remembered for the latest few passes.

    A pass is one estimator object with its present weights and parameters, X and y; all are
    compared by content, so nothing stale is ever returned: not after more training, not for other
    data, not for an attack whose parameters have been changed. Copies and pickles start empty.
    """

    def __init__(self) -> None:
        self._passes: OrderedDict[str, tuple[weakref.ref[Any], dict[str, Mask]]] = OrderedDict()
        self._kept: dict[int, Attack] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def mask(self, estimator: Any, X: ArrayLike, y: ArrayLike, attacks: tuple[Attack, ...]) -> Mask:
        """Samples that are right without and under each of the attacks.

        Parameters
        ----------
        estimator : fitted estimator
        X : array-like of shape (n_samples, ...)
        y : array-like of shape (n_samples,)
        attacks : tuple of Attack
            Empty for clean accuracy.

        Returns
        -------
        mask : bool ndarray of shape (n_samples,)
        """
        known = self._known(estimator, X, y)
        if not attacks:
            if "clean" not in known:
                known["clean"] = correct_mask(estimator, X, y)
            return known["clean"].copy()
        result = np.ones(np.shape(as_array(y, "y"))[:1], dtype=bool)
        for attack in attacks:
            key = self._key(attack)
            if key not in known:
                known[key] = robust_mask(estimator, X, y, attack=attack)
            result &= known[key]
        return result

    def _key(self, attack: Attack) -> str:
        """What an attack computes, or, where that cannot be hashed, the object that it is."""
        try:
            return str(joblib.hash((type(attack).__qualname__, attack)))
        except (pickle.PicklingError, AttributeError, TypeError):
            # an External attack with a local function, say; kept, so that its id stays its own
            self._kept[id(attack)] = attack
            return f"{id(attack)} {attack!r}"

    def _known(self, estimator: Any, X: ArrayLike, y: ArrayLike) -> dict[str, Mask]:
        """The masks of this pass so far."""
        refuse_dataset(X)
        state = _learnt(estimator)
        # steps that learn nothing, such as a FunctionTransformer, obey their parameters at once
        settings = repr(estimator.get_params()) if hasattr(estimator, "get_params") else ""
        arrays = as_array(X, "X"), as_array(y, "y")
        try:
            key = joblib.hash((state, settings, *arrays))
        except (AttributeError, TypeError, PicklingError) as error:
            raise TypeError(f"X must hold numbers and y labels: {error}") from error
        with self._lock:
            owner, known = self._passes.get(key, (None, {}))
            # other estimators may have equal weights, but other classes
            if owner is None or owner() is not estimator:
                known = {}
                self._passes[key] = weakref.ref(estimator), known
            self._passes.move_to_end(key)
            while len(self._passes) > _MAX_PASSES:
                self._passes.popitem(last=False)
        return known


def _learnt(estimator: Any) -> Any:
    """What training has changed: the weights, or all of a classifier that has no module."""
    module = as_classifier(estimator, gradient=False)
    if isinstance(module, BlackBox):
        return estimator
    return {name: value.cpu().numpy() for name, value in module.state_dict().items()}
