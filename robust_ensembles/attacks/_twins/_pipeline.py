"""Torch modules that chain the twins of a Pipeline's steps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class HasMemberLogits(Protocol):
    """A module of several members that gives the logits of each."""

    def member_logits(self, x: Tensor) -> Tensor:
        """Return logits of shape (n_members, n, n_classes)."""


def match_parameters(x: Tensor, module: nn.Module) -> Tensor:
    """Cast ``x`` to the floating dtype of a module's parameters (or else of its buffers).

    Parameters
    ----------
    x : Tensor
        Input for ``module``.
    module : nn.Module
        A module made by `as_torch` takes raw X in any floating dtype and casts by itself, so
        that its steps see all digits of X: for such a module ``x`` stays as it is.

    Returns
    -------
    Tensor
        ``x``, differentiably cast where necessary.
    """
    if isinstance(module, TwinPipeline):
        return x
    for tensor in chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            return x.to(tensor.dtype)
    return x


class TwinPipeline(nn.Module):
    """Twins of a Pipeline's steps, one after the other.

    Parameters
    ----------
    steps : sequence of nn.Module
        Twins of the transformers.
    final : nn.Module or None
        Module of the predictor at the end, if there is one. Its input is cast to the dtype of
        its parameters.

    Attributes
    ----------
    clip_values : None
        The final module's box of valid inputs lies behind the steps and says nothing about raw
        X, so it is not passed on.
    """

    clip_values: None = None

    def __init__(self, steps: Sequence[nn.Module], final: nn.Module | None = None) -> None:
        super().__init__()
        self.steps = nn.Sequential(*steps)
        self.final = final

    def _transform(self, x: Tensor) -> Tensor:
        """Return what the final module takes."""
        x = self.steps(x)
        return x if self.final is None else match_parameters(x, self.final)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last module for raw ``x`` of shape (n, n_features)."""
        x = self._transform(x)
        return x if self.final is None else self.final(x)


class TwinEnsemblePipeline(TwinPipeline):
    """A `TwinPipeline` whose final module is an ensemble with ``member_logits``."""

    def member_logits(self, x: Tensor) -> Tensor:
        """Return each member's logits for raw X.

        Parameters
        ----------
        x : Tensor of shape (n, n_features)
            Raw rows.

        Returns
        -------
        Tensor of shape (n_members, n, n_classes)
            Logits.
        """
        return cast(HasMemberLogits, self.final).member_logits(self._transform(x))
