"""Strategies for what nobody should pass, and for what some will."""

from __future__ import annotations

import datetime
import tempfile
import warnings

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from hypothesis import strategies as st

N_FEATURES = 4
"""Of the rows that estimators are fitted on here; images have 1 x 4 x 4 pixels."""

HUGE = 10**12


class Subclass(np.ndarray):
    """An array of a class of its own."""


NUMBERS = st.sampled_from(
    ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "uint16", "uint64", "bool"]
)
OTHER_TYPES = st.sampled_from(["complex64", "object", "<U4", "S3", "datetime64[s]", "float128"])
_SPECIAL = [np.nan, np.inf, -np.inf, 1e38, -1e38, 3.4e38, 1e300, -1e300, 1e-40, -1.0, -0.0, 256.0]
_SCALES = [1.0, 0.0, -1.0, 1e-40, 1e4, 1e20, 1e37, 1e300, 255.0]


def _values(shape, dtype, scale, special, seed):
    """Random numbers from 0 to 1 times a scale, with one special value somewhere."""
    random = np.random.default_rng(seed)
    values = np.asarray(random.random(shape) * scale)
    if special is not None and values.size:
        values.flat[random.integers(values.size)] = special
    if dtype == "datetime64[s]":
        return random.integers(0, 10**6, shape).astype(dtype)
    if dtype == "object":
        mixed = values.astype(object)
        if mixed.size:
            mixed.flat[0] = [None, "a", 1.5, b"b"][seed % 4]
        return mixed
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numbers that the type cannot hold
        return values.astype(dtype)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 4, 8]), max_size=5).map(tuple)


@st.composite
def arrays(draw, shapes=SHAPES, plain=False):
    """Arrays of any shape, type and content."""
    odd = not plain and draw(st.integers(0, 3)) == 0
    dtype = draw(OTHER_TYPES if odd else NUMBERS)
    scale = draw(st.sampled_from(_SCALES))
    special = draw(st.one_of(st.none(), st.sampled_from(_SPECIAL)))
    return _values(draw(shapes), dtype, scale, special, draw(st.integers(0, 20)))


def _strided(array):
    doubled = np.repeat(array, 2, axis=0) if array.ndim else array
    return doubled[::2] if array.ndim else array


def _read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def _memory_map(array):
    if array.dtype.hasobject or not array.size:
        return array
    with tempfile.TemporaryFile() as file:
        file.write(array.tobytes())
        file.flush()
        return np.memmap(file, array.dtype, "r", shape=array.shape)


def _masked(array):
    if array.dtype.kind not in "fiu" or not array.size:
        return array
    return np.ma.masked_array(array, mask=np.arange(array.size).reshape(array.shape) == 0)


def _frame(array):
    if array.ndim > 2:
        return array
    return pd.DataFrame(array) if array.ndim == 2 else pd.Series(np.atleast_1d(array))


def _sparse(array):
    numeric = array.dtype.kind in "fiub" and array.dtype.itemsize in (1, 4, 8)
    return scipy.sparse.csr_matrix(array) if array.ndim == 2 and numeric else array


def _tensor(array):
    try:
        return torch.tensor(np.ascontiguousarray(array))
    except (TypeError, ValueError):
        return array


def _tensor_with_gradient(array):
    tensor = _tensor(array)
    floating = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    return tensor.requires_grad_() if floating else tensor


def _meta_tensor(array):
    tensor = _tensor(array)
    return tensor.to("meta") if isinstance(tensor, torch.Tensor) else tensor


WRAPPERS = {
    "array": lambda array: array,
    "list": lambda array: array.tolist(),
    "tuple": lambda array: tuple(array.tolist()) if array.ndim else array.tolist(),
    "read-only": _read_only,
    "fortran": np.asfortranarray,
    "strided": _strided,
    "memory map": _memory_map,
    "masked": _masked,
    "subclass": lambda array: array.view(Subclass),
    "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "frame": _frame,
    "sparse": _sparse,
    "tensor": _tensor,
    "tensor with gradient": _tensor_with_gradient,
    "meta tensor": _meta_tensor,
}

NO_ARRAYS = st.sampled_from(
    [
        None, 0, -1, 1.5, float("nan"), "", "abc", b"abc", [], [[]], [[1, 2], [3]],
        [[1.0, 2.0], [3.0, [4.0]]], [[None] * N_FEATURES] * 2, [["a"] * N_FEATURES] * 2,
        [[10**30] * N_FEATURES] * 2, {}, {"a": [1, 2]}, {1, 2}, object(), len, np.array(None),
        np.float32(1), datetime.datetime(2020, 1, 1), torch.device("cpu"), pd.DataFrame(),
        pd.DataFrame({"a": ["x", "y"], "b": [1, 2]}),
        pd.DataFrame({1: [0.0, 1.0], "b": [1.0, 2.0], "c": [0.5, 0.5], "d": [0.0, 0.0]}), range(3),
        (x for x in ()),
    ]
)  # fmt: skip
"""What is no array at all, or a broken one."""


@st.composite
def anything(draw, shapes=SHAPES):
    """Whatever could be passed for an array."""
    if draw(st.integers(0, 9)) == 0:
        return draw(NO_ARRAYS)
    wrap = WRAPPERS[draw(st.sampled_from(list(WRAPPERS)))]
    return wrap(draw(arrays(shapes)))


ROWS = st.integers(0, 9).map(lambda n: (n, N_FEATURES))
IMAGES = st.integers(0, 9).map(lambda n: (n, 1, 4, 4))


@st.composite
def almost_right(draw, shapes=ROWS):
    """Arrays of the right shape, mostly of numbers."""
    wrap = WRAPPERS[draw(st.sampled_from(list(WRAPPERS)))]
    return wrap(draw(arrays(shapes, plain=True)))


