"""Running a module in an attack: frozen, in mini-batches, and without changing it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from ..._system import is_out_of_memory

CraftMode = Literal["eval", "train_frozen_stats", "train"]

log = logging.getLogger("robust_ensembles")


@contextmanager
def frozen(module: nn.Module, mode: CraftMode = "eval") -> Iterator[nn.Module]:
    """Freeze a module's parameters and set its mode; restore both at the end, also on errors.

    Parameters
    ----------
    module : nn.Module
    mode : {"eval", "train_frozen_stats", "train"}, default="eval"
        ``"eval"`` for evaluation. In training: ``"train_frozen_stats"`` uses batch statistics
        but restores the buffers afterwards; with ``"train"``, the iterates of the attack change
        BatchNorm's running statistics, as in released code.

    Yields
    ------
    module : nn.Module
    """
    training = {m: m.training for m in module.modules()}
    requires_grad = {p: p.requires_grad for p in module.parameters()}
    buffers = [] if mode == "train" else _buffers(module)
    try:
        module.train(mode != "eval")
        for parameter in requires_grad:
            parameter.requires_grad_(False)
        yield module
    finally:
        for submodule, was_training in training.items():
            submodule.training = was_training
        for parameter, required in requires_grad.items():
            parameter.requires_grad_(required)
        with torch.no_grad():
            for owner, name, buffer, value in buffers:
                buffer.copy_(value)
                owner._buffers[name] = buffer  # a forward may have put another in its place


def _buffers(module: nn.Module) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    return [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]


class Minibatches:
    """Runs functions of samples in mini-batches, smaller ones after memory has run out.

    Parameters
    ----------
    size : int or None, default=None
        Maximum number of samples in a mini-batch; None always takes all at once.

    Attributes
    ----------
    size : int or None
        Halved when memory runs out, for all later calls.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def map(self, function: Callable[..., tuple[Tensor, ...]], *rows: Tensor) -> tuple[Tensor, ...]:
        """Apply a function to all samples.

        Parameters
        ----------
        function : callable
            Takes tensors with one row per sample and returns a tuple of such tensors.
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
        """The function's result; None, and a smaller `size` from now on, if memory ran out."""
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


def member_logits(module: nn.Module, x: Tensor) -> Tensor:
    """Logits of every member, (n_members, n_samples, n_classes); one member for a plain module."""
    of_members: Callable[[Tensor], Tensor] | None = getattr(module, "member_logits", None)
    return module(x).unsqueeze(0) if of_members is None else of_members(x)


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Device of a module's first parameter, or the default for a module without parameters."""
    return next((parameter.device for parameter in module.parameters()), default)
