"""Features of any network by layer name, and images crafted in feature space.

`features` reads a layer, `replaced_output` replaces its output, `captured_embedding` collects the
classifier's input; all use forward hooks, so that networks need no change. `resolve_layers` finds
suitable layers. `distill` crafts images that look like one sample and have a member's features of
another, `repel` images far from their own features; `PerturbationMemory` keeps perturbations from
epoch to epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._checks import one_of
from .._strategy import current_strategy
from ..attacks.engine.ascent import GradientOracle, StepRule, ascend
from ..attacks.engine.balls import LinfBall
from ..attacks.engine.forward import frozen
from ..speed import full_precision

if TYPE_CHECKING:
    from .step import TrainingStep

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def features(member: nn.Module, layer: str, x: Tensor) -> Tensor:
    """Output of one layer; the network is only run up to this layer.

    Parameters
    ----------
    member : nn.Module
    layer : str
        A name from `resolve_layers`.
    x : Tensor of shape (n_samples, ...)

    Returns
    -------
    output : Tensor of shape (n_samples, ...)
        The first one, if the forward pass calls the layer more than once.
    """

    def leave(_module: nn.Module, _args: Any, output: Tensor) -> None:
        raise _LayerReachedError(_read(output))

    handle = member.get_submodule(layer).register_forward_hook(leave)
    try:
        member(x)
    except _LayerReachedError as reached:
        return reached.output
    finally:
        handle.remove()
    raise RuntimeError(f"the forward pass of {type(member).__name__} did not reach {layer!r}")


@contextmanager
def replaced_output(
    member: nn.Module, layer: str, replace: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Replace a layer's output within the block.

    Parameters
    ----------
    member : nn.Module
    layer : str
    replace : callable
        Takes the output and returns its replacement, of the same shape.
    """

    def exchange(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        strategy = current_strategy()
        return strategy.take_own_rows(replace(strategy.gather_rows(output)))

    handle = member.get_submodule(layer).register_forward_hook(exchange)
    try:
        yield
    finally:
        handle.remove()


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
        activation, if the network has one; else the input of its last linear layer.
    """
    embeddings: list[Tensor] = []
    layer = getattr(member, "embedding", None)
    if isinstance(layer, nn.Linear):
        handle = layer.register_forward_hook(lambda _m, _x, out: embeddings.append(_read(out)))
    else:
        _, classifier = final_linear(member, "an embedding")
        handle = classifier.register_forward_pre_hook(lambda _m, x: embeddings.append(_read(x[0])))
    try:
        yield embeddings
    finally:
        handle.remove()


def _read(output: Tensor) -> Tensor:
    """The output of a layer from a hook, for all samples and in full precision."""
    return current_strategy().gather_rows(full_precision(output))


class _LayerReachedError(Exception):
    """Raised by a hook to leave a forward pass early, with the layer's output."""

    def __init__(self, output: Tensor) -> None:
        self.output = output


def resolve_layers(
    members: Sequence[nn.Module],
    layers: Sequence[str] | Sequence[Sequence[str]] | None,
    input_shape: tuple[int, ...],
) -> list[list[str]]:
    """Names of the layers whose outputs a method uses, for each member.

    Parameters
    ----------
    members : sequence of nn.Module
    layers : sequence of str, sequence of such sequences, or None
        Names as in `named_modules`, one list for all members or one for each. None takes the
        network's attribute `feature_layers` if it has one, as in this package, else its
        convolutions (with the normalisation that follows), residual blocks and linear layers.
    input_shape : tuple of int
        Shape of one sample, to try out the layers.

    Returns
    -------
    layers : list of n_members lists of str

    Raises
    ------
    ValueError
        For a name that does not exist, with the nearest one; for a layer that the forward pass
        does not reach, or whose output is not a tensor with one row per sample.
    """
    nested = layers is not None and not all(isinstance(name, str) for name in layers)
    if nested and layers is not None and not all(_are_names(names) for names in layers):
        raise ValueError(
            "layers must be a list of names as in named_modules, or such a list for each member; "
            f"got {layers!r}"
        )
    if nested and layers is not None and len(layers) != len(members):
        raise ValueError(
            f"layers has lists for {len(layers)} members, the ensemble has {len(members)}; give "
            "one list of names for all, or one for each member"
        )
    resolved = []
    for index, member in enumerate(members):
        named: Any = layers[index] if nested and layers is not None else layers
        usable = _usable_layers(member, input_shape)
        if named is None:
            chosen = [name for name in feature_layers(member) if name in usable]
        else:
            chosen = list(named)
        _check_layers(chosen, member, index, usable)
        resolved.append(chosen)
    return resolved


def _are_names(names: Any) -> bool:
    return isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)


