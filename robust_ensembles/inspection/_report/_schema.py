"""Whether plain values, such as JSON holds, are those of a report."""

from __future__ import annotations

import math
from typing import Any

_CELL = {
    "estimator": str,
    "attack": str,
    "fingerprint": str,
    "robust": (str, type(None)),
    "seconds": (int, float),
    "device": str,
    "error": (str, type(None)),
    "outside": [int],
    "excess": (int, float, str),
}
_FINDING = {
    "check": str,
    "passed": (bool, type(None)),
    "severity": str,
    "message": str,
    "samples": [int],
}
# by name, of entries whose names are up to the user
_NAMED = {
    "versions": str,
    "estimators": {"type": str, "digest": str, "random_state": object, "checked": object},
    "attacks": {"type": str, "params": dict},
    "findings": [_FINDING],
}
_WHOLE = {
    "data": {"n_samples": int, "shape": [int], "X": str, "y": str},
    "settings": {"eps": (int, float), "norm": str, "clip_values": object, "n_sanity": int},
    "cells": [_CELL],
    **dict.fromkeys(_NAMED, dict),
}


def check_report(plain: dict[str, Any]) -> None:
    """Raise for values that are missing, or of another kind than a report has.

    Parameters
    ----------
    plain : dict

    Raises
    ------
    ValueError
    """
    _check(plain, _WHOLE, "it")
    for room, kind in _NAMED.items():
        for name, value in plain[room].items():
            _check(value, kind, f"{room} {name!r}")
    spare = plain.get("spare_cells", [])
    _check(spare, [_CELL], "spare_cells")
    for cell in [*plain["cells"], *spare]:
        _check_cell(cell, plain["data"]["n_samples"])
    unknown = {cell["estimator"] for cell in plain["cells"]} | set(plain["findings"])
    unknown -= set(plain["estimators"])
    if unknown:
        raise ValueError(f"it measures estimators that it does not list: {sorted(unknown)[:3]}")


def _check(value: Any, kind: Any, where: str) -> None:
    """Raise unless a value is of a kind: a type, some types, a list of one kind, or named ones."""
    if isinstance(kind, list):
        _check(value, list, where)
        for entry in value:
            _check(entry, kind[0], f"an entry of {where}")
    elif isinstance(kind, dict):
        _check(value, dict, where)
        for name, part in kind.items():
            if name not in value:
                raise ValueError(f"{where} has no {name!r}")
            _check(value[name], part, f"{name} of {where}")
    else:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # JSON's true is no number
        wrong = isinstance(value, bool) and not {bool, object} & set(kinds)
        if wrong or not isinstance(value, kinds) or _is_not_finite(value):
            raise ValueError(f"{where} is {str(value)[:80]!r}")


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _check_cell(cell: dict[str, Any], n_samples: int) -> None:
    robust, where = cell["robust"], f"the cell of {cell['estimator']!r} and {cell['attack']!r}"
    if set(cell) != set(_CELL):
        raise ValueError(f"{where} has other fields than {sorted(_CELL)}")
    if (robust is None) != (cell["error"] is not None):
        raise ValueError(f"{where} has a number and an error, or neither")
    if robust is not None and (len(robust) != n_samples or set(robust) - set("01")):
        raise ValueError(f"{where} is not about {n_samples} samples")
    if isinstance(cell["excess"], str) and cell["excess"] != "inf":
        raise ValueError(f"excess of {where} is {cell['excess'][:80]!r}")
