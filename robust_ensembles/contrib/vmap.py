"""Members of the same architecture as one network whose weights have an additional axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..modules import Ensemble

Named = dict[str, Tensor]


def vectorized_logits(module: Ensemble, inputs: Tensor | Sequence[Tensor]) -> Tensor:
    """Logits of all members by one forward pass, with one call for a layer of all members.

    Values, gradients of any order and BatchNorm's statistics are those of a loop over the
    members, up to rounding. Dropout draws other random numbers than a loop, different ones for
    each member.

    Parameters
    ----------
    module : Ensemble
        One for which `why_not_vectorized` returns None.
    inputs : Tensor of shape (n_samples, ...), or sequence of n_members of them
        One batch that all members see, or one for each.

    Returns
    -------
    logits : Tensor of shape (n_members, n_samples, n_classes)
    """
    logits: Tensor = vectorized(module, inputs, _logits)
    return logits


@contextmanager
def vectorized_members(module: Ensemble) -> Iterator[Ensemble]:
    """Within the context, compute an ensemble's `member_logits` by one forward pass.

    So everything that uses the ensemble as a whole, attacks included, is vectorized too. The
    method then also takes a sequence of inputs, one for each member.

    Parameters
    ----------
    module : Ensemble
        One for which `why_not_vectorized` returns None.

    Yields
    ------
    module : Ensemble
        The same.
    """
    # a partial, not a closure: copies of the ensemble made in the meantime must call themselves
    vars(module)["member_logits"] = partial(vectorized_logits, module)
    try:
        yield module
    finally:
        del vars(module)["member_logits"]


def vectorized(
    module: Ensemble,
    inputs: Tensor | Sequence[Tensor],
    call: Callable[[nn.Module, Tensor], Any],
) -> Any:
    """Apply a function to every member and its batch; see `vectorized_logits`.

    Parameters
    ----------
    module : Ensemble
    inputs : Tensor or sequence of n_members Tensors
    call : callable
        Takes a member and a batch; returns a Tensor or a tuple of Tensors. It may hook the member,
        for its embedding for example.

    Returns
    -------
    outputs : Tensor or tuple of Tensors
        The results of `call`, with the members on an additional first axis.
    """
    members = list(module)
    template = _Called(members[0], call)
    parameters = _stacked([dict(member.named_parameters()) for member in members])
    buffers = _stacked([dict(member.named_buffers()) for member in members])
    shared = isinstance(inputs, Tensor)
    x = inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))

    def one(parameters: Named, buffers: Named, x: Tensor) -> tuple[Any, Named]:
        state = {**parameters, **buffers}
        outputs = functional_call(template, state, (x,))
        return outputs, {name: state[name] for name in buffers}

    lifted = torch.vmap(one, in_dims=(0, 0, None if shared else 0), randomness="different")
    outputs, moved = lifted(parameters, buffers, x)
    if any(layer.training for layer in members[0].modules()):
        _write_back(members, moved)
    return outputs


def _logits(member: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = member(x)
    return logits


# prefix of the names of a member's parameters in `_Called`
_PREFIX = "member."


class _Called(nn.Module):
    """A function of a module as a module, so that its weights can be replaced during a call."""

    def __init__(self, member: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.member, self.call = member, call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.member, x)


def _stacked(tensors: Sequence[Named]) -> Named:
    """Stack tensors of the same name on an additional first axis; gradients reach each of them."""
    return {_PREFIX + name: torch.stack([named[name] for named in tensors]) for name in tensors[0]}


@torch.no_grad()
def _write_back(members: Sequence[nn.Module], moved: Named) -> None:
    """Copy new values into the members' buffers, in place."""
    by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for i, member in enumerate(members):
        for name, buffer in member.named_buffers():
            # one kernel takes all tensors of one type
            old, new = by_dtype.setdefault(buffer.dtype, ([], []))
            old.append(buffer)
            new.append(moved[_PREFIX + name][i])
    for old, new in by_dtype.values():
        torch._foreach_copy_(old, new)


def why_not_vectorized(module: Ensemble) -> str | None:
    """Why the members cannot run as one network.

    Parameters
    ----------
    module : Ensemble
        In the mode in which it will run.

    Returns
    -------
    reason : str or None
        None if they can. A forward pass that depends on values of its tensors
        (``if x.max() > 1``) is only found by running it: torch raises RuntimeError then.
    """
    members = list(module)
    if len(members) < 2:
        return "there is one member only"
    if _count(members) != sum(_count([member]) for member in members):
        return "members share parameters or buffers"
    layers = [layer for member in members for layer in member.modules()]
    for layer in layers:
        reason = _why_not_layer(layer)
        if reason is not None:
            return f"{reason} ({type(layer).__name__})"
    first = _architecture(members[0])
    for i, member in enumerate(members[1:], start=1):
        if _architecture(member) != first:
            return f"member {i} differs from member 0 in architecture, settings or mode"
    return None if _count(members) else "members have no parameters"


def _why_not_layer(layer: nn.Module) -> str | None:
    if any(getattr(layer, hooks) for hooks in _HOOKS):
        return "a layer has hooks"
    if "forward" in vars(layer):
        # as `fast_double_backward` does it, whose functions torch cannot vectorise
        return "a layer's forward pass was exchanged"
    if getattr(layer, "momentum", 0.0) is None and getattr(layer, "track_running_stats", False):
        return "a layer reads its count of batches on the host: momentum=None"
    return None


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# attributes of every module; all others are settings of the layer
_OF_MODULES = frozenset(vars(nn.Module()))


def _architecture(member: nn.Module) -> list[tuple[Any, ...]]:
    """What two members must have in common: layers, their settings, modes and shapes."""
    layers = [
        (name, type(layer), layer.training, sorted(_settings(layer)))
        for name, layer in member.named_modules()
    ]
    tensors = [(name, t.shape, t.dtype, t.device) for name, t in _named_tensors(member)]
    return [*layers, *tensors]


def _settings(layer: nn.Module) -> Iterable[tuple[str, str]]:
    return ((name, repr(v)) for name, v in vars(layer).items() if name not in _OF_MODULES)


def _named_tensors(member: nn.Module) -> list[tuple[str, Tensor]]:
    return [*member.named_parameters(), *member.named_buffers()]


def _count(members: Sequence[nn.Module]) -> int:
    """Number of distinct tensors of the members."""
    return len({id(tensor) for member in members for _, tensor in _named_tensors(member)})