def _check_layers(chosen: list[str], member: nn.Module, index: int, usable: set[str]) -> None:
    owner = f"layers: member {index} ({type(member).__name__})"
    if not chosen:
        raise ValueError(f"{owner} has no layer to take features from; name one or more in layers")
    names = [name for name, _ in member.named_modules() if name]
    for name in chosen:
        one_of(name, names, owner)
        if name not in usable:
            raise ValueError(
                f"{owner}: the forward pass does not call {name!r}, or what it returns is no "
                f"tensor with one row per sample; usable are {sorted(usable)}"
            )


def feature_layers(member: nn.Module) -> list[str]:
    """Layers in a network's attribute `feature_layers`, or suitable ones if it has none.

    Parameters
    ----------
    member : nn.Module

    Returns
    -------
    names : list of str
    """
    declared = getattr(member, "feature_layers", None)
    if declared is not None:
        return list(declared)
    position = {name: place for place, (name, _) in enumerate(member.named_modules())}
    # the network itself may contain its convolutions directly without being a block
    blocks = [name for name, module in member.named_modules() if name and _is_block(module)]
    found: dict[str, int] = {}
    for parent, module in member.named_modules():
        if any(parent.startswith(f"{block}.") for block in blocks):
            continue  # a block's inner containers, such as the convolution of its shortcut
        names = [f"{parent}.{name}".strip(".") for name in _layers_of(module)]
        found.update({name: position[name] for name in names})
        if parent in blocks:
            found[parent] = found.pop(names[-1])  # after the sum with the shortcut
    return sorted(found, key=found.__getitem__)


def _is_block(module: nn.Module) -> bool:
    """Whether a module looks like a residual block: at least two convolutions, not sequential."""
    convolutions = [c for c in module.children() if isinstance(c, _CONVOLUTIONS)]
    return len(convolutions) > 1 and not isinstance(module, nn.Sequential)


def _layers_of(module: nn.Module) -> list[str]:
    """Children that are convolutions or linear layers, or the normalisation right after them."""
    children = list(module.named_children())
    names = []
    for position, (name, child) in enumerate(children):
        if isinstance(child, (*_CONVOLUTIONS, nn.Linear)):
            following = children[position + 1 : position + 2]
            normalized = following and isinstance(following[0][1], _NORMS)
            names.append(following[0][0] if normalized else name)
    return names


def _usable_layers(member: nn.Module, input_shape: tuple[int, ...]) -> set[str]:
    """Layers that a forward pass calls and whose output is a tensor with one row per sample."""
    parameter = next(member.parameters(), torch.empty(0))
    probe = torch.zeros((2, *input_shape), dtype=parameter.dtype, device=parameter.device)
    usable: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim > 1 and len(output) == len(probe):
                usable.add(name)

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in member.named_modules() if name]
    try:
        with frozen(member), torch.no_grad():
            member(probe)
    finally:
        for handle in handles:
            handle.remove()
    return usable


