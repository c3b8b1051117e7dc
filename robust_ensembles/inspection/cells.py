"""Cells of a report: each is the measurement of one estimator under one attack.

A `Cell` is the result, or the error; `Witness` checks whether the examples are in the ball and the
box (`Limits`) of the attack. `describe` and `digest_of_model` show whether a cell of an earlier
report is still the same measurement.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from .._plain import describe as describe_plain
from .._plain import digest, digest_of_array, type_name, without_addresses
from ..attacks import Attack, as_torch
from ..attacks.engine.balls import NORMS, Box
from ..attacks.engine.forward import device_of
from ..exceptions import NotDifferentiableError
from ..metrics.robust import correct_mask, robust_mask

# as a fraction of X's magnitude: rounding of a scaled image in float32, before any attack
_TOLERANCE = 1e-6
_BATCH_SIZE = 1024
CLEAN, WORST = "clean", "worst"
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Cell:
    """Result of one attack on one estimator.

    Parameters
    ----------
    estimator, attack : str
        Names; the attack ``"clean"`` means no attack.
    fingerprint : str
        Digest of the data, the estimator and the attack.
    robust : bool ndarray of shape (n_samples,) or None
        Samples that are classified correctly before and after the attack; None if it failed.
    seconds : float
    device : str
    error : str or None
        Why the attack failed.
    outside : tuple of int
        Samples whose example is outside the ball or the box.
    excess : float
        Largest distance outside, in the units of X.
    """

    estimator: str
    attack: str
    fingerprint: str
    robust: Mask | None
    seconds: float
    device: str
    error: str | None = None
    outside: tuple[int, ...] = ()
    excess: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the mask as a string of 0 and 1."""
        robust = None if self.robust is None else "".join("01"[int(r)] for r in self.robust)
        plain = {**vars(self), "robust": robust, "outside": list(self.outside)}
        # infinite for an example that is NaN; JSON has no infinity
        return {**plain, "excess": self.excess if np.isfinite(self.excess) else "inf"}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Cell:
        """The inverse of `to_dict`."""
        text = plain["robust"]
        robust = None if text is None else np.array([digit == "1" for digit in text], dtype=bool)
        outside, excess = tuple(plain["outside"]), float(plain["excess"])
        return cls(**{**plain, "robust": robust, "outside": outside, "excess": excess})


def measure(
    name: str,
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    attack_name: str,
    attack: Attack | None,
    *,
    fingerprint: str,
    clean: Mask | None = None,
) -> Cell:
    """Measure one cell; errors are stored in it, so that other cells are not lost.

    Parameters
    ----------
    name : str
        Name of the estimator.
    estimator : fitted estimator or nn.Module
    X : array-like of shape (n_samples, ...)
    y : array-like of shape (n_samples,)
    attack_name : str
    attack : Attack or None
        None runs without an attack.
    fingerprint : str
    clean : bool ndarray of shape (n_samples,), default=None
        Samples that are classified correctly without an attack; only these are attacked.

    Returns
    -------
    cell : Cell
    """
    witness = None if attack is None else Witness(attack)
    robust: Mask | None = None
    error = None
    device = "unknown"
    start = time.perf_counter()
    try:
        device = str(device_of(as_torch(estimator), torch.device("cpu")))
        if witness is None:
            robust = correct_mask(estimator, X, y)
        else:
            robust = robust_mask(estimator, X, y, attack=witness)
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    seconds = time.perf_counter() - start
    outside, excess = ((), 0.0) if witness is None else _outside(witness, clean)
    return Cell(name, attack_name, fingerprint, robust, seconds, device, error, outside, excess)


def _outside(witness: Witness, clean: Mask | None) -> tuple[tuple[int, ...], float]:
    """Samples whose examples are outside the limits, and the largest distance."""
    outside = np.flatnonzero(witness.excess)
    if not len(outside):
        return (), 0.0
    # only correct samples are attacked; with random outputs, they cannot be told from the mask
    attacked = None if clean is None else np.flatnonzero(clean)
    known = attacked is not None and len(attacked) == len(witness.excess)
    samples = attacked[outside] if attacked is not None and known else outside
    return tuple(samples.tolist()), float(witness.excess.max())


class Limits(NamedTuple):
    """Ball and box of an attack's examples.

    Parameters
    ----------
    eps : float
    norm : str
    clip_values : tuple of two floats or None
        None uses the box of the module.
    """

    eps: float
    norm: str
    clip_values: Box | None


def limits_of(attack: Attack) -> list[Limits]:
    """Limits of an attack, one for each part of a union; empty if unknown."""
    if hasattr(attack, "eps") and hasattr(attack, "norm"):
        box = getattr(attack, "clip_values", None)
        return [Limits(attack.eps, attack.norm, None if box is None else tuple(box))]
    parts = getattr(attack, "attacks", ())
    inner = parts() if callable(parts) else parts
    return [limits for part in inner for limits in limits_of(part)]


