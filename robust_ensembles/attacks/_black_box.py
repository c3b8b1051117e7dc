"""A classifier without a differentiable twin, for attacks that look at its outputs alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class BlackBox(nn.Module):
    """Log-probabilities of a fitted classifier, by its `predict_proba`; no gradient passes.

    Parameters
    ----------
    estimator : fitted classifier
        Of any package. What it wants to be called with a DataFrame gets one with the columns that
        it was fitted with.
    """

    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities.

        Parameters
        ----------
        x : Tensor of shape (n_samples, ...)
            Raw X.

        Returns
        -------
        log_probabilities : Tensor of shape (n_samples, n_classes)
            Where a probability is 0, the logarithm of the smallest number of the dtype of `x`.
        """
        if not len(x):
            # scikit-learn's estimators refuse it
            return x.new_empty(0, len(self.estimator.classes_))
        probabilities = np.array(self.estimator.predict_proba(self._given(x)))
        values = torch.from_numpy(probabilities).to(x)
        return values.clamp_min(torch.finfo(x.dtype).tiny).log()

    def _given(self, x: Tensor) -> Any:
        rows = x.detach().cpu().numpy()
        names = getattr(self.estimator, "feature_names_in_", None)
        if names is None:
            return rows
        # names come from a DataFrame, so that pandas is there
        import pandas as pd

        return pd.DataFrame(rows, columns=names)
