"""Building the members of an ensemble from the parameter `module`."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .._checks import one_of
from .layers import check_input_shape, check_size
from .lenet import LeNet5
from .mlp import MLP
from .resnet import ResNet20, ResNet26, ResNet32, ResNet44, ResNet56


def check_member(
    member: nn.Module, *, index: int, input_shape: tuple[int, ...], n_classes: int
) -> None:
    """Refuse a network that does not map (2, *input_shape) to floats of shape (2, n_classes).

    Parameters
    ----------
    member : nn.Module
        Network; its mode, and that of each of its layers, is left as it was.
    index : int
        Index in the ensemble, for messages.
    input_shape : tuple of int
        Shape of one sample.
    n_classes : int
        Required number of logits.

    Raises
    ------
    ValueError
        If the forward pass fails or has another result.
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
    """Set evaluation mode, then restore each layer's own mode (some may be frozen)."""
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


MODULES: dict[str, type[nn.Module]] = {
    cls.__name__.lower(): cls
    for cls in (MLP, LeNet5, ResNet20, ResNet26, ResNet32, ResNet44, ResNet56)
}
"""Networks of the package by the lower-case name for `module`."""

ModuleLike: TypeAlias = str | type[nn.Module] | nn.Module | Callable[..., nn.Module] | None
ModuleParams: TypeAlias = Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None


def default_module(input_shape: tuple[int, ...]) -> type[nn.Module]:
    """Choose a network for inputs of a given shape.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one sample, without the batch axis.

    Returns
    -------
    type
        `ResNet20` for images (channels, height, width) of 32 x 32 pixels or more, `LeNet5`
        for smaller ones of 4 x 4 or more, `MLP` for anything else.

    Raises
    ------
    ValueError, TypeError
        If `input_shape` is not a tuple of whole numbers above 0.

    Examples
    --------
    >>> from robust_ensembles.modules import default_module
    >>> default_module((3, 32, 32)).__name__
    'ResNet20'
    """
    shape = check_input_shape(input_shape, owner="default_module")
    if len(shape) != 3 or min(shape[1:]) < 4:
        return MLP
    return ResNet20 if min(shape[1:]) >= 32 else LeNet5


def build_members(
    module: ModuleLike | Sequence[ModuleLike],
    module_params: ModuleParams = None,
    *,
    n_members: int,
    input_shape: tuple[int, ...],
    n_classes: int,
    probe: bool = True,
) -> list[nn.Module]:
    """Build and check the networks of an ensemble.

    Constructors get those of the arguments ``input_shape``, ``n_classes`` (or
    ``num_classes``) and ``in_channels`` that are in their signature. A constructor with
    ``**kwargs`` and neither class count, as in torchvision, gets ``num_classes``. Each network then
    runs once, in evaluation mode, on zeros of shape ``(2, *input_shape)``. Initial weights come
    from torch's global random state, which the caller controls.

    Parameters
    ----------
    module : None, str, nn.Module class, callable, nn.Module, or list or tuple of these
        None for `default_module`; a key of `MODULES`; a class or a factory such as
        ``torchvision.models.resnet18``; an instance, which is copied; or one of these for
        each member.
    module_params : dict, list of dict or None, default=None
        Other arguments of every constructor, which override the above; for a list of modules
        also a list with a dict (or None) for each.
    n_members : int
        Number of networks.
    input_shape : tuple of int
        Shape of one sample, without the batch axis.
    n_classes : int
        Required number of outputs of each network.
    probe : bool, default=True
        Whether to run each network once. False does not check inputs and outputs.

    Returns
    -------
    list of nn.Module
        `n_members` networks, no two of them the same object.

    Raises
    ------
    TypeError
        If a network cannot be constructed from these arguments, or `module` is of another kind.
    ValueError
        If a name is unknown; one instance is given for several members; lengths do not match; or
        a network does not accept inputs of `input_shape` or does not return floats of shape
        (n, n_classes).

    Examples
    --------
    >>> from robust_ensembles.modules import build_members
    >>> nets = build_members(
    ...     "mlp", {"hidden_sizes": (8,)}, n_members=2, input_shape=(4,), n_classes=3
    ... )
    >>> [type(net).__name__ for net in nets]
    ['MLP', 'MLP']
    """
    n_members = check_size(n_members, "n_members")
    n_classes = check_size(n_classes, "n_classes")
    shape = check_input_shape(input_shape, owner="build_members")
    specs = _spread_modules(module, n_members)
    params = _spread_params(module_params, n_members, listed=isinstance(module, (list, tuple)))
    members: list[nn.Module] = []
    for index, (spec, kwargs) in enumerate(zip(specs, params, strict=True)):
        member = _build_one(spec, kwargs, index, shape, n_classes)
        if any(member is other for other in members):
            raise ValueError(
                f"member {index}: the factory passed as module returned the same network as "
                f"before; make it build a new one on each call"
            )
        if probe:
            check_member(member, index=index, input_shape=shape, n_classes=n_classes)
        members.append(member)
    return members


