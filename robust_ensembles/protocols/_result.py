"""What a protocol returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


class Row(NamedTuple):
    """One line of a table; see `ProtocolResult.to_frame`."""

    estimator: str
    threat: str
    attack: str
    eps: float
    metric: str
    faithful: float
    sound: float
    n_samples: int
    published: bool


@dataclass(frozen=True, eq=False)
class ProtocolResult:
    """Numbers as a paper computes them, and sound ones beside them.

    Parameters
    ----------
    protocol : str
        Name of the paper's method.
    rows : list of Row
    settings : dict
        All that is needed to repeat the numbers, with versions. Only strings, numbers, lists and
        dicts, so that it can be written as JSON.
    quirks : list of str
        What sets the faithful numbers apart from the sound ones, a sentence each.
    """

    protocol: str
    rows: list[Row]
    settings: dict[str, Any]
    quirks: list[str]

    def to_frame(self) -> pd.DataFrame:
        """The numbers as a tidy table.

        Returns
        -------
        table : pandas.DataFrame
            With the columns

            - ``estimator``: its name;
            - ``threat``: ``"none"``, ``"black"`` or ``"white"`` box;
            - ``attack``: as the paper calls it, ``"clean"``, or ``"worst"``, the per-sample worst
              of all attacks at this eps;
            - ``eps``: in the units of X; 0 for clean;
            - ``metric``: ``"conditional"``, the part of the images that the estimator has right
              when clean, or ``"unconditional"``, the part of all images;
            - ``faithful``: accuracy, a fraction, under the paper's attack as the paper counts;
            - ``sound``: accuracy when also attacked soundly, of images that are right when clean;
              not above ``faithful``, unless that uses other statistics of BatchNorm (`ncen`);
            - ``n_samples``: number of images that ``faithful`` is a fraction of;
            - ``published``: whether the paper prints this metric of this attack.
        """
        return pd.DataFrame(self.rows, columns=list(Row._fields))

    def to_markdown(self) -> str:
        """The numbers, in percent, and the quirks.

        Returns
        -------
        text : str
        """
        columns = Row._fields[:-1]
        lines = [_line(columns), _line("---" for _ in columns)]
        lines += [_line(_cells(row)) for row in self.rows]
        quirks = "\n".join(f"- {quirk}" for quirk in self.quirks)
        return (
            f"## Protocol of {self.protocol}\n\n"
            + "\n".join(lines)
            + f"\n\nAccuracy in percent.\n\n{quirks}\n"
        )


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(row: Row) -> list[str]:
    percents = [f"{100 * value:.1f}" for value in (row.faithful, row.sound)]
    return [
        row.estimator.replace("|", "\\|"),
        row.threat,
        row.attack,
        f"{row.eps:g}",
        row.metric,
        *percents,
        str(row.n_samples),
    ]
