"""Other forward passes for some layers of a module, for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def exchanged(forwards: Mapping[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Let layers compute something else, for as long as the context lasts.

    Parameters, buffers, hooks and `state_dict` are as they were.

    Parameters
    ----------
    forwards : mapping of nn.Module to callable
        What stands in for `forward` of each. Where layers may be copied meanwhile, a
        `functools.partial` of the layer and not a closure: copies have to call themselves.
    """
    own = {layer: vars(layer).get("forward") for layer in forwards}
    try:
        for layer, forward in forwards.items():
            vars(layer)["forward"] = forward
        yield
    finally:
        for layer, before in own.items():
            vars(layer).pop("forward", None)
            if before is not None:
                vars(layer)["forward"] = before
