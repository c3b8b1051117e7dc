"""Parameters declared on one line: the default and the allowed values.

    alpha: float = param(2.0, at_least(0))
    layers: Sequence[str] | None = param(None, list, tuple, None)

The default is followed by the alternatives: functions of this module, or what scikit-learn takes
as a constraint (types, ``callable``, ``"random_state"``, None). scikit-learn checks estimators in
`fit`, `check_parameters` checks attacks.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import Field, field
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

from sklearn.utils._param_validation import Interval, StrOptions

from ._checks import check_count, check_flag, check_number, one_of
from ._docstrings import describe_inherited_parameters

_ALLOWED = "allowed"
# an annotation, which is a string in most modules
_CLASS_VARIABLE = re.compile(r"(typing\.)?ClassVar\b")
_T = TypeVar("_T")
_C = TypeVar("_C", bound=type)


class Allowed(NamedTuple):
    """Values that a parameter may have.

    Parameters
    ----------
    constraint : object
        The corresponding constraint of scikit-learn.
    check : callable
        ``check(value, what)`` raises a ValueError that begins with `what`.
    """

    constraint: Any
    check: Callable[[Any, str], None]


def param(default: _T, *allowed: Any) -> _T:
    """A parameter of an estimator or an attack, for the body of a dataclass.

    A subclass changes only the default by ``alpha: float = 3.0``, and removes the parameter by
    ``alpha: ClassVar[None] = None``.

    Parameters
    ----------
    default : object
    *allowed : Allowed, type, str, callable or None
        The alternatives, one of which must hold.
    """
    return field(default=default, metadata={_ALLOWED: allowed})


def at_least(low: float, unit: str = "") -> Allowed:
    """Numbers of at least `low`; `unit` is for the message of `check_parameters`."""

    def check(value: Any, what: str) -> None:
        check_number(value, what, low, unit=unit)

    return Allowed(Interval(Real, low, None, closed="left"), check)


def above(low: float) -> Allowed:
    """Numbers larger than `low`."""

    def check(value: Any, what: str) -> None:
        check_number(value, what, low, closed="neither")

    return Allowed(Interval(Real, low, None, closed="neither"), check)


def between(low: float, high: float, closed: str = "both") -> Allowed:
    """Numbers in an interval; `closed` as in scikit-learn."""

    def check(value: Any, what: str) -> None:
        check_number(value, what, low, high, closed=closed)

    return Allowed(Interval(Real, low, high, closed=closed), check)


def count(least: int = 1) -> Allowed:
    """Whole numbers of at least `least`."""

    def check(value: Any, what: str) -> None:
        check_count(value, what, least)

    return Allowed(Interval(Integral, least, None, closed="left"), check)


def choice(*names: str) -> Allowed:
    """One of the names."""

    def check(value: Any, what: str) -> None:
        one_of(value, names, what)

    return Allowed(StrOptions(set(names)), check)


def flag() -> Allowed:
    """True or False."""
    return Allowed("boolean", check_flag)


def declared(cls: _C) -> _C:
    """Collect the parameters that a class and its bases declare, and complete its docstring.

    For the root of a hierarchy, as a decorator below ``@dataclass``, and for ``__init_subclass__``
    in it.

    Parameters
    ----------
    cls : type
        Gets `_allowed`, tuples of alternatives by name, and `_parameter_constraints`, the same as
        constraints of scikit-learn.
    """
    if "_own_allowed" in vars(cls):  # two roots meet in this class
        return cls
    kind: Any = cls
    kind._own_allowed = {**_withdrawn(cls), **_by_hand(cls), **_by_param(cls)}
    merged: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        merged.update(vars(base).get("_own_allowed", {}))
    kind._allowed = {name: allowed for name, allowed in merged.items() if allowed is not None}
    kind._parameter_constraints = {
        name: [one.constraint if isinstance(one, Allowed) else one for one in allowed]
        for name, allowed in kind._allowed.items()
    }
    describe_inherited_parameters(cls, absent={name for name, a in merged.items() if a is None})
    return cls


def _by_param(cls: type) -> dict[str, tuple[Any, ...]]:
    """Alternatives of the parameters declared in the class's own body."""
    fields = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
    return {name: f.metadata[_ALLOWED] for name, f in fields.items() if _ALLOWED in f.metadata}


def _by_hand(cls: type) -> dict[str, tuple[Any, ...]]:
    """Constraints that a class declares in scikit-learn's way."""
    given: dict[str, Any] = vars(cls).get("_parameter_constraints", {})
    return {name: tuple(constraints) for name, constraints in given.items()}


def _withdrawn(cls: type) -> dict[str, None]:
    """Names that a class declares as class variables, which removes them as parameters."""
    kinds = inspect.get_annotations(cls)
    return {name: None for name, kind in kinds.items() if _CLASS_VARIABLE.match(str(kind))}


def check_parameters(owner: Any) -> None:
    """Raise for a parameter that is not one of its alternatives.

    Parameters
    ----------
    owner : object
        Of a class decorated with `declared`, or a subclass of one.

    Raises
    ------
    ValueError
    """
    for name, allowed in type(owner)._allowed.items():
        value = getattr(owner, name)
        if value is None and None in allowed:
            continue
        for one in (one for one in allowed if isinstance(one, Allowed)):
            try:
                one.check(value, f"{type(owner).__name__}: {name}")
            except ValueError as error:
                if None not in allowed:
                    raise
                raise ValueError(str(error).replace("; got", " or None; got", 1)) from None
