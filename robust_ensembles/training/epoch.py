"""One epoch: the means of its loss terms, and recovery from failures.

`EpochMeter` collects the terms, moves them from the device once and finds non-finite ones.
`LastGood` restores the last good weights. `explained_out_of_memory` adds advice to errors when
memory runs out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .._system import is_out_of_memory
from ..exceptions import NonFiniteLossError, TrainingMemoryError
from .data import MiniBatches


class EpochMeter:
    """Collects the terms of each batch.

    Parameters
    ----------
    prefix : str
        ``"train"`` or ``"valid"``; columns of the history are named prefix_term.
    epoch : int
        Counted from 0, for messages.
    immediate : bool
        Whether to check for non-finite terms at each batch, which costs nothing on a CPU, instead
        of at the end of the epoch, so that the host does not wait for an accelerator.

    Attributes
    ----------
    first_bad : int or None
        Number of the first batch with a non-finite term, once found.
    """

    def __init__(self, prefix: str, epoch: int, *, immediate: bool) -> None:
        self.prefix, self.epoch, self.immediate = prefix, epoch, immediate
        self.first_bad: int | None = None
        self._names: list[str] = []
        self._rows: list[Tensor] = []
        self._sizes: list[int] = []

    def add(self, terms: dict[str, Tensor], n_samples: int) -> None:
        """Add the scalar terms of a batch.

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
        # the total is non-finite if a term is: name the term
        guilty = [i for i, name in enumerate(self._names) if name != "loss"] or [0]
        column = next((i for i in guilty if not math.isfinite(bad[i])), guilty[0])
        before = [row[column] for row in table[:number]]
        last = f"{before[-1]:.6g}" if before else "none in this epoch"
        raise NonFiniteLossError(
            f"the {self.prefix} loss turned non-finite in epoch {self.epoch + 1}, batch "
            f"{number + 1}: {self._names[column]} is {bad[column]} (last finite value: {last}). "
            "The last good weights are restored. Lower lr, or look for extreme values in X."
        )


class LastGood:
    """Keeps the state of modules and their optimizer at the start of each epoch.

    Parameters
    ----------
    modules : sequence of nn.Module
    optimizer : torch.optim.Optimizer
    """

    def __init__(self, modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> None:
        self.modules, self.optimizer = modules, optimizer
        self.states: tuple[list[dict[str, Any]], dict[str, Any]] | None = None

    @contextmanager
    def protect(self, meter: EpochMeter, *, training: bool) -> Iterator[None]:
        """Restore the last good state if a loss becomes non-finite or memory runs out inside.

        The state from the start of an epoch is good if the loss of its first batch is finite.

        Parameters
        ----------
        meter : EpochMeter
            The meter of this epoch, which raises the error.
        training : bool
            Whether the block trains, so that the state at its start must be kept.
        """
        earlier = self.states
        if training:
            modules = [deepcopy(module.state_dict()) for module in self.modules]
            self.states = modules, deepcopy(self.optimizer.state_dict())
        try:
            yield
        except NonFiniteLossError:
            started_badly = training and meter.first_bad == 0
            good = earlier if started_badly and earlier is not None else self.states
            self._restore(good)
            raise
        except Exception as error:
            if is_out_of_memory(error):
                self._restore(self.states)
            raise

    def _restore(self, good: tuple[list[dict[str, Any]], dict[str, Any]] | None) -> None:
        if good is None:
            return
        for module, state in zip(self.modules, good[0], strict=True):
            module.load_state_dict(state)
        # the gradients are those of the discarded weights
        self.optimizer.zero_grad()
        self.optimizer.load_state_dict(good[1])

    def check(self, epoch: int) -> None:
        """Raise for non-finite weights after the last step, which no loss has used yet.

        Parameters
        ----------
        epoch : int
            Counted from 0.

        Raises
        ------
        NonFiniteLossError
        """
        if not all(bool(p.isfinite().all()) for m in self.modules for p in m.parameters()):
            raise NonFiniteLossError(
                f"a gradient turned non-finite in epoch {epoch + 1}, although the loss was "
                "finite. The last good weights are restored. Lower lr, or look for extreme "
                "values in X."
            )


@contextmanager
def explained_out_of_memory(batches: MiniBatches) -> Iterator[None]:
    """Add the batch size to try to the error if memory runs out within the block.

    Parameters
    ----------
    batches : MiniBatches
        The training batches.

    Raises
    ------
    TrainingMemoryError
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _explained(error, batches) from error


def _explained(error: Exception, batches: MiniBatches) -> TrainingMemoryError:
    size, finished = batches.batch_size, batches.epoch
    smaller = size // 2
    said = str(error).partition("\n")[0] or type(error).__name__
    what = [f"out of memory on {batches.device} with batches of {size} samples ({said})"]
    if finished:
        what.append(
            f"There was enough before, and the weights of the finished epochs ({finished}) are "
            "kept: does something else take memory now? fit goes on from them with "
            "warm_start=True, or from the disk with checkpoint_dir"
        )
    if smaller:
        what.append(f'Try batch_size={smaller}, or "auto", which halves it until it fits')
    what.append(
        "Fewer members or smaller networks need less memory as well, on a GPU also "
        'precision="bfloat16"'
    )
    return TrainingMemoryError(". ".join(what), batch_size=smaller)