def _spread_modules(module: ModuleLike | Sequence[ModuleLike], n_members: int) -> list[ModuleLike]:
    """One entry of `module` for each member."""
    if isinstance(module, (list, tuple)):
        if len(module) != n_members:
            raise ValueError(
                f"module lists {len(module)} networks for n_members={n_members}; "
                f"list one for each member, or pass one class for all"
            )
        instances = [id(spec) for spec in module if isinstance(spec, nn.Module)]
        if len(set(instances)) < len(instances):
            raise ValueError(
                "module lists the same network instance twice, so these members would be "
                "identical; list instances with weights of their own, or pass the class"
            )
        return list(module)
    if isinstance(module, nn.Module) and n_members > 1:
        raise ValueError(
            f"module is one instance of {type(module).__name__} for n_members={n_members}, so "
            f"the members would be identical; pass the class, or a list of instances"
        )
    return [module] * n_members  # type: ignore[list-item]


def _spread_params(
    module_params: ModuleParams, n_members: int, *, listed: bool
) -> list[dict[str, Any]]:
    """Keyword arguments for each member's constructor."""
    entries = module_params if isinstance(module_params, (list, tuple)) else [module_params]
    for entry in entries:
        if isinstance(entry, Mapping) and not all(isinstance(name, str) for name in entry):
            raise TypeError(f"module_params must have names for keys; got {list(entry)}")
    if module_params is None or isinstance(module_params, Mapping):
        return [dict(module_params or {}) for _ in range(n_members)]
    if not isinstance(module_params, (list, tuple)):
        raise TypeError(f"module_params must be a dict or None, got {module_params!r}")
    if not listed or len(module_params) != n_members:
        raise ValueError(
            f"module_params lists {len(module_params)} entries; a list of them goes with a "
            f"list of modules of the same length, and a dict with anything"
        )
    for index, entry in enumerate(module_params):
        if entry is not None and not isinstance(entry, Mapping):
            raise TypeError(f"module_params[{index}] must be a dict or None, got {entry!r}")
    return [dict(entry or {}) for entry in module_params]


def _build_one(
    spec: ModuleLike,
    kwargs: dict[str, Any],
    index: int,
    input_shape: tuple[int, ...],
    n_classes: int,
) -> nn.Module:
    """Build one network, or copy it if `spec` is an instance."""
    if isinstance(spec, nn.Module):
        if kwargs:
            raise ValueError(
                f"member {index}: module_params {sorted(kwargs)} cannot apply to an instance "
                f"of {type(spec).__name__}; pass its class, or no module_params for it"
            )
        return copy.deepcopy(spec)
    factory = _resolve_factory(spec, index, input_shape)
    name = _factory_name(factory)
    arguments = {**_offered_arguments(factory, input_shape, n_classes), **kwargs}
    try:
        member = factory(**arguments)
    except TypeError as error:
        raise TypeError(
            f"member {index}: {name} could not be built with the arguments "
            f"{sorted(arguments)}: {error}. Pass the arguments of {name} as "
            f"module_params={{'name': value}} or module__name=value"
        ) from error
    if not isinstance(member, nn.Module):
        raise TypeError(
            f"member {index}: module={name} returned a {type(member).__name__}, not an nn.Module"
        )
    return member


def _resolve_factory(
    spec: ModuleLike, index: int, input_shape: tuple[int, ...]
) -> Callable[..., nn.Module]:
    """Class or callable for a name, None, a class or a callable."""
    if spec is None:
        return default_module(input_shape)
    if isinstance(spec, str):
        one_of(spec.lower(), MODULES, "module")
        return MODULES[spec.lower()]
    if callable(spec):
        return spec
    raise TypeError(
        f"member {index}: module must be None, a name, an nn.Module class or instance, a "
        f"callable that returns one, or a list of these, got {spec!r}"
    )


def _factory_name(factory: Callable[..., Any]) -> str:
    """Short name of a class or callable for messages."""
    inner = factory.func if isinstance(factory, functools.partial) else factory
    return str(getattr(inner, "__name__", type(inner).__name__))


def _offered_arguments(
    factory: Callable[..., Any], input_shape: tuple[int, ...], n_classes: int
) -> dict[str, Any]:
    """The standard arguments that are in the signature of `factory`."""
    names, open_ended = _keyword_names(factory)
    offered: dict[str, Any] = {}
    if "input_shape" in names:
        offered["input_shape"] = input_shape
    if "in_channels" in names and len(input_shape) > 1:
        offered["in_channels"] = input_shape[0]
    if "n_classes" in names:
        offered["n_classes"] = n_classes
    elif "num_classes" in names or open_ended:
        offered["num_classes"] = n_classes
    # arguments bound by functools.partial were chosen explicitly
    bound = factory.keywords if isinstance(factory, functools.partial) else {}
    return {name: value for name, value in offered.items() if name not in bound}


def _keyword_names(factory: Callable[..., Any]) -> tuple[set[str], bool]:
    """Keyword names of `factory`, and whether it also takes others (``**kwargs``)."""
    # a class whose __init__ passes on **kwargs also takes the keywords of its bases
    sources: list[Callable[..., Any]] = [factory]
    if isinstance(factory, type):
        sources = [cls.__init__ for cls in factory.__mro__ if "__init__" in vars(cls)]  # type: ignore[misc]
    names: set[str] = set()
    for source in sources:
        if source is nn.Module.__init__ or source is object.__init__:
            return names, False
        try:
            parameters = inspect.signature(source).parameters.values()
        except (TypeError, ValueError):  # some builtins have no signature: offer nothing
            return names, False
        keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {p.name for p in parameters if p.kind in keyword}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            return names, False
    return names, True
