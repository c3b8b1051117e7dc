"""Perturbations of the training samples, kept from epoch to epoch."""

from __future__ import annotations

import torch
from torch import Tensor


class PerturbationMemory:
    """One perturbation for each training sample, empty at first.

    Parameters
    ----------
    n_samples : int
    """

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples
        self.kept: Tensor | None = None

    def recall(self, index: Tensor, *, like: Tensor) -> Tensor:
        """What is kept for some samples.

        Parameters
        ----------
        index : int64 Tensor of shape (n,)
            Of the samples.
        like : Tensor of shape (n, ...)
            Shape, dtype and device of the perturbations.

        Returns
        -------
        kept : Tensor of shape (n, ...)
            NaN where nothing is kept yet.
        """
        if self.kept is None:
            self.kept = like.new_full((self.n_samples, *like.shape[1:]), torch.nan)
        return self.kept[index]

    def keep(self, index: Tensor, perturbations: Tensor) -> None:
        """Keep perturbations in place of the former ones.

        Parameters
        ----------
        index : int64 Tensor of shape (n,)
        perturbations : Tensor of shape (n, ...)
        """
        if self.kept is None:
            raise RuntimeError("nothing was recalled yet")
        self.kept[index] = perturbations
