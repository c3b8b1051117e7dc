"""Check a network by running it once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def check_member(
    member: nn.Module, *, index: int, input_shape: tuple[int, ...], n_classes: int
) -> None:
    """Refuse a network that does not map (2, *input_shape) to floats of shape (2, n_classes).

    Parameters
    ----------
    member : nn.Module
        Network; its mode, and that of each of its layers, is left as it was.
    index : int
        Place in the ensemble, for messages.
    input_shape : tuple of int
        Shape of one sample.
    n_classes : int
        Number of logits wanted.

    Raises
    ------
    ValueError
        If the forward pass fails or its result is something else.
    """
    label = f"module: member {index} ({type(member).__name__})"
    tensors = itertools.chain(member.parameters(), member.buffers())
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    probe = torch.zeros((2, *input_shape), dtype=like.dtype, device=like.device)
    try:
        with _eval_mode(member), torch.no_grad():
            output = member(probe)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{label} does not take inputs of shape {tuple(probe.shape)}, from "
            f"input_shape={input_shape}: {error}. Use a network for this shape, or reshape X"
        ) from error
    _check_output(output, label, n_classes)


def _check_output(output: object, label: str, n_classes: int) -> None:
    """Refuse an output of the wrong kind, rank or width."""
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"{label} returns {kind} in evaluation mode; it must return one tensor of float "
            f"logits of shape (n, {n_classes})"
        )
    if output.ndim != 2 or len(output) != 2:
        raise ValueError(
            f"{label} returns shape {tuple(output.shape)} for a batch of 2; it must return "
            f"logits of shape (2, {n_classes})"
        )
    if output.shape[1] != n_classes:
        raise ValueError(
            f"{label} returns {output.shape[1]} classes, y has {n_classes}: let its constructor "
            f"take n_classes (or num_classes), or set its number of outputs in module_params"
        )


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode for a while, then each layer's own mode (some may be frozen)."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training
