"""Radii of a protocol, and the settings that repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from sklearn.base import BaseEstimator

from .._checks import one_of
from .shared import by_name


def fixed_radii(
    owner: str,
    dataset: str | None,
    eps: float | Sequence[float] | None,
    grids: Mapping[str, tuple[float, ...]],
) -> tuple[float, ...]:
    """The radii that are given, or those of a data set.

    Parameters
    ----------
    owner : str
        For messages.
    dataset : str or None
    eps : float, sequence of float, or None
        Wins over the data set's.
    grids : dict of tuples of float

    Returns
    -------
    radii : tuple of float

    Raises
    ------
    ValueError
        For an unknown data set, bad radii, or if neither is given.
    """
    if dataset is not None:
        one_of(dataset, grids, f"{owner}: dataset")
    if eps is not None:
        return check_grid(eps, owner)
    if dataset is None:
        raise ValueError(f"{owner} needs eps, or a dataset that gives it: one of {list(grids)}")
    return grids[dataset]


def check_grid(eps: float | Sequence[float], owner: str) -> tuple[float, ...]:
    """The radii as a tuple; raise unless there are some, all finite and positive."""
    radii: list[Any] = [eps] if isinstance(eps, Real) else list(eps)  # type: ignore[arg-type]
    if not radii or not all(isinstance(r, Real) and 0 < float(r) < float("inf") for r in radii):
        raise ValueError(
            f"{owner}: eps must be a positive number, in the units of X, or several; got {eps!r}"
        )
    return tuple(float(radius) for radius in radii)


def described(item: Any) -> str:
    """All of an estimator or attack that is not at its default, or a module's layers; one line."""
    # scikit-learn cuts long ones otherwise
    text = item.__repr__(N_CHAR_MAX=100_000) if isinstance(item, BaseEstimator) else repr(item)
    return " ".join(text.split())


def described_all(estimators: Any) -> dict[str, str]:
    """One estimator, or several by name, described."""
    return {name: described(estimator) for name, estimator in by_name(estimators).items()}
