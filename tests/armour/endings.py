"""What it means that a call ends well: a documented exception, raised on purpose, or an answer."""

from __future__ import annotations

import dis
import faulthandler
import signal
import sys
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError

import robust_ensembles
from robust_ensembles.exceptions import (
    DatasetNotFoundError,
    ModelFileError,
    NonFiniteLossError,
    NotDifferentiableError,
)

DOCUMENTED = {
    ValueError,
    TypeError,
    InvalidParameterError,
    NotFittedError,
    ModelFileError,
    NonFiniteLossError,
    NotDifferentiableError,
    DatasetNotFoundError,
    FloatingPointError,  # by attacks, for gradients that are not finite
}
"""Exactly these, not what is derived from them: a UnicodeDecodeError is a ValueError, too."""

OF_FILES = {FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, OSError}
"""Raised by the system, with the file's name; only where a path was given."""

EXPECTED_WARNINGS = [
    # columns of labels are taken for a vector of them, as in all of scikit-learn
    "A column-vector y was passed",
    # few samples, with labels of many classes
    "The number of unique classes is greater than",
    # rows with and without names of columns
    "X (has|does not have valid) feature names",
    # images that are neither bytes nor in [0, 1]: attacks have no box
    r"X spans \[",
    # two members have no peers to be calibrated by
    ".*no member has two peers",
]

_OURS = Path(robust_ensembles.__file__).parent
_SCIKIT_LEARN = Path(sklearn.__file__).parent
# where scikit-learn passes on what NumPy says of input that is no array of numbers
_VALIDATION = {
    _SCIKIT_LEARN / "utils" / name
    for name in ("validation.py", "multiclass.py", "_array_api.py", "class_weight.py")
}
SECONDS = 60
"""After which an example counts as hanging. One takes a few milliseconds, some a second."""


@dataclass(frozen=True)
class Ending:
    """How a call ended: with a value, or with a documented error."""

    value: Any = None
    error: Exception | None = None

    def __bool__(self) -> bool:
        return self.error is None


class HangError(BaseException):
    """Not an Exception, so that nobody catches it by mistake."""


def ends_well(call, *args, files=False, **kwargs) -> Ending:
    """Call something; anything but an answer or a documented error is a failed test.

    Parameters
    ----------
    call : callable
    files : bool
        Whether the system's own errors on files are documented here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            return Ending(call(*args, **kwargs))
    except Exception as error:
        if _is_documented(error, files):
            return Ending(error=error)
        raise


def _is_documented(error: Exception, files: bool) -> bool:
    if files and type(error) in OF_FILES:
        return error.filename is not None or raised_on_purpose(error)
    return type(error) in DOCUMENTED and len(str(error)) > 10 and raised_on_purpose(error)


def raised_on_purpose(error: BaseException) -> bool:
    """Whether a statement of ours or of scikit-learn has raised it, not torch or NumPy below."""
    steps = []
    step = error.__traceback__
    while step is not None:
        steps.append(step)
        step = step.tb_next
    files = [Path(step.tb_frame.f_code.co_filename) for step in steps]
    if _VALIDATION & set(files):
        return True
    last, file = steps[-1], files[-1]
    by_statement = dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return by_statement and (_OURS in file.parents or _SCIKIT_LEARN in file.parents)


@contextmanager
def no_hang(seconds: float = SECONDS):
    """End an example that hangs: in Python with an error, deeper down with the process."""

    def stop(number, frame):
        raise HangError("".join(traceback.format_stack(frame)))

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(4 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def content(value: Any) -> Any:
    """Something that is equal before and after, if an input was not changed."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.shape, str(value.dtype), np.ascontiguousarray(value).tobytes()
    if hasattr(value, "is_meta") and not value.is_meta and not value.dtype.is_complex:
        return content(value.detach().numpy())
    if isinstance(value, np.ndarray) or hasattr(value, "to_numpy"):
        return repr(np.asarray(value).tolist())
    return repr(value)[:1000]


def check_probabilities(proba: Any, shape: tuple[int, ...]) -> None:
    """Finite, from 0 to 1, with sum 1."""
    assert proba.shape == shape
    assert np.isfinite(proba).all()
    assert (proba >= 0).all()
    np.testing.assert_allclose(proba.sum(axis=-1), 1, atol=1e-5)


def check_predictions(estimator: Any, X: Any, n_samples: int) -> None:
    """All that a fitted estimator answers is an answer, and the answers agree."""
    n_classes = len(estimator.classes_)
    proba = estimator.predict_proba(X)
    check_probabilities(proba, (n_samples, n_classes))
    members = estimator.member_predict_proba(X)
    check_probabilities(members, (len(estimator.estimators_), n_samples, n_classes))
    np.testing.assert_allclose(members.mean(axis=0), proba, atol=1e-5)
    labels = estimator.predict(X)
    assert labels.shape == (n_samples,)
    assert np.isin(labels, estimator.classes_).all()
