"""Checks of input values, with the same error and warning messages everywhere."""

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import _check_sample_weight
from torch import Tensor

# libraries that call the package on the user's behalf: warnings do not point at their lines
_BETWEEN = ("joblib", "sklearn", "skorch")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points at the calling line outside the package.

    Parameters
    ----------
    message : str
    category : type, default=UserWarning
    """
    loaded = (sys.modules[name] for name in (__package__, *_BETWEEN) if name in sys.modules)
    folders = (os.path.dirname(str(module.__file__)) + os.sep for module in loaded)
    skipped = (*folders, contextlib.__file__)
    if sys.version_info >= (3, 12):
        warnings.warn(message, category, skip_file_prefixes=skipped)
    else:
        level = 1
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code.co_filename.startswith(skipped):
            level, frame = level + 1, frame.f_back
        warnings.warn(message, category, stacklevel=level)


def one_of(value: Any, allowed: Iterable[str], what: str) -> None:
    """Raise a ValueError that names the nearest allowed value unless `value` is allowed.

    Parameters
    ----------
    value : object
    allowed : iterable of str
    what : str
        What the value is, for the message.

    Raises
    ------
    ValueError
    """
    names = list(allowed)
    if isinstance(value, str) and value in names:
        return
    near = get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} must be one of {names}; got {value!r}.{hint}")


def is_number(value: Any) -> bool:
    """Whether a value is a number of magnitude below 2**63; booleans do not count.

    Parameters
    ----------
    value : object

    Returns
    -------
    is_number : bool
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    # torch has a type for such numbers, and float32 holds their squares; NaN is refused
    size = int(value) if isinstance(value, int | np.integer) else float(value)
    return abs(size) < 2**63


def check_number(
    value: Any,
    what: str,
    low: float,
    high: float = math.inf,
    *,
    closed: str = "both",
    unit: str = "",
) -> None:
    """Raise a ValueError unless `value` is a finite number from `low` to `high`.

    Parameters
    ----------
    value : object
    what : str
        What the value is, for the message.
    low, high : float
    closed : {"both", "left", "right", "neither"}, default="both"
        Which of the limits are allowed themselves.
    unit : str, default=""
        Appended to the limits in the message.

    Raises
    ------
    ValueError
    """
    left, right = closed in ("both", "left"), closed in ("both", "right")
    enough = is_number(value) and (value >= low if left else value > low)
    if enough and (value <= high if right else value < high):
        return
    raise ValueError(f"{what} must be {_limits(low, high, left, right)}{unit}; got {value!r}")


def _limits(low: float, high: float, left: bool, right: bool) -> str:
    """An interval in words."""
    if high == math.inf:
        above = "positive" if low == 0 else f"above {low:g}"
        return f"a finite number >= {low:g}, below 2**63" if left else above
    if left and right:
        return f"a finite number from {low:g} to {high:g}"
    least = f"at least {low:g}" if left else f"above {low:g}"
    return f"{least} and {'at most' if right else 'below'} {high:g}"


def check_count(value: Any, what: str, least: int = 1) -> None:
    """Raise a ValueError unless `value` is a whole number of at least `least`.

    Parameters
    ----------
    value : object
    what : str
        What the value is, for the message.
    least : int, default=1

    Raises
    ------
    ValueError
    """
    if not is_number(value) or not isinstance(value, int | np.integer):
        raise ValueError(f"{what} must be a whole number, at least {least}; got {value!r}")
    if value < least:
        raise ValueError(f"{what} must be at least {least}; got {value!r}")


def check_flag(value: Any, what: str) -> None:
    """Raise a ValueError unless `value` is True or False.

    Parameters
    ----------
    value : object
    what : str
        What the value is, for the message.

    Raises
    ------
    ValueError
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{what} must be True or False; got {value!r}")


def without_graph(value: Any, what: str) -> Any:
    """Detach a tensor and convert it to an array; return everything else unchanged.

    Parameters
    ----------
    value : object
        A tensor may be on any device, and may require a gradient.
    what : str
        What the value is, for the message.

    Returns
    -------
    value : object

    Raises
    ------
    TypeError
        For a sparse or meta tensor, or one of a dtype that NumPy does not have.
    """
    if not isinstance(value, Tensor):
        return value
    if value.is_meta or value.layout != torch.strided:
        kind = "on the meta device" if value.is_meta else f"of layout {value.layout}"
        raise TypeError(
            f"{what} is a tensor {kind}; give a dense one that holds numbers, or an array"
        )
    value = value.detach().cpu()
    try:
        return value.resolve_conj().resolve_neg().numpy()
    except TypeError:  # bfloat16 and smaller
        return value.float().numpy()


def as_array(value: Any, what: str) -> Any:
    """Convert to an array of any dtype and shape, or raise.

    Parameters
    ----------
    value : array-like
    what : str
        What the value is, for the message.

    Returns
    -------
    array : ndarray

    Raises
    ------
    ValueError, TypeError
        For rows of different lengths, and for a tensor without numbers.
    """
    try:
        return np.asarray(without_graph(value, what))
    except ValueError as error:
        raise ValueError(
            f"{what} is no array: {error}. Are all its rows of the same length?"
        ) from error


def check_sample_weight(sample_weight: Any, X: Any) -> NDArray[np.float64]:
    """Sample weights, scaled by a power of two so that neither sums nor products overflow.

    Parameters
    ----------
    sample_weight : array-like of shape (n_samples,), a number, or None for ones
    X : ndarray of shape (n_samples, ...)

    Returns
    -------
    weight : ndarray of shape (n_samples,)

    Raises
    ------
    ValueError
        For weights that are complex, negative or not finite, or of the wrong length.
    """
    given = None
    if sample_weight is not None:
        array = as_array(sample_weight, "sample_weight")
        if array.dtype.kind == "c":
            raise ValueError("sample_weight must be real numbers; got complex ones")
        given = array[()] if array.ndim == 0 else array
    weight = _check_sample_weight(given, X, dtype=np.float64, ensure_non_negative=True)
    return near_one(weight)


def near_one(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights times a power of two that brings the largest one between 0.5 and 1."""
    _, exponent = np.frexp(weight.max(initial=0))
    scaled: NDArray[np.float64] = np.ldexp(weight, -exponent)
    return scaled
