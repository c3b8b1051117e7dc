"""Means of the loss terms over an epoch, moved from the device once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..exceptions import NonFiniteLossError


class EpochMeter:
    """Collects the terms of each batch.

    Parameters
    ----------
    prefix : str
        ``"train"`` or ``"valid"``; columns of the history are called prefix_term.
    epoch : int
        Counted from 0, for messages.
    immediate : bool
        Look for non-finite terms at each batch, free on a CPU, instead of at the end of the
        epoch, which spares an accelerator the waiting.

    Attributes
    ----------
    first_bad : int or None
        Number of the first batch with a non-finite term, once that was noticed.
    """

    def __init__(self, prefix: str, epoch: int, *, immediate: bool) -> None:
        self.prefix, self.epoch, self.immediate = prefix, epoch, immediate
        self.first_bad: int | None = None
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._sizes: list[int] = []

    def add(self, terms: dict[str, Tensor], n_samples: int) -> None:
        """Take the scalar terms of a batch.

        Raises
        ------
        NonFiniteLossError
            If one is NaN or infinite (at once if `immediate`).
        """
        self._names = list(terms)
        row = torch.stack([term.detach() for term in terms.values()])
        self._rows.append(row)
        self._sizes.append(n_samples)
        if self.immediate and not torch.isfinite(row).all():
            self._raise(self._table())

    def write(self, history: Any) -> None:
        """Write the terms, of the epoch and of each batch, into skorch's history.

        Raises
        ------
        NonFiniteLossError
            If a term was NaN or infinite.
        """
        table = self._table()
        if not all(math.isfinite(value) for row in table for value in row):
            self._raise(table)
        total = sum(self._sizes)
        columns = [f"{self.prefix}_{name}" for name in self._names]
        for i, column in enumerate(columns):
            weighted = sum(row[i] * n for row, n in zip(table, self._sizes, strict=True))
            history.record(column, weighted / total)
        for entry, row, size in zip(
            history[-1]["batches"][-len(table) :], table, self._sizes, strict=True
        ):
            entry.update(zip(columns, row, strict=True))
            entry[f"{self.prefix}_batch_size"] = size
        history.record(f"{self.prefix}_batch_count", len(table))

    def _table(self) -> list[list[float]]:
        table: list[list[float]] = torch.stack(self._rows).tolist()
        return table

    def _raise(self, table: list[list[float]]) -> None:
        number, bad = next(
            (i, row) for i, row in enumerate(table) if not all(map(math.isfinite, row))
        )
        self.first_bad = number
        # the total is non-finite whenever a term is: name the term
        guilty = [i for i, name in enumerate(self._names) if name != "loss"] or [0]
        column = next((i for i in guilty if not math.isfinite(bad[i])), guilty[0])
        before = [row[column] for row in table[:number]]
        last = f"{before[-1]:.6g}" if before else "none in this epoch"
        raise NonFiniteLossError(
            f"the {self.prefix} loss turned non-finite in epoch {self.epoch + 1}, batch "
            f"{number + 1}: {self._names[column]} is {bad[column]} (last finite value: {last}). "
            "The last good weights are restored. Lower lr, or look for extreme values in X."
        )