def same_threat(attack: Any, limits: Limits) -> bool:
    """Whether an attack, and all its parts, search the same ball and box."""
    found = limits_of(attack)
    return bool(found) and all(one == limits for one in found)


class Witness(Attack):
    """Wraps an attack and checks its examples against its limits.

    Parameters
    ----------
    attack : Attack

    Attributes
    ----------
    excess : ndarray of shape (n_attacked,)
        Distance of each of the latest examples from the ball and the box, in the units of X; 0
        within rounding, infinite for NaN.
    """

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.excess: NDArray[np.float64] = np.zeros(0)

    @property
    def gradient_free(self) -> bool:
        """See the wrapped attack."""
        return self.attack.gradient_free

    def __call__(
        self, module: nn.Module, X: Tensor, y: Tensor, *, stop_when_broken: bool = True
    ) -> Tensor:
        """Adversarial examples of the wrapped attack; see `Attack`."""
        made = self.attack(module, X, y, stop_when_broken=stop_when_broken)
        box = getattr(module, "clip_values", None)
        self.excess = excess(limits_of(self.attack), box, X, made)
        return made

    def check_classes(self, classes: NDArray[Any]) -> None:
        """See the wrapped attack."""
        self.attack.check_classes(classes)

    def _validate(self) -> None:
        self.attack._validate()


def excess(
    limits: Sequence[Limits], box: Box | None, X: Tensor, made: Tensor
) -> NDArray[np.float64]:
    """Distance of examples from the nearest of several limits.

    Parameters
    ----------
    limits : sequence of Limits
    box : tuple of two floats or None
        The box of the module, for limits without their own box.
    X, made : Tensor of shape (n_samples, ...)

    Returns
    -------
    excess : ndarray of shape (n_samples,)
    """
    tolerance = _TOLERANCE * max(1.0, float(X.abs().max())) if len(X) else 0.0
    unknown = Limits(float("inf"), "linf", None)
    found = [np.zeros(0)]
    for start, end in zip(X.split(_BATCH_SIZE), made.split(_BATCH_SIZE), strict=True):
        pair = start.detach().cpu().double(), end.detach().cpu().double()
        beyond = torch.stack([_beyond(one, box, *pair) for one in limits or (unknown,)])
        nearest = beyond.nan_to_num(nan=float("inf")).amin(dim=0)
        found.append(torch.where(nearest > tolerance, nearest, 0.0).numpy())
    return np.concatenate(found)


def _beyond(limits: Limits, box: Box | None, start: Tensor, end: Tensor) -> Tensor:
    """Distance from one ball and its box, (n_samples,); negative inside."""
    distance = torch.full((len(start),), -torch.inf, dtype=torch.float64)
    if limits.norm in NORMS:
        distance = NORMS[limits.norm].length(end - start) - limits.eps
    box = box if limits.clip_values is None else limits.clip_values
    if box is not None:
        low, high = end.flatten(1).aminmax(dim=1)
        distance = torch.maximum(distance, torch.maximum(box[0] - low, high - box[1]))
    finite = end.isfinite().flatten(1).all(dim=1)
    return distance.where(finite, torch.nan)


def describe(value: Any) -> Any:
    """Describe a parameter by values that JSON can hold.

    Parameters
    ----------
    value : object
        Attacks become ``{"type": ..., "params": {...}}``. Models and arrays are represented by a
        digest of their content, functions and other objects by their name.

    Returns
    -------
    description : None, bool, int, float, str, list or dict
    """
    return describe_plain(value, _describe_object)


def _describe_object(value: Any) -> Any:
    if isinstance(value, Attack):
        params = value.get_params(deep=False)
        return {"type": type_name(value), "params": {k: describe(v) for k, v in params.items()}}
    if isinstance(value, nn.Module) or hasattr(value, "predict"):
        return {"type": type_name(value), "digest": digest_of_model(value)}
    return type_name(value)


def digest_of_model(model: Any) -> str:
    """Digest of the function that a fitted estimator or a module computes.

    It covers weights and buffers, the architecture, the parameters (for stateless steps of a
    Pipeline) and the classes. Functions are compared by name.

    Parameters
    ----------
    model : fitted estimator or nn.Module

    Returns
    -------
    digest : str
    """
    parts: list[Any] = [type_name(model)]
    try:
        module = as_torch(model)
    except NotDifferentiableError:
        parts.append("no differentiable twin")
    else:
        weights = {k: describe(v) for k, v in sorted(module.state_dict().items())}
        parts += [weights, without_addresses(module)]
    if hasattr(model, "get_params"):
        parts.append(without_addresses(model.get_params()))
    if hasattr(model, "classes_"):
        parts.append(digest_of_array(model.classes_))
    return digest(*parts)