def inputs(shapes=ROWS):
    """Half of it almost right, half anything."""
    return st.one_of(almost_right(shapes), anything())


_LABELS = {
    "few": lambda n, r: r.integers(0, 3, n),
    "one class": lambda n, r: np.full(n, 7),
    "one sample each": lambda n, r: np.arange(n),
    "huge": lambda n, r: r.choice([2**62, -(2**62), 0], n),
    "beyond 64 bits": lambda n, r: np.array([[2**70, -(2**70)][i % 2] for i in range(n)], object),
    "unsigned": lambda n, r: r.choice(np.array([2**64 - 1, 1], np.uint64), n),
    "small type": lambda n, r: r.integers(-2, 2, n).astype(np.int8),
    "negative": lambda n, r: -r.integers(1, 3, n),
    "whole floats": lambda n, r: r.integers(0, 2, n).astype(float),
    "float32": lambda n, r: r.integers(0, 2, n).astype(np.float32),
    "fractions": lambda n, r: r.random(n),
    "nan": lambda n, r: np.where(r.random(n) < 0.4, np.nan, 1.0),
    "infinite": lambda n, r: np.where(r.random(n) < 0.4, np.inf, 1.0),
    "strings": lambda n, r: r.choice(["b", "a", ""], n),
    "objects of strings": lambda n, r: r.choice(["b", "a"], n).astype(object),
    "bytes": lambda n, r: r.choice([b"b", b"a"], n),
    "bool": lambda n, r: r.random(n) < 0.5,
    "mixed": lambda n, r: np.array([["a", 1, 2.5, True][i % 4] for i in range(n)], object),
    "none": lambda n, r: np.array([[None, "a"][i % 2] for i in range(n)], object),
    "complex": lambda n, r: r.integers(0, 2, n) + 1j,
    "dates": lambda n, r: r.integers(0, 2, n).astype("datetime64[D]"),
    "column": lambda n, r: r.integers(0, 2, (n, 1)),
    "two columns": lambda n, r: r.integers(0, 2, (n, 2)),
    "one-hot": lambda n, r: np.eye(3, dtype=int)[r.integers(0, 3, n)],
    "tensor": lambda n, r: torch.as_tensor(r.integers(0, 2, n)),
    "series": lambda n, r: pd.Series(r.choice(["b", "a"], n)),
    "categorical": lambda n, r: pd.Series(r.choice(["b", "a"], n), dtype="category"),
    "nullable": lambda n, r: pd.Series(r.integers(0, 2, n), dtype="Int64"),
    "list": lambda n, r: r.integers(0, 2, n).tolist(),
    "list of strings": lambda n, r: r.choice(["b", "a"], n).tolist(),
}


@st.composite
def labels(draw, n):
    """Labels for n samples, or for a few more or less."""
    if draw(st.integers(0, 11)) == 0:
        return draw(anything())
    make = _LABELS[draw(st.sampled_from(list(_LABELS)))]
    off = draw(st.sampled_from([0] * 12 + [-1, 1]))
    return make(max(n + off, 0), np.random.default_rng(draw(st.integers(0, 9))))


_WEIGHTS = {
    "ones": np.ones,
    "zeros": np.zeros,
    "negative": lambda n: -np.ones(n),
    "one negative": lambda n: np.where(np.arange(n) == 0, -1.0, 1.0),
    "nan": lambda n: np.where(np.arange(n) == 0, np.nan, 1.0),
    "infinite": lambda n: np.where(np.arange(n) == 0, np.inf, 1.0),
    "huge": lambda n: np.full(n, 1e308),
    "tiny": lambda n: np.full(n, 1e-320),
    "one huge": lambda n: np.where(np.arange(n) == 0, 1e300, 1.0),
    "one alone": lambda n: (np.arange(n) == 0).astype(float),
    "column": lambda n: np.ones((n, 1)),
    "number": lambda n: 2.0,
    "text": lambda n: ["a"] * n,
    "objects": lambda n: np.array([1.0] * n, dtype=object),
    "complex": lambda n: np.ones(n) + 1j,
    "bool": lambda n: np.arange(n) % 2 == 0,
    "too many": lambda n: np.ones(n + 1),
}


@st.composite
def weights(draw, n):
    """Sample weights, right or wrong; mostly none."""
    if draw(st.integers(0, 2)):
        return None
    if draw(st.integers(0, 5)) == 0:
        return draw(anything())
    return _WEIGHTS[draw(st.sampled_from(list(_WEIGHTS)))](n)


NONSENSE = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 2, HUGE, 2**63, 2**70, 0.5, -0.5, 1.5, 0.0, 1e-300, 1e300,
        float("nan"), float("inf"), -float("inf"), 1j, "", "auto", "none", "nonsense", "l2",
        b"bytes", [], [1], [None], ["a", 1], (), (0, 1), (1, 0), (0, float("nan")), (0, 1, 2),
        ("a", "b"), (None, None), {}, {"a": 1}, {1: 2}, set(), {"auto"}, object, object(), len, int,
        np.float64(0.5), np.int64(2), np.float64("nan"), np.array(1), np.array([1, 2]),
        np.array([[0.5]]), torch.tensor(1.0), torch.tensor([1, 2]), torch.nn.ReLU,
        torch.nn.Linear(2, 2), torch.optim.SGD, datetime.date(2020, 1, 1), Ellipsis, NotImplemented,
        slice(1), range(2),
    ]
)  # fmt: skip
"""Values for a parameter that asks for something else."""


def size_of(X):
    """Samples that X seems to have."""
    try:
        return int(X.shape[0]) if hasattr(X, "shape") else len(X)
    except (TypeError, IndexError):
        return 3
