"""Numbers of trained models, each measured once and kept."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .. import _store
from ._plan import Model

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]
Outcome = tuple[dict[str, Rows], list[str]]
"""Rows by the key of the model, and what is to be known of them."""


class Unit(NamedTuple):
    """What is measured, and kept, at once.

    Parameters
    ----------
    name : str
        By everything that decides the numbers but the model.
    run : callable
        From fitted estimators by key to rows by key, and the quirks.
    joint : bool
        Whether many models cost little more than one.
    """

    name: str
    run: Callable[[Mapping[str, Any]], Outcome]
    joint: bool = False


@dataclass(frozen=True)
class Cells:
    """Numbers in a folder, by model and unit."""

    folder: Path

    def read(self, key: str, unit: str) -> dict[str, Any] | None:
        """Rows, seconds, quirks and machine; None if not measured yet."""
        path = self._path(key, unit)
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, key: str, unit: str, rows: Rows, seconds: float, quirks: list[str]) -> None:
        """Keep what was measured."""
        content = {
            "rows": rows,
            "seconds": seconds,
            "quirks": quirks,
            "machine": _store.machine(),
        }
        _store.write_json(self._path(key, unit), content)

    def take_over(self, key: str, unit: str, content: dict[str, Any]) -> None:
        """Keep what was measured elsewhere, unless it was measured here."""
        if self.read(key, unit) is None:
            _store.write_json(self._path(key, unit), content)

    def lock(self, unit: str, key: str = "joint") -> Path:
        """A file that whoever measures this holds."""
        return self.folder / "locks" / f"{key}-{unit}.lock"

    def _path(self, key: str, unit: str) -> Path:
        return self.folder / key / f"{unit}.json"


def unmeasured(models: Sequence[Model], units: Sequence[Unit], cells: Cells) -> list[Model]:
    """Those models of which some number is missing."""
    return [
        model for model in models if any(cells.read(model.key, one.name) is None for one in units)
    ]


def evaluate(
    unit: Unit, models: Sequence[Model], cells: Cells, load: Callable[[Model], Any]
) -> None:
    """Measure a unit on those models that it has not been measured on yet."""
    if unit.joint:
        with _store.locked(cells.lock(unit.name)):
            _measure(unit, unmeasured(models, [unit], cells), cells, load)
        return
    missing = unmeasured(models, [unit], cells)
    for model in _store.unlocked_first(missing, lambda one: cells.lock(unit.name, one.key)):
        with _store.locked(cells.lock(unit.name, model.key)):
            if cells.read(model.key, unit.name) is None:
                _measure(unit, [model], cells, load)


def _measure(
    unit: Unit, models: Sequence[Model], cells: Cells, load: Callable[[Model], Any]
) -> None:
    if not models:
        return
    log.info("%s: measuring %d models, first %s", unit.name, len(models), models[0].key)
    start = time.perf_counter()
    rows, quirks = unit.run({model.key: load(model) for model in models})
    seconds = (time.perf_counter() - start) / len(models)
    for model in models:
        cells.write(model.key, unit.name, rows[model.key], seconds, quirks)
    log.info("%s: %.0f s for each model", unit.name, seconds)
