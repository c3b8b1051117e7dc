"""The parameters that all estimators share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.utils._param_validation import HasMethods, Interval
from torch import nn

from .._checks import as_array, one_of
from .._parameters import above, between, choice, count, declared, flag, param
from ..training import TECHNIQUES

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}

# optimizers that only take sparse gradients
_UNFIT_OPTIMIZERS = {torch.optim.SparseAdam}

# parameters that may be None, with an example value for messages
_EXAMPLES = {
    "attack": "PGD(eps=8 / 255, n_steps=10)",
    "calibration": "CollaborativeCalibration()",
    "pretrained": "VanillaEnsembleClassifier(max_epochs=20)",
}

# parameters that are not estimators but take double-underscore names, and where these are kept
_PARAMS_OF = {"module": "module_params", "optimizer": "optimizer_params"}


@dataclass(repr=False, eq=False)
@declared
class EnsembleParameters(BaseEstimator):
    """Common parameters of the ensembles.

    Parameters
    ----------
    module : str, nn.Module class, callable, nn.Module, list of these, or None, default=None
        The network of a member: a name from `robust_ensembles.modules` such as ``"resnet20"``, a
        class, a factory such as ``torchvision.models.resnet18``, or a list of these, one per
        member (a mixed ensemble). None chooses by the shape of X: an `MLP` for rows of features,
        `LeNet5` for small images, `ResNet20` from 32 x 32 pixels.
    module_params : dict or list of dict, default=None
        Arguments of the module's constructor, also as ``module__name=value`` in `set_params`.
    n_estimators : int, default=3
        Number of members.
    optimizer : {"adam", "adamw", "sgd"} or torch.optim.Optimizer class, default="adam"
        One optimizer is used, with a parameter group for each member.
    optimizer_params : dict, default=None
        Other arguments of the optimizer, also as ``optimizer__name=value`` in `set_params`.
    lr : float, default=1e-3
        Learning rate.
    lr_milestones : sequence of int, default=None
        Numbers of finished epochs after which the learning rate is multiplied by 0.1.
    max_epochs : int, default=20
        Passes over the data in `fit`.
    batch_size : int or "auto", default=128
        Samples in a training batch. ``"auto"`` starts with 128 and halves it as often as memory
        runs out in the first epoch: the fit restarts each time (callbacks, too), so that the
        result is that of the final size from the start. See `batch_size_`.
    augmentation : callable or list of callables, default=None
        Transforms of each training batch, ``(x, generator) -> x``, such as `RandomCrop` and others
        in `robust_ensembles.training`.
    input_shape : tuple of int, default=None
        Shape of one sample, for flat rows that are images: (channels, height, width).
    clip_values : "auto", tuple of two floats, or None, default="auto"
        Box that attacks stay in. ``"auto"`` is (0, 1) if all of X is in it, else none (with a
        warning for images). X outside an explicit box is an error.
    class_weight : dict or "balanced", default=None
        Weights of the classes, multiplied into `sample_weight`.
    train_split : float or callable, default=None
        Part of the data held out for ``valid_loss`` and ``valid_acc`` in the history: a
        fraction, or a splitter such as `skorch.dataset.ValidSplit`.
    callbacks : list, default=None
        skorch callbacks.
    device : str, torch.device or the object returned by `one_fit_per_gpu`, default="auto"
        ``"auto"`` is CUDA, else MPS, else the CPU. With `parallel.one_fit_per_gpu`, each fit takes
        a GPU that no other process uses.
    num_workers : int, default=0
        Processes that read a `torch.utils.data.Dataset` ahead of the training; with 0 this process
        reads it. The result is the same. No effect on arrays.
    precision : {"float32", "bfloat16"}, default="float32"
        Arithmetic of the members in training. ``"bfloat16"`` (mixed precision: weights, losses and
        updates stay float32) is faster on GPUs and changes the result slightly. Attacks and scores
        always use the precision of the weights.
    accelerate : {"auto", "none"}, name or list of names, default="auto"
        Techniques that make training steps faster, with the same result up to rounding.
        ``"auto"`` uses those measured to be faster on the device, ``"none"`` is plain torch. Names
        of single techniques: ``"double_backward"`` (closed-form second derivatives),
        ``"channels_last"``, ``"fused_optimizer"``, ``"flush_denormal"``, ``"vmap"``,
        ``"cuda_graph"``.
    warm_start : bool, default=False
        Whether `fit` continues the training of the previous call.
    checkpoint_dir : path-like, default=None
        Folder for this fit only, where a checkpoint is written after each epoch. ``{fit}`` in it
        is replaced by a digest of data and parameters: ``"runs/{fit}"`` gives each fit of a search
        its own folder, so that an interrupted search can be run again and resumes, too. `fit` with
        the same data and parameters (except `device`, `accelerate`, `num_workers`, `verbose`) then
        resumes from the last checkpoint, after an interrupt or a crash, with the same result: on a
        CPU to the bit. A finished fit is only read. The last two checkpoints are kept, for a
        finished fit only the last, and the best one by ``valid_loss``, or ``train_loss`` if no data
        are held out, to which ``best.safetensors`` is a link. Each is a saved model:
        `persistence.load` returns it as a fitted estimator. Not available with `warm_start` or for
        `partial_fit`.
    random_state : int, RandomState instance or None, default=None
        Seed of weights, order, augmentation and attacks. Two fits with the same seed on a CPU are
        identical to the bit. The global random state is left unchanged.
    verbose : int, default=0
        1 prints a line for each epoch.
    """

    module: Any = param(None, str, type, callable, nn.Module, list, tuple, None)
    _: KW_ONLY
    module_params: Any = param(None, dict, list, None)
    n_estimators: int = param(3, count())
    optimizer: Any = param("adam", str, type)
    optimizer_params: dict[str, Any] | None = param(None, dict, None)
    lr: float = param(1e-3, above(0))
    lr_milestones: Sequence[int] | None = param(None, "array-like", None)
    max_epochs: int = param(20, count())
    batch_size: int | Literal["auto"] = param(128, count(), choice("auto"))
    augmentation: Any = param(None, callable, list, tuple, None)
    input_shape: tuple[int, ...] | None = param(None, tuple, list, None)
    clip_values: Any = param("auto", choice("auto"), tuple, list, None)
    class_weight: Any = param(None, choice("balanced"), dict, None)
    train_split: Any = param(None, between(0, 1, closed="neither"), callable, None)
    callbacks: list[Any] | None = param(None, list, None)
    device: Any = param("auto", str, torch.device, HasMethods(["reserve"]))
    num_workers: int = param(0, count(0))
    precision: str = param("float32", choice("bfloat16", "float32"))
    accelerate: Any = param(
        "auto", choice("auto", "none", *TECHNIQUES), list, tuple, set, frozenset
    )
    warm_start: bool = param(False, flag())
    checkpoint_dir: str | os.PathLike[str] | None = param(None, str, os.PathLike, None)
    random_state: Any = param(None, "random_state")
    verbose: int = param(0, "verbose")

    # constraints for scikit-learn, collected from the lines above and those of subclasses
    _parameter_constraints: ClassVar[dict[str, list[Any]]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        declared(cls)

    def _validate_params(self) -> None:
        """Raise for values out of range; called by scikit-learn."""
        super()._validate_params()
        for name, value in self.get_params(deep=False).items():
            if isinstance(value, Integral) and abs(int(value)) >= 2**63:
                raise ValueError(f"{name}={value} is too large for a number of 64 bits")
            kinds = self._parameter_constraints.get(name, ())
            numeric = any(isinstance(kind, Interval) for kind in kinds)
            if isinstance(value, bool | np.bool_) and numeric and "boolean" not in kinds:
                raise ValueError(f"{name} must be a number; got {value}")

    def set_params(self, **params: Any) -> EnsembleParameters:
        """Set parameters; ``module__width=8`` goes into a new `module_params`.

        Parameters
        ----------
        **params : dict
            Also ``optimizer__name`` and ``attack__name``.

        Returns
        -------
        self : estimator
        """
        super().set_params(**merge_component_params(self, params))
        return self


def merge_component_params(estimator: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Merge ``module__x`` and ``optimizer__x`` into new dicts, which clones do not share.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
    params : dict
        As given to `set_params`.

    Returns
    -------
    params : dict
        With plain names, and ``attack__x``, which is passed on to the attack.
    """
    plain: dict[str, Any] = {}
    merged: dict[str, dict[str, Any]] = {}
    for name, value in params.items():
        component, separator, key = name.partition("__")
        if separator and component in _PARAMS_OF:
            merged.setdefault(_PARAMS_OF[component], {})[key] = value
        else:
            plain[name] = value
    for name, added in merged.items():
        present = plain.get(name, getattr(estimator, name))
        if isinstance(present, list):
            plain[name] = [{**(entry or {}), **added} for entry in present]
        else:
            plain[name] = {**(present or {}), **added}
    return {**_default_components(estimator, plain), **plain}


