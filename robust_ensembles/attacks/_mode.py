"""Attack a module without leaving a trace on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

CraftMode = Literal["eval", "train_frozen_stats", "train"]


@contextmanager
def untouched(module: nn.Module, mode: CraftMode = "eval") -> Iterator[nn.Module]:
    """Freeze a module's parameters and set its mode; put everything back, whatever happens.

    Parameters
    ----------
    module : nn.Module
    mode : {"eval", "train_frozen_stats", "train"}, default="eval"
        ``"eval"`` for evaluation. In training: ``"train_frozen_stats"`` uses batch statistics
        but restores the buffers afterwards, ``"train"`` lets the iterates of the attack move
        BatchNorm's running statistics, as released code does.

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
