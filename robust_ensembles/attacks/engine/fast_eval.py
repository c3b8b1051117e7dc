"""The same decisions in less time: a module's layers as they compute fastest in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..._exchange import exchanged
from ..._logging import tell_once
from .._folding import Forward, fast_forwards, observe, plain_layers
from .margins import member_logits

# logits may differ from the module's own by this many units in the last place of the largest
_ULPS = 4096


class FastEval:
    """What the layers of a frozen module in eval mode are exchanged for while it is attacked.

    BatchNorm in eval mode is a multiplication and a sum, which the convolution or linear layer
    before it can do as well; and on a CPU, float32 convolutions are faster with channels-last
    weights. Only `forward` of layers is exchanged. If the logits of the samples to try change by
    more than rounding, nothing is; the reason is logged once for each class of module.

    Parameters
    ----------
    module : nn.Module
        Frozen and in eval mode, see `untouched`.
    x : Tensor of shape (n_samples, ...)
        A few samples to try.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self._forwards: dict[nn.Module, Forward] = {}
        layers = plain_layers(module)
        if not len(x) or not any(isinstance(layer, nn.Conv2d | nn.BatchNorm1d) for layer in layers):
            return
        problems = []
        # channels-last is the part that user code may trip over, in view(n, -1) for instance
        for channels_last in (True, False):
            try:
                problem = self._prepare(module, layers, x, channels_last=channels_last)
            except RuntimeError as error:
                problem = f"{type(error).__name__}: {error}"
            if problem is None:
                break
            problems.append(problem)
            self._forwards = {}
        if problems:
            tell_once(f"attacks on {type(module)} are slower than possible: {problems[0]}")

    def _prepare(
        self, module: nn.Module, layers: list[nn.Module], x: Tensor, *, channels_last: bool
    ) -> str | None:
        """Set what is exchanged; what is wrong with that, if anything."""
        expected, followers = observe(module, layers, x)
        self._forwards = fast_forwards(layers, followers, channels_last=channels_last)
        with self.on(), torch.no_grad():
            found = member_logits(module, x)
        tolerance = _ULPS * torch.finfo(expected.dtype).eps * float(expected.abs().max())
        if torch.allclose(found, expected, rtol=0.0, atol=tolerance, equal_nan=True):
            return None
        return "its outputs change, or are random"

    def __bool__(self) -> bool:
        """Whether there is anything to exchange."""
        return bool(self._forwards)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Exchange the layers for as long as the context lasts."""
        with exchanged(self._forwards):
            yield