def _default_components(estimator: Any, params: dict[str, Any]) -> dict[str, Any]:
    """Default components in place of None, for parameters that set something inside them."""
    defaults: dict[str, Any] = {}
    for component, example in _EXAMPLES.items():
        inner = next((name for name in params if name.startswith(f"{component}__")), None)
        if inner is None or component in params or component not in estimator._get_param_names():
            continue
        present = getattr(estimator, component)
        if present is not None and not isinstance(present, int):
            continue
        default = estimator.default_attack if component == "attack" else None
        if default is None:
            raise ValueError(
                f"{inner} cannot be set: {component}={present!r} has no parameters; set "
                f"{component} first, such as {component}={example}"
            )
        defaults[component] = clone(default)
    return defaults


def resolve_device(device: Any) -> torch.device:
    """The requested device, which must exist.

    Parameters
    ----------
    device : str, torch.device or OneFitPerGPU
        ``"auto"`` is CUDA, else MPS, else the CPU; `OneFitPerGPU` is the reserved device, or the
        same as ``"auto"`` outside training.

    Returns
    -------
    device : torch.device

    Raises
    ------
    ValueError
        If this machine does not have the device.
    """
    if hasattr(device, "reserve"):
        device = device.held or "auto"
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is no torch device: {error}") from None
    absent = {
        "cuda": not torch.cuda.is_available() or (resolved.index or 0) >= torch.cuda.device_count(),
        "mps": not torch.backends.mps.is_available(),
    }
    if absent.get(resolved.type, False):
        raise ValueError(
            f"device={device!r} was asked for, but torch finds no such device here; use "
            "device='auto' or 'cpu', or install a torch build for your GPU"
        )
    return resolved


