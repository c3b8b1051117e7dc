"""How many samples go through a module at once."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from .._memory_errors import is_out_of_memory

log = logging.getLogger("robust_ensembles")


class Passes:
    """Runs functions of samples part by part, in smaller parts once memory has run out.

    Parameters
    ----------
    size : int or None, default=None
        Samples of a part at most; None is all, whatever happens.

    Attributes
    ----------
    size : int or None
        Halved where memory runs out, for all later calls.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def map(self, function: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
        """What a function returns for all samples.

        Parameters
        ----------
        function : callable
            From tensors with one row per sample to a tuple of such tensors.
        *rows : Tensor of shape (n_samples, ...)

        Returns
        -------
        results : tuple of Tensor of shape (n_samples, ...)
        """
        n_samples = len(rows[0])
        if self.size is None:
            return function(*rows)
        parts: list[tuple[Tensor, ...]] = []
        done = 0
        while done < n_samples or not parts:
            end = min(done + self.size, n_samples)
            made = self._attempt(function, [r[done:end] for r in rows])
            if made is not None:
                parts.append(made)
                done = end
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(results) for results in zip(*parts, strict=True))

    def _attempt(
        self, function: Callable[..., tuple[Tensor, ...]], rows: list[Tensor]
    ) -> tuple[Tensor, ...] | None:
        """What the function returns; None, and smaller parts from now on, if memory ran out."""
        n_samples = len(rows[0])
        try:
            return function(*rows)
        except (RuntimeError, MemoryError) as error:
            if n_samples < 2 or not is_out_of_memory(error):
                raise
            self.size = n_samples // 2
            log.warning(
                "out of memory with %d samples at once; going on with %d", n_samples, self.size
            )
        return None
