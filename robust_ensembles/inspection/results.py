"""The robustness report as an object, as JSON and as Markdown.

`RobustnessReport` is the result. `Store` is its file while it is being made: `read` refuses files
that are not reports (`check_report`), and earlier measurements are reused. The functions for
Markdown are at the end.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from .._system import write_whole
from .cells import CLEAN, WORST, Cell, Mask
from .sanity import Finding

KIND = "robust_ensembles robustness report"
_SPARE = "spare_cells"
_SHOWN_SAMPLES = 10
_ABOUT = (
    "Accuracies in percent of all {n} samples; in brackets the binomial 95% interval "
    "(Clopper-Pearson). A sample counts as robust if it is right both before and after the "
    "attack; worst: after every attack; conditional: worst, in percent of the samples that are "
    "right without an attack. **Robust accuracy is an upper bound**: a stronger attack may break "
    "more samples."
)
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
# mappings whose keys are chosen by the user
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


@dataclass(eq=False)
class RobustnessReport:
    """Robust accuracies of some estimators under some attacks, and whether to trust them.

    Made by `robustness_report`. Robust accuracy counts the samples that are classified correctly
    before and after an attack. It is an upper bound: a stronger attack may break more.

    Attributes
    ----------
    data : dict
        ``"n_samples"``, ``"shape"`` and digests of ``"X"`` and ``"y"``.
    settings : dict
        ``"eps"``, ``"norm"`` and ``"clip_values"`` of the sanity checks, and ``"n_sanity"``.
    versions : dict
        Versions of Python and the packages used for the measurements.
    estimators : dict of dict
        ``"type"``, ``"random_state"`` and ``"digest"`` of each estimator, by name.
    attacks : dict of dict
        Type and all parameters of each attack, including seeds.
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
        """Correct samples: estimator -> ``"clean"``, attacks, ``"worst"`` -> bool (n_samples,).

        ``"worst"`` has the samples that withstand all attacks that did not fail. An attack that
        failed has no mask.
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
        """Attacks that failed: estimator -> attack -> error."""
        errors: dict[str, dict[str, str]] = {name: {} for name in self.estimators}
        for cell in self.cells:
            if cell.error is not None:
                errors[cell.estimator][cell.attack] = cell.error
        return errors

    def to_frame(self) -> pd.DataFrame:
        """One row for each estimator and attack, including ``"clean"`` and ``"worst"``.

        Returns
        -------
        frame : DataFrame
            Columns ``estimator``, ``attack``, ``n_samples``, ``n_robust``, ``accuracy`` (of all
            samples), ``low`` and ``high`` (its binomial 95% interval), ``conditional_accuracy``
            (of the samples that are correct without an attack), ``seconds``, ``device`` and
            ``error``. Missing numbers are NaN.
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
        """A table for a paper, the findings of the checks, settings and versions.

        Returns
        -------
        text : str
        """
        return to_markdown(self)

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the JSON.

        Returns
        -------
        plain : dict
        """
        findings = {name: [asdict(f) for f in found] for name, found in self.findings.items()}
        cells = [cell.to_dict() for cell in self.cells]
        plain = {"kind": KIND, **vars(self), "cells": cells, "findings": findings}
        # tuples become lists, as in JSON
        for finding in (f for found in findings.values() for f in found):
            finding["samples"] = list(finding["samples"])
        return plain

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Everything in the report, as JSON.

        Parameters
        ----------
        path : path-like, default=None
            File to write, which is replaced atomically.

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
        """The report in a file or a string, complete or interrupted.

        Parameters
        ----------
        path_or_text : path-like or str
            A string of JSON begins with a brace; anything else is a path.

        Returns
        -------
        report : RobustnessReport

        Raises
        ------
        ValueError
            If it is not a report.
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