def final_linear(member: nn.Module, owner: str) -> tuple[str, nn.Linear]:
    """Name and layer of the last linear layer of a network, its classifier.

    Parameters
    ----------
    member : nn.Module
    owner : str
        Name for the message.

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
    """Size of a network's embedding: the output of `embedding`, or the classifier's input.

    Parameters
    ----------
    member : nn.Module
    owner : str
        Name for the message.

    Returns
    -------
    size : int
    """
    layer = getattr(member, "embedding", None)
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return final_linear(member, owner)[1].in_features


def distill(
    step: TrainingStep,
    member: nn.Module,
    layer: str,
    *,
    x_target: Tensor,
    eps: float,
    walk: StepRule,
) -> Tensor:
    r"""Samples of the batch, changed to have a member's features of other samples.

    .. math:: \arg\min_{|x' - x|_\infty \le \varepsilon} |f^l(x') - f^l(x_t)|^2

    Parameters
    ----------
    step : TrainingStep
        The walk starts at its x. The members must be frozen.
    member : nn.Module
    layer : str
    x_target : Tensor of the shape of x
    eps : float
        Radius of the ball around x, in the units of X.
    walk : StepRule

    Returns
    -------
    x_distilled : Tensor of the shape of x
        Crafted once per step for the same arguments.
    """

    def craft() -> Tensor:
        with torch.no_grad():
            target = features(member, layer, x_target)
        descent = FeatureDistance(member, layer, target, descend=True)
        ball = LinfBall(step.x, eps, step.clip_values)
        return _walk(step, descent, ball, ball.project(step.x), walk)

    settings = layer, eps, walk.n_steps, walk.step_size, walk.decay
    return step.remembered(craft, "distilled", member, member.training, x_target, settings)


def repel(
    step: TrainingStep,
    member: nn.Module,
    layer: str,
    *,
    start: Tensor,
    ball: LinfBall,
    walk: StepRule,
) -> Tensor:
    r"""Samples of the batch, moved away from a member's features of themselves.

    .. math:: \arg\max_{|x' - x|_\infty \le \varepsilon} |f^l(x') - f^l(x)|^2

    Parameters
    ----------
    step : TrainingStep
        The members must be frozen.
    member : nn.Module
    layer : str
    start : Tensor of the shape of x
        Start of the walk; not x itself, where the gradient is zero.
    ball : LinfBall
        The ball around x.
    walk : StepRule

    Returns
    -------
    x_repelled : Tensor of the shape of x
    """
    with torch.no_grad():
        own = features(member, layer, step.x)
    return _walk(step, FeatureDistance(member, layer, own, descend=False), ball, start, walk)


def _walk(
    step: TrainingStep, distance: FeatureDistance, ball: LinfBall, start: Tensor, walk: StepRule
) -> Tensor:
    """Take all steps within the ball around the batch."""
    return ascend(distance, ball, start, step.y, walk, stop_when_broken=False)[0]


class FeatureDistance(GradientOracle):
    """Distance of a member's features from given ones, to be maximised or minimised.

    Parameters
    ----------
    member : nn.Module
        Its parameters must be frozen by the caller.
    layer : str
    target : Tensor of shape (n_samples, ...)
        The given features.
    descend : bool
        Whether to minimise the distance.
    """

    def __init__(self, member: nn.Module, layer: str, target: Tensor, *, descend: bool) -> None:
        self.member, self.layer, self.target = member, layer, target
        self.sign = -1.0 if descend else 1.0

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of each sample's mean squared distance; nothing counts as broken."""
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            difference = features(self.member, self.layer, x) - self.target
            distance = self.sign * difference.square().flatten(1).mean(dim=1).sum()
            (gradient,) = torch.autograd.grad(distance, x)
        return gradient, self.broken(x, y)


class PerturbationMemory:
    """One perturbation for each training sample, empty at first.

    Parameters
    ----------
    n_samples : int
    """

    def __init__(self, n_samples: int) -> None:
        self.n_samples = n_samples
        self.kept: Tensor | None = None

    def recall(self, index: Tensor, *, like: Tensor) -> Tensor:
        """Stored perturbations of some samples.

        Parameters
        ----------
        index : int64 Tensor of shape (n,)
            Indices of the samples.
        like : Tensor of shape (n, ...)
            Shape, dtype and device of the perturbations.

        Returns
        -------
        kept : Tensor of shape (n, ...)
            NaN for samples without one.
        """
        return torch.full_like(like, torch.nan) if self.kept is None else self.kept[index]

    def keep(self, index: Tensor, perturbations: Tensor) -> None:
        """Store perturbations in place of the previous ones.

        Parameters
        ----------
        index : int64 Tensor of shape (n,)
        perturbations : Tensor of shape (n, ...)
        """
        if self.kept is None:
            shape = self.n_samples, *perturbations.shape[1:]
            self.kept = perturbations.new_full(shape, torch.nan)
        self.kept[index] = perturbations
