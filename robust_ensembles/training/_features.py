"""Embeddings of any network, by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..distributed import whole
from ._precision import full_precision


def final_linear(member: nn.Module, owner: str) -> tuple[str, nn.Linear]:
    """Name and layer of the last linear layer of a network, its classifier.

    Parameters
    ----------
    member : nn.Module
    owner : str
        Who asks, for the message.

    Returns
    -------
    name : str
    layer : nn.Linear

    Raises
    ------
    ValueError
        If there is no linear layer.
    """
    layers = [(name, m) for name, m in member.named_modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ValueError(
            f"{owner} needs a network that ends in a linear layer, whose input is the embedding; "
            f"{type(member).__name__} has no nn.Linear. Use one that has, such as 'resnet20'."
        )
    return layers[-1]


def embedding_size(member: nn.Module, owner: str) -> int:
    """Size of a network's embedding: what its layer `embedding` gives, or its classifier takes.

    Parameters
    ----------
    member : nn.Module
    owner : str
        Who asks, for the message.

    Returns
    -------
    size : int
    """
    layer = getattr(member, "embedding", None)
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return final_linear(member, owner)[1].in_features


@contextmanager
def captured_embedding(member: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the embedding of each forward pass within the block.

    Parameters
    ----------
    member : nn.Module

    Yields
    ------
    embeddings : list of Tensors of shape (n_samples, embedding_size)
        One for each forward pass: the output of a linear layer named `embedding`, before its
        activation, where the network has one; else the input of its last linear layer.
    """
    embeddings: list[Tensor] = []
    layer = getattr(member, "embedding", None)
    if isinstance(layer, nn.Linear):
        handle = layer.register_forward_hook(
            lambda _m, _x, out: embeddings.append(whole(full_precision(out)))
        )
    else:
        _, classifier = final_linear(member, "an embedding")
        handle = classifier.register_forward_pre_hook(
            lambda _m, x: embeddings.append(whole(full_precision(x[0])))
        )
    try:
        yield embeddings
    finally:
        handle.remove()
