"""A report on disk: written whole or not at all, and taken up again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..._system import write_whole
from ..cells import Cell
from ..sanity import Finding
from ._schema import check_report

KIND = "robust_ensembles robustness report"
_SPARE = "spare_cells"


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
        If the file holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> dict[str, Any]:
    """Plain values of the report in a text; `source` says in errors where it comes from."""
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


class Store:
    """The file of a report that is being made.

    Parameters
    ----------
    path : path-like or None
        None keeps nothing.
    data : dict
        Of X and y. A file about other data is refused.

    Raises
    ------
    ValueError
        If the file holds no report, or one about other data.
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
        """The cell measured earlier, if there is one; failed ones are tried again."""
        plain = self._cells.get(fingerprint)
        if plain is None:
            return None
        self._used = True
        return Cell.from_dict(plain)

    def findings(self, fingerprint: str) -> list[Finding]:
        """Earlier findings on the same estimator, data and attacks, of the checks that ran."""
        for name, estimator in self._earlier.get("estimators", {}).items():
            if estimator["checked"] == fingerprint:
                found = map(Finding.from_dict, self._earlier["findings"].get(name, ()))
                return [finding for finding in found if finding.passed is not None]
        return []

    def versions(self, present: dict[str, str]) -> dict[str, str]:
        """Versions that have measured something: the present ones, and those of cells reused."""
        earlier = self._earlier.get("versions", {}) if self._used else {}
        merged = {name: [*earlier.get(name, "").split(", "), v] for name, v in present.items()}
        return {name: ", ".join(filter(None, dict.fromkeys(vs))) for name, vs in merged.items()}

    def save(self, plain: dict[str, Any]) -> None:
        """Write the report so far; cells that it does not ask for are carried along."""
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