class Store:
    """The file of a report in the making.

    Parameters
    ----------
    path : path-like or None
        None writes no file.
    data : dict
        Digests of X and y. A file about other data is refused.

    Raises
    ------
    ValueError
        If the file is not a report, or is about other data.
    FileNotFoundError
        If there is no folder to write it to.
    """

    def __init__(self, path: str | os.PathLike[str] | None, data: dict[str, Any]) -> None:
        self._path = path
        self._earlier: dict[str, Any] = {}
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f"the folder of {path} does not exist: make it first")
        if path is not None and Path(path).exists():
            self._earlier = read(path)
            _refuse_other_data(path, self._earlier["data"], data)
        given = [*self._earlier.get("cells", ()), *self._earlier.get(_SPARE, ())]
        self._cells = {plain["fingerprint"]: plain for plain in given if plain["error"] is None}
        self._used = False

    def cell(self, fingerprint: str) -> Cell | None:
        """The cell of an earlier measurement, or None; failed ones are measured again."""
        plain = self._cells.get(fingerprint)
        if plain is None:
            return None
        self._used = True
        return Cell.from_dict(plain)

    def findings(self, fingerprint: str) -> list[Finding]:
        """Earlier findings of checks on the same estimator, data and attacks."""
        for name, estimator in self._earlier.get("estimators", {}).items():
            if estimator["checked"] == fingerprint:
                found = map(Finding.from_dict, self._earlier["findings"].get(name, ()))
                return [finding for finding in found if finding.passed is not None]
        return []

    def versions(self, present: dict[str, str]) -> dict[str, str]:
        """Versions used for the measurements: the present ones, and those of reused cells."""
        earlier = self._earlier.get("versions", {}) if self._used else {}
        merged = {name: [*earlier.get(name, "").split(", "), v] for name, v in present.items()}
        return {name: ", ".join(filter(None, dict.fromkeys(vs))) for name, vs in merged.items()}

    def save(self, plain: dict[str, Any]) -> None:
        """Write the report so far; other cells of the file are kept."""
        if self._path is None:
            return
        asked = {cell["fingerprint"] for cell in plain["cells"]}
        spare = [cell for key, cell in self._cells.items() if key not in asked]
        write_whole(self._path, json.dumps({**plain, _SPARE: spare}, indent=1).encode())


def _refuse_other_data(
    path: str | os.PathLike[str], earlier: dict[str, Any], data: dict[str, Any]
) -> None:
    if earlier == data:
        return
    which = " and ".join(key for key in ("X", "y") if earlier[key] != data[key])
    raise ValueError(
        f"{path} holds a report on other data: {which} differ (it has {earlier['n_samples']} "
        f"samples, given are {data['n_samples']}). Give another path, or the same X and y in the "
        "same order to go on with it"
    )


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Plain values of the report in a file.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    plain : dict

    Raises
    ------
    ValueError
        If the file is not a report.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> dict[str, Any]:
    """Plain values of the report in a string; `source` names its origin in errors."""
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is no JSON: {error}") from error
    if not isinstance(plain, dict) or plain.get("kind") != KIND:
        raise ValueError(
            f"{source} holds no robustness report: take the JSON that robustness_report(path=...) "
            "or RobustnessReport.to_json wrote"
        )
    try:
        check_report(plain)
    except ValueError as error:
        raise ValueError(
            f"{source} holds a damaged robustness report: {error}. Measure it again, with another "
            "path or without this file"
        ) from error
    return plain


