"""What a fitted ensemble answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..modules import Ensemble, RawInput
from ..training import EnsembleNet, log_proba, member_log_proba
from ._datasets import is_dataset
from .inputs import check_X


class PredictionMixin:
    """Predictions and fitted attributes, all read from `net_`."""

    net_: EnsembleNet
    classes_: NDArray[Any]

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Or a `torch.utils.data.Dataset`; for all predictions.

        Returns
        -------
        y : ndarray of shape (n_samples,)
        """
        winners = self.predict_log_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[winners]
        return labels

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Mean of the members' probabilities.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)

        Returns
        -------
        proba : ndarray of shape (n_samples, n_classes)
        """
        proba: NDArray[np.float64] = np.exp(self.predict_log_proba(X))
        return proba

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Logarithm of the mean of the members' probabilities, which does not underflow.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)

        Returns
        -------
        log_proba : ndarray of shape (n_samples, n_classes)
        """
        check_is_fitted(self)
        return log_proba(self.as_module(), check_X(self, X, reset=False)[0])

    def member_predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities of each member.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)

        Returns
        -------
        proba : ndarray of shape (n_estimators, n_samples, n_classes)
        """
        check_is_fitted(self)
        members = member_log_proba(self.as_module(), check_X(self, X, reset=False)[0])
        proba: NDArray[np.float64] = np.exp(members)
        return proba

    def score(
        self, X: Any, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """Accuracy of `predict`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, channels, height, width)
            Or a `torch.utils.data.Dataset`.
        y : array-like of shape (n_samples,), default=None
            True labels; None are those of a data set.
        sample_weight : array-like of shape (n_samples,), default=None

        Returns
        -------
        score : float
        """
        check_is_fitted(self)
        if y is None:
            if not is_dataset(X):
                raise TypeError("score needs y, the true labels, beside an array")
            y = check_X(self, X, None, reset=False)[1]
        score: float = accuracy_score(y, self.predict(X), sample_weight=sample_weight)
        return score

    def as_module(self) -> RawInput:
        """The fitted ensemble as a torch module in eval mode, for any attack library.

        Returns
        -------
        module : RawInput
            From a tensor of raw X to log mean probabilities; shares its weights with this
            estimator. ``module.member_logits(x)`` gives those of each member.
        """
        check_is_fitted(self)
        return self.net_.as_module()

    @property
    def module_(self) -> Ensemble:
        """The ensemble as a module."""
        return self.net_.module_

    @property
    def estimators_(self) -> list[nn.Module]:
        """The members."""
        return list(self.net_.module_)

    @property
    def history_(self) -> Any:
        """History of the training, one row for each epoch."""
        return self.net_.history

    @property
    def n_iter_(self) -> int:
        """Epochs trained."""
        return len(self.net_.history)

    @property
    def batch_size_(self) -> int:
        """Samples in a training batch: `batch_size`, or what ``"auto"`` has come to."""
        return self.net_.batch_size

    @property
    def device_(self) -> torch.device:
        """Where the members are."""
        return torch.device(self.net_.device)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_")
