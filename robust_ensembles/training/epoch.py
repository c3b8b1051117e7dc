"""The last weights that were good, to go back to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from .._memory_errors import is_out_of_memory
from ..exceptions import NonFiniteLossError
from ._meter import EpochMeter


class LastGood:
    """Keeps the state of modules and their optimizer from the start of each epoch.

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
        """Put the last good state back if a loss turns non-finite, or memory runs out, within.

        The state from the start of an epoch is good if the loss of its first batch is finite.

        Parameters
        ----------
        meter : EpochMeter
            Of this epoch, which raises the error.
        training : bool
            Whether the block trains, so that the state at its start is worth keeping.
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
        # gradients are of what is not wanted
        self.optimizer.zero_grad()
        self.optimizer.load_state_dict(good[1])

    def check(self, epoch: int) -> None:
        """Raise for weights that a last step has ruined: no loss has seen them yet.

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