def check_report(plain: dict[str, Any]) -> None:
    """Raise for values that are missing or of the wrong kind.

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
    """Raise unless a value is of a kind: a type, several types, [kind] or a dict of kinds."""
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
        # JSON's true is not a number
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


def to_markdown(report: RobustnessReport) -> str:
    """The report as Markdown: table, findings, settings.

    Parameters
    ----------
    report : RobustnessReport

    Returns
    -------
    text : str
    """
    parts = [
        "# Robustness report",
        _table(report),
        _ABOUT.format(n=report.data["n_samples"]),
        *_failures(report),
        "## Sanity checks",
        *_findings(report),
        "## Settings",
        _settings(report),
    ]
    return "\n\n".join(parts) + "\n"


def _table(report: RobustnessReport) -> str:
    header = ["estimator", "n", CLEAN, *report.attacks, WORST, "conditional"]
    rows = [_row(report, name) for name in report.estimators]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _row(report: RobustnessReport, name: str) -> list[str]:
    masks, errors = report.masks[name], report.errors[name]
    shown = [name, str(report.data["n_samples"])]
    for attack in (CLEAN, *report.attacks):
        missing = "failed" if attack in errors else "not measured"
        shown.append(f"{100 * masks[attack].mean():.1f}" if attack in masks else missing)
    if WORST not in masks:
        return [*shown, "none", "none"]
    worst = int(masks[WORST].sum())
    low, high = binomial_interval(worst, len(masks[WORST]))
    text = f"{100 * masks[WORST].mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    n_measured = sum(attack in masks for attack in report.attacks)
    if n_measured < len(report.attacks):
        text += f" (of {n_measured} of {len(report.attacks)} attacks)"
    right = int(masks[CLEAN].sum()) if CLEAN in masks else 0
    return [*shown, text, f"{100 * worst / right:.1f}" if right else "none"]


def binomial_interval(successes: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson 95% interval of a fraction; (0, 1) of nothing."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


def _failures(report: RobustnessReport) -> list[str]:
    lines = [
        f"- `{name}`, `{attack}`: failed: {' '.join(error.split())}"
        for name, errors in report.errors.items()
        for attack, error in errors.items()
    ]
    return ["These have no number:", "\n".join(lines)] if lines else []


def _findings(report: RobustnessReport) -> list[str]:
    if not any(report.findings.values()):
        return ["None were run, so nothing is known of whether gradients mislead the attacks."]
    head = (
        f"On the first {report.settings['n_sanity']} samples at most, with "
        f"eps={report.settings['eps']:.4g} in the {report.settings['norm']} norm."
    )
    return [head, *(_of_estimator(name, found) for name, found in report.findings.items())]


def _of_estimator(name: str, findings: Sequence[Finding]) -> str:
    order = ("failure", "warning", "information")
    failed = sorted(
        (f for f in findings if f.passed is False), key=lambda f: order.index(f.severity)
    )
    lines = [f"- **{f.severity}: {f.check}.** {f.message}{_samples(f.samples)}" for f in failed]
    lines += [f"- passed: {f.check}. {f.message}" for f in findings if f.passed]
    lines += [f"- not run: {f.check}. {f.message}" for f in findings if f.passed is None]
    n_failed = len(failed)
    verdict = f"{n_failed} of {len(findings)} checks failed" if n_failed else "no check failed"
    return f"### {name}: {verdict}\n\n" + "\n".join(lines)


def _samples(samples: Sequence[int]) -> str:
    if not samples:
        return ""
    shown = ", ".join(map(str, samples[:_SHOWN_SAMPLES]))
    more = len(samples) - _SHOWN_SAMPLES
    return f" Samples: {shown}{f' and {more} more' if more > 0 else ''}."


def _settings(report: RobustnessReport) -> str:
    lines = [f"- attack `{name}`: {_call(attack)}" for name, attack in report.attacks.items()]
    for name, estimator in report.estimators.items():
        devices = dict.fromkeys(cell.device for cell in report.cells if cell.estimator == name)
        lines.append(
            f"- estimator `{name}`: {estimator['type']}, random_state="
            f"{_value(estimator['random_state'])}, device {', '.join(devices)}, weights "
            f"{estimator['digest'][:12]}"
        )
    data = report.data
    lines.append(f"- data: X of shape {tuple(data['shape'])}, {data['X'][:12]}; y {data['y'][:12]}")
    seconds = sum(cell.seconds for cell in report.cells)
    lines.append(f"- time of the attacks: {seconds:.1f} s")
    lines.append(f"- versions: {_joined(f'{k} {v}' for k, v in report.versions.items())}")
    return "\n".join(lines)


def _call(description: dict[str, Any]) -> str:
    params = _joined(f"{name}={_value(value)}" for name, value in description["params"].items())
    return f"{description['type']}({params})"


def _value(value: Any) -> str:
    if isinstance(value, dict) and "type" in value and isinstance(value.get("params"), dict):
        return _call(value)
    if isinstance(value, list):
        return f"[{_joined(map(_value, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(texts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
