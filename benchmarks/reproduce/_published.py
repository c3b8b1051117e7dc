"""The papers' tables as they are printed, from ``benchmarks/published``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parents[1] / "published"
PAPERS = {"cldl": "CLDL", "ncen": "NCEn", "ceat": "CEAT"}
DATASETS = {
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
}
# what the numbers are multiplied with to be percent
_PERCENT = {"cldl": 1.0, "ncen": 100.0, "ceat": 1.0}
_KEYS = ("dataset", "network", "members", "method")


class Setting(NamedTuple):
    """What the rows that a table compares have in common.

    Parameters
    ----------
    dataset : str
        As `recipes` calls it.
    network : str
        Of all members, or of each, joined by ``+``.
    members : int
    """

    dataset: str
    network: str
    members: int

    @property
    def networks(self) -> str:
        """Of all members."""
        return self.network if "+" in self.network else f"{self.members} x {self.network}"


class Column(NamedTuple):
    """An attack at one radius.

    Parameters
    ----------
    attack : str
        As the paper and the protocol call it; ``"clean"`` is none.
    eps : float
    """

    attack: str
    eps: float

    def __str__(self) -> str:
        return self.attack if self.attack == "clean" else f"{self.attack} {self.eps:g}"


class PublishedRow(NamedTuple):
    """A method's numbers in percent; columns without one are left out."""

    setting: Setting
    method: str
    values: dict[Column, float]


@dataclass(frozen=True)
class PublishedTable:
    """A table of a paper.

    Parameters
    ----------
    paper : str
        A key of `PAPERS`.
    name : str
        Its number, as printed.
    rows : tuple of PublishedRow
    unprinted : tuple of Column, default=()
        Columns of a figure that prints no numbers.
    """

    paper: str
    name: str
    rows: tuple[PublishedRow, ...]
    unprinted: tuple[Column, ...] = ()

    @property
    def title(self) -> str:
        """What the paper calls it."""
        if self.name.startswith("fig"):
            return f"Fig. {self.name.removeprefix('fig')}"
        return f"a plot of {self.name}" if self.name.islower() else f"Table {self.name}"

    @property
    def settings(self) -> list[Setting]:
        """All that are compared, in the order of the table."""
        return list(dict.fromkeys(row.setting for row in self.rows))

    @property
    def attacks(self) -> list[str]:
        """All of any setting."""
        columns = [column for setting in self.settings for column in self.columns(setting)]
        return list(dict.fromkeys(c.attack for c in columns if c.attack != "clean"))

    def columns(self, setting: Setting) -> list[Column]:
        """All that are printed for a setting."""
        mine = [row.values for row in self.rows if row.setting == setting]
        printed = dict.fromkeys(column for values in mine for column in values)
        return [*printed, *self.unprinted]

    def selected(
        self, datasets: Sequence[str] | None, networks: Sequence[str] | None
    ) -> PublishedTable:
        """The rows of some data sets and networks; None takes all.

        Raises
        ------
        ValueError
            If there are none.
        """
        rows = tuple(
            row
            for row in self.rows
            if (datasets is None or row.setting.dataset in datasets)
            and (networks is None or row.setting.network in networks)
        )
        if not rows:
            listed = "; ".join(f"{s.dataset} {s.network}" for s in self.settings)
            raise ValueError(f"the table has no rows of that data set and network; it has {listed}")
        return replace(self, rows=rows)


def names(paper: str) -> list[str]:
    """Numbers of a paper's results tables, in order."""
    found = [file.stem.partition("_")[2] for file in FOLDER.glob(f"{paper}_*.csv")]
    return sorted((name for name in found if not name.startswith("fig")), key=_order)


def read(paper: str, name: str) -> PublishedTable:
    """A table.

    Parameters
    ----------
    paper : str
    name : str
        Its number, in any case.

    Returns
    -------
    table : PublishedTable

    Raises
    ------
    ValueError
        If there is no such table.
    """
    known = {found.lower(): found for found in names(paper)}
    if name.lower() not in known:
        raise ValueError(
            f"{PAPERS[paper]} has no results table {name!r}; it has {', '.join(known.values())}"
        )
    return _read(paper, known[name.lower()])


def read_figure(paper: str, number: str) -> PublishedTable:
    """A figure with printed numbers."""
    return _read(paper, f"fig{number}")


def _read(paper: str, name: str) -> PublishedTable:
    with (FOLDER / f"{paper}_{name}.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    return PublishedTable(paper, name, tuple(_row(line, _PERCENT[paper]) for line in lines))


def _row(line: dict[str, str], factor: float) -> PublishedRow:
    setting = Setting(line["dataset"], line["network"], int(line["members"]))
    values = {
        _column(title): round(factor * float(text), 4)
        for title, text in line.items()
        if title not in _KEYS and text
    }
    return PublishedRow(setting, line["method"], values)


def _column(title: str) -> Column:
    attack, _, eps = title.partition(" ")
    return Column(attack, float(eps or 0))


def _order(name: str) -> tuple[int, str]:
    """Roman numbers by their value."""
    digits = {"I": 1, "V": 5, "X": 10}
    values = [digits.get(letter, 0) for letter in name]
    following = [*values[1:], 0]
    return sum(-v if v < n else v for v, n in zip(values, following, strict=True)), name