def reserved_device(device: Any, trained: torch.device | None) -> AbstractContextManager[Any]:
    """Reserve the device of a fit, if requested.

    Parameters
    ----------
    device : str, torch.device or OneFitPerGPU
    trained : torch.device or None
        Device of the weights, if their training continues.

    Returns
    -------
    reserved : context manager
    """
    return device.reserve(trained) if hasattr(device, "reserve") else nullcontext()


def resolve_optimizer(
    optimizer: str | type[torch.optim.Optimizer], params: dict[str, Any] | None
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Class and arguments of the optimizer.

    Parameters
    ----------
    optimizer : str or type
    params : dict or None

    Returns
    -------
    optimizer : type
    params : dict
    """
    params = dict(params or {})
    if "lr" in params:
        raise ValueError("give the learning rate as lr=..., not in optimizer_params")
    if isinstance(optimizer, str):
        one_of(optimizer, _OPTIMIZERS, "optimizer")
        optimizer = _OPTIMIZERS[optimizer]
    if not issubclass(optimizer, torch.optim.Optimizer) or optimizer in _UNFIT_OPTIMIZERS:
        raise TypeError(
            "optimizer must be a class of torch.optim, for dense gradients, or a name; got "
            f"{optimizer!r}"
        )
    if not all(isinstance(name, str) for name in params):
        raise TypeError(f"optimizer_params must have names for keys; got {list(params)}")
    return optimizer, params


def resolve_milestones(milestones: Any) -> tuple[int, ...]:
    """Convert milestones to a tuple of whole numbers.

    Parameters
    ----------
    milestones : array-like or None

    Returns
    -------
    milestones : tuple of int

    Raises
    ------
    ValueError
        For anything but whole numbers of at least 0.
    """
    values = as_array(() if milestones is None else milestones, "lr_milestones")
    numbers = values.dtype.kind in "iuf" and bool((values >= 0).all())
    if values.ndim != 1 or not numbers or not (values == np.floor(values)).all():
        raise ValueError(
            "lr_milestones must be a flat list of whole numbers of epochs, such as [30, 60], or "
            f"None; got {milestones!r}"
        )
    return tuple(int(value) for value in values)
