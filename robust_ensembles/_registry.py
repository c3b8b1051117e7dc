"""Registry: each method, attack and training technique is declared once, where it is defined.

The names of scorers, the choices of the command line, `recipes`, the classes that a model file may
name, estimates of remaining time, the lists that tests run over, the public names of sub-packages
and the tables of README and docs all follow from the declarations. Lists that must be in a file,
so that type checkers and readers see them, are written by ``make lists``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

T = TypeVar("T")

FAMILIES = {
    "baseline": "Baselines",
    "predictions": "Members whose predictions differ",
    "gradients": "Members whose input gradients differ",
    "features": "Members whose features differ",
    "adversarial": "Collaborative adversarial training",
}
"""Families of methods with their titles in lists, in this order."""

KINDS = {
    "gradients": "Gradients",
    "minimum norm": "Smallest perturbations",
    "no gradients": "Without gradients",
    "several": "Several at once",
    "other libraries": "Other libraries",
}
"""Kinds of attacks with their titles in lists, in this order."""


@dataclass(frozen=True)
class Method:
    """A way to train an ensemble.

    Parameters
    ----------
    name : str
        For `recipes.get` and the command line.
    cls : type
        The estimator.
    family : str
        A key of `FAMILIES`.
    paper : str
        Authors, venue and year; empty if there is no paper.
    summary : str
        The idea, in half a line.
    """

    name: str
    cls: type[Any]
    family: str
    paper: str
    summary: str


@dataclass(frozen=True)
class DeclaredAttack:
    """A way to make adversarial examples.

    Parameters
    ----------
    name : str or None
        For scorers; None for an attack that must be given as an object.
    cls : type
    kind : str
        A key of `KINDS`.
    paper : str
        Authors and year; empty if there is no paper.
    summary : str
        What it does, in half a line.
    count : str or None
        The parameter that a number after the name sets.
    cost : tuple of str
        Parameters whose product is roughly the number of passes through the module; a list counts
        by its length.
    from_parameters : bool
        Whether its parameters define it completely, so that it can be written to a file; not so
        if it holds a function or a trained model.
    """

    name: str | None
    cls: type[Any]
    kind: str
    paper: str
    summary: str
    count: str | None
    cost: tuple[str, ...]
    from_parameters: bool


@dataclass(frozen=True)
class Technique:
    """A way to make training steps faster.

    Parameters
    ----------
    name : str
        For `accelerate`.
    auto : tuple of str, default=()
        Kinds of device on which ``accelerate="auto"`` uses it; ``("any",)`` is all of them.
    second_order_only : bool, default=False
        Whether it only concerns losses that contain input gradients.
    needs : str or None, default=None
        The kind of device that it requires.
    """

    name: str
    auto: tuple[str, ...] = ()
    second_order_only: bool = False
    needs: str | None = None

    def is_automatic(self, device: str, *, second_order: bool) -> bool:
        """Whether ``"auto"`` uses it on a kind of device."""
        measured = "any" in self.auto or device in self.auto
        return measured and (second_order or not self.second_order_only)


_METHODS: dict[str, Method] = {}
_ATTACKS: dict[str, DeclaredAttack] = {}


def method(
    name: str, *, family: str, summary: str, paper: str = ""
) -> Callable[[type[T]], type[T]]:
    """Declare an estimator of this package; see `Method`.

    Returns
    -------
    decorator : callable
        Returns the class unchanged.

    Raises
    ------
    ValueError
        For a family that does not exist, a name that another class has, or a class of another
        package: model files may name every declared class.
    """
    if family not in FAMILIES:
        raise ValueError(f"{name}: family must be one of {list(FAMILIES)}; got {family!r}")

    def declare(cls: type[T]) -> type[T]:
        _check_place(cls, _METHODS.get(name))
        _METHODS[name] = Method(name, cls, family, paper, summary)
        return cls

    return declare


def attack(
    name: str | None,
    *,
    kind: str,
    summary: str,
    paper: str = "",
    count: str | None = None,
    cost: Iterable[str] | None = None,
    from_parameters: bool = True,
) -> Callable[[type[T]], type[T]]:
    """Declare an attack of this package; see `DeclaredAttack`.

    `cost` defaults to the `count` parameter.

    Returns
    -------
    decorator : callable
        Returns the class unchanged.

    Raises
    ------
    ValueError
        For a kind that does not exist, a name that another class has, or a class of another
        package: model files may name every declared class.
    """
    if kind not in KINDS:
        raise ValueError(f"{name}: kind must be one of {list(KINDS)}; got {kind!r}")
    passes = tuple(cost) if cost is not None else (count,) if count else ()

    def declare(cls: type[T]) -> type[T]:
        others = [a for a in _ATTACKS.values() if name is not None and a.name == name]
        _check_place(cls, _ATTACKS.get(cls.__name__), *others)
        _ATTACKS[cls.__name__] = DeclaredAttack(
            name, cls, kind, paper, summary, count, passes, from_parameters
        )
        return cls

    return declare


def methods() -> dict[str, Method]:
    """All methods by name, ordered by family and year.

    Returns
    -------
    methods : dict of str to Method
    """
    import_module(".estimators", __package__)
    order = list(FAMILIES)

    def place(declared: Method) -> tuple[int, int, str]:
        return order.index(declared.family), _year(declared.paper, 0), declared.name

    return {m.name: m for m in sorted(_METHODS.values(), key=place)}


def attacks() -> dict[str, DeclaredAttack]:
    """All attacks by class name, ordered by kind and year.

    Returns
    -------
    attacks : dict of str to DeclaredAttack
    """
    import_module(".attacks", __package__)
    order = list(KINDS)

    def place(declared: DeclaredAttack) -> tuple[int, int, str]:
        return order.index(declared.kind), _year(declared.paper, 9999), declared.cls.__name__

    return {a.cls.__name__: a for a in sorted(_ATTACKS.values(), key=place)}


def named_attacks() -> dict[str, DeclaredAttack]:
    """The attacks that a scorer can make from their name alone, by that name.

    Returns
    -------
    attacks : dict of str to DeclaredAttack
    """
    return {a.name: a for a in attacks().values() if a.name is not None and a.from_parameters}


def _check_place(cls: type[Any], *declared: Method | DeclaredAttack | None) -> None:
    """Raise for a class of another package, or a name that another class has."""
    if cls.__module__.partition(".")[0] != __package__:
        raise ValueError(
            f"{cls.__module__}.{cls.__qualname__} is not of {__package__}: classes of your own "
            "need no declaration; give them as objects"
        )
    for other in declared:
        # reloading a module creates its classes again
        if other is not None and _path(other.cls) != _path(cls):
            raise ValueError(
                f"{_path(cls)} cannot be declared under the name {other.name or cls.__name__!r}: "
                f"{_path(other.cls)} is"
            )


def _path(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _year(paper: str, without: int) -> int:
    """The first year in `paper`: preprint numbers look like years, too."""
    year = re.search(r"\b(?:19|20)\d\d\b", paper)
    return int(year[0]) if year else without
