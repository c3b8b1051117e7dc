"""What a robustness report holds, and how it is written down."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .._system import write_whole
from ._report._markdown import binomial_interval, to_markdown
from ._report._store import KIND, parse, read
from .cells import CLEAN, WORST, Cell, Mask
from .sanity import Finding


@dataclass(eq=False)
class RobustnessReport:
    """Robust accuracies of some estimators under some attacks, and whether to trust them.

    Made by `robustness_report`. Robust accuracy counts the samples that are right both before
    and after an attack. It is an upper bound: a stronger attack may break more.

    Attributes
    ----------
    data : dict
        ``"n_samples"``, ``"shape"`` and digests of ``"X"`` and ``"y"``.
    settings : dict
        ``"eps"``, ``"norm"`` and ``"clip_values"`` of the sanity checks, and ``"n_sanity"``.
    versions : dict
        Of Python and the packages that measured it.
    estimators : dict of dict
        For each name ``"type"``, ``"random_state"`` and ``"digest"``.
    attacks : dict of dict
        Type and all parameters of each attack, seeds among them.
    cells : list of Cell
        One for each estimator and attack, and for clean accuracy, in the order of measurement.
    findings : dict of list of Finding
        For each estimator; empty without sanity checks.
    """

    data: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str]
    estimators: dict[str, dict[str, Any]]
    attacks: dict[str, dict[str, Any]]
    cells: list[Cell] = field(default_factory=list)
    findings: dict[str, list[Finding]] = field(default_factory=dict)

    @property
    def masks(self) -> dict[str, dict[str, Mask]]:
        """Who is right: estimator -> ``"clean"``, attacks, ``"worst"`` -> bool (n_samples,).

        ``"worst"`` holds the samples that withstand all attacks that could be measured. An
        attack that failed has no mask.
        """
        masks: dict[str, dict[str, Mask]] = {name: {} for name in self.estimators}
        for cell in self.cells:
            if cell.robust is not None:
                masks[cell.estimator][cell.attack] = cell.robust
        for of_estimator in masks.values():
            attacked = [mask for attack, mask in of_estimator.items() if attack != CLEAN]
            if attacked:
                of_estimator[WORST] = np.logical_and.reduce(attacked)
        return masks

    @property
    def errors(self) -> dict[str, dict[str, str]]:
        """Attacks that failed: estimator -> attack -> why."""
        errors: dict[str, dict[str, str]] = {name: {} for name in self.estimators}
        for cell in self.cells:
            if cell.error is not None:
                errors[cell.estimator][cell.attack] = cell.error
        return errors

    def to_frame(self) -> pd.DataFrame:
        """One row for each estimator and attack, ``"clean"`` and ``"worst"`` among them.

        Returns
        -------
        frame : DataFrame
            Columns ``estimator``, ``attack``, ``n_samples``, ``n_robust``, ``accuracy`` (of all
            samples), ``low`` and ``high`` (its binomial 95% interval), ``conditional_accuracy``
            (of the samples that are right without an attack), ``seconds``, ``device`` and
            ``error``. Numbers that could not be measured are NaN.
        """
        masks = self.masks
        rows = [self._row(cell, masks[cell.estimator]) for cell in self.cells]
        for name in self.estimators:
            if WORST in masks[name]:
                rows.append(self._worst_row(name, masks[name]))
        columns = ["estimator", "attack", "n_samples", "n_robust", "accuracy", "low", "high"]
        columns += ["conditional_accuracy", "seconds", "device", "error"]
        frame = pd.DataFrame(rows, columns=columns)
        order = {name: i for i, name in enumerate(self.estimators)}
        return frame.sort_values(
            "estimator", key=lambda c: c.map(order), kind="stable"
        ).reset_index(drop=True)

    def _row(self, cell: Cell, masks: dict[str, Mask]) -> dict[str, Any]:
        row = {"estimator": cell.estimator, "attack": cell.attack, "seconds": cell.seconds}
        row |= {"device": cell.device, "error": cell.error, "n_samples": self.data["n_samples"]}
        if cell.robust is None:
            return row
        robust, n_clean = int(cell.robust.sum()), int(masks[CLEAN].sum()) if CLEAN in masks else 0
        low, high = binomial_interval(robust, len(cell.robust))
        conditional = robust / n_clean if n_clean else float("nan")
        return {
            **row,
            "n_robust": robust,
            "accuracy": robust / len(cell.robust),
            "low": low,
            "high": high,
            "conditional_accuracy": conditional,
        }

    def _worst_row(self, name: str, masks: dict[str, Mask]) -> dict[str, Any]:
        attacked = [c for c in self.cells if c.estimator == name and c.attack != CLEAN]
        missing = [attack for attack in self.attacks if attack not in masks]
        error = f"without {', '.join(missing)}" if missing else None
        devices = ", ".join(dict.fromkeys(cell.device for cell in attacked))
        seconds = sum(cell.seconds for cell in attacked)
        return self._row(Cell(name, WORST, "", masks[WORST], seconds, devices, error), masks)

    def to_markdown(self) -> str:
        """A table for a paper, then the findings of the checks, then settings and versions.

        Returns
        -------
        text : str
        """
        return to_markdown(self)

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they stand in the JSON.

        Returns
        -------
        plain : dict
        """
        findings = {name: [asdict(f) for f in found] for name, found in self.findings.items()}
        cells = [cell.to_dict() for cell in self.cells]
        plain = {"kind": KIND, **vars(self), "cells": cells, "findings": findings}
        # what JSON makes of tuples
        for finding in (f for found in findings.values() for f in found):
            finding["samples"] = list(finding["samples"])
        return plain

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Everything in the report, as JSON.

        Parameters
        ----------
        path : path-like, default=None
            File to write, which is replaced at once or not at all.

        Returns
        -------
        text : str
        """
        text = json.dumps(self.to_dict(), indent=1)
        if path is not None:
            write_whole(path, text.encode())
        return text

    @classmethod
    def from_json(cls, path_or_text: str | os.PathLike[str]) -> RobustnessReport:
        """The report in a file or a text, also one that was interrupted.

        Parameters
        ----------
        path_or_text : path-like or str
            A text begins with a brace.

        Returns
        -------
        report : RobustnessReport

        Raises
        ------
        ValueError
            If it holds something else.
        FileNotFoundError
            If there is no such file.
        """
        if isinstance(path_or_text, str) and path_or_text.lstrip().startswith("{"):
            plain = parse(path_or_text, "the text")
        else:
            plain = read(Path(path_or_text))
        findings = {
            name: [Finding.from_dict(f) for f in found] for name, found in plain["findings"].items()
        }
        names = ("data", "settings", "versions", "estimators", "attacks")
        cells = [Cell.from_dict(cell) for cell in plain["cells"]]
        return cls(**{name: plain[name] for name in names}, cells=cells, findings=findings)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RobustnessReport):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]
