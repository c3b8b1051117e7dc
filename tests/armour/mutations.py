"""Strategies that alter files by hand: bytes, and values of JSON."""

from __future__ import annotations

import copy
import json
import os
import pickle

from hypothesis import strategies as st

MANY = 10**12
MARKS = st.integers(0, 10**6)
"""Places in something of any size, taken modulo that."""


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(path):
    """A pickle that leaves a trace."""
    return pickle.dumps(Payload(path))


_BYTES = {
    "cut": lambda raw, at, n: raw[:at],
    "without beginning": lambda raw, at, n: raw[at:],
    "hole": lambda raw, at, n: raw[:at] + raw[at + n :],
    "zeros": lambda raw, at, n: raw[:at] + bytes(n) + raw[at + n :],
    "ones": lambda raw, at, n: raw[:at] + b"\xff" * n + raw[at + n :],
    "one bit": lambda raw, at, n: raw[:at] + bytes([raw[at] ^ 1 << n % 8]) + raw[at + 1 :],
    "one byte": lambda raw, at, n: raw[:at] + bytes([n % 256]) + raw[at + 1 :],
    "more": lambda raw, at, n: raw[:at] + bytes(n) + raw[at:],
    "twice": lambda raw, at, n: raw + raw[:at],
    "longer": lambda raw, at, n: raw + bytes(n % 10**5),
    "empty": lambda raw, at, n: b"",
}


@st.composite
def byte_changes(draw, head=200):
    """A function that alters bytes; half of the places lie in the first ones."""
    changes = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        kind = draw(st.sampled_from(list(_BYTES)))
        place = draw(st.one_of(st.integers(0, head), MARKS))
        changes.append((kind, place, draw(st.one_of(st.integers(1, 16), st.integers(1, 10**5)))))

    def change(raw):
        for kind, place, amount in changes:
            if raw:
                raw = _BYTES[kind](raw, place % len(raw), amount)
        return raw

    return change


VALUES = st.one_of(
    st.sampled_from(
        [
        None, True, False, 0, 1, -1, 2, MANY, -MANY, 10**30, 2**63, 0.5, -0.5, 1e300, "", "a",
        "nan", "../../etc/passwd", "os.system", "\u0000", "\ud800", "x" * 5000, [], {}, [None],
        [[]], [1, 2, 3], {"a": 1}, {"dict": [["a", 1]]}, {"dict": 1}, {"tuple": [1, 2]},
        {"tuple": 1}, {"set": [[1]]}, {"float": "nan"}, {"float": "inf"}, {"device": "cuda:99"},
        {"device": "meta"}, {"device": 5}, {"type": "SGD"}, {"type": "SparseAdam"},
        {"type": "LBFGS"}, {"type": "MLP"}, {"type": "LeNet5"}, {"type": 1},
        {"array": {"dtype": "<f8", "values": [1, 2]}}, {"array": {"dtype": "<f8", "values": ["a"]}},
        {"array": {"dtype": "<i1", "values": [MANY]}},
        {"array": {"dtype": "<U999999", "values": ["a"]}},
        {"array": {"dtype": "object", "values": [None]}}, {"object": "PGD", "params": {}},
        {"object": "PGD", "params": {"eps": -1}}, {"object": "MORA", "params": {"shares": 1}},
        {"object": "VanillaEnsembleClassifier", "params": {}},
        {"object": "RandomCrop", "params": {"padding": 1}},
        {"object": "NoisyCopies", "params": {"sigma": "a"}},
        {"object": "CollaborativeCalibration", "params": {"lam": "a"}},
        {"object": "External", "params": {"function": "os.system"}},
        {"object": "os.system", "params": {"command": "true"}},
        ]
    ),
    st.text(max_size=8),
    st.integers(),
    st.floats(),
)  # fmt: skip
"""What JSON can say, and what our files say in it."""


def _places(plain, path=()):
    """Ways to all values inside a value."""
    yield path
    if isinstance(plain, (dict, list)):
        for key in list(plain) if isinstance(plain, dict) else range(len(plain)):
            yield from _places(plain[key], (*path, key))


def _at(plain, path):
    for key in path:
        plain = plain[key]
    return plain


def _alter(plain, place, kind, value, other):
    """One change of a value somewhere inside."""
    places = list(_places(plain))
    path = places[place % len(places)]
    if not path:
        return value if kind == "replace" else plain
    parent, key = _at(plain, path[:-1]), path[-1]
    old, value = parent[key], copy.deepcopy(value)  # it may be altered in its turn, later
    if kind == "delete":
        del parent[key]
    elif kind == "rename" and isinstance(parent, dict):
        parent[str(value)] = parent.pop(key)
    elif kind == "add" and isinstance(old, dict):
        old[str(value)] = value
    elif kind == "add" and isinstance(old, list):
        old.append(value)
    elif kind == "twice" and isinstance(old, list):
        old.extend(copy.deepcopy(old))
    elif kind in _NEW_VALUES:
        parent[key] = _NEW_VALUES[kind](old, value, copy.deepcopy(_at(plain, _pick(places, other))))
    return plain


def _pick(values, number):
    return values[number % len(values)]


def _other_number(old, value, swapped):
    if not isinstance(old, (int, float)):
        return old
    return _pick([old + 1, old - 1, -old, old * MANY, old / 2, str(old)], len(str(value)))


def _nested(old, value, swapped):
    for _ in range(50):
        old = [old]
    return old


_NEW_VALUES = {
    "replace": lambda old, value, swapped: value,
    "swap": lambda old, value, swapped: swapped,
    "number": _other_number,
    "nest": _nested,
}
_KINDS = ["delete", "replace", "replace", "rename", "add", "twice", "swap", "number", "nest"]


@st.composite
def value_changes(draw):
    """A function that alters plain values."""
    change = st.tuples(MARKS, st.sampled_from(_KINDS), VALUES, MARKS)
    changes = draw(st.lists(change, min_size=1, max_size=3))

    def alter(plain):
        plain = copy.deepcopy(plain)
        for each in changes:
            plain = _alter(plain, *each)
        return plain

    return alter


def as_json(plain, **kwargs):
    """As text, NaN and very deep nesting included."""
    try:
        return json.dumps(plain, **kwargs)
    except RecursionError:
        return "[" * 10**5
