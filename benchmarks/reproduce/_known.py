"""What a result was written from, kept in its file, so that another machine goes on from it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import _store
from ._cells import Cells, Unit
from ._plan import Model, Part

log = logging.getLogger(__name__)

Work = Sequence[tuple[Part, Sequence[Unit]]]
"""Parts of a table, each with all that is measured of it."""


def gathered(work: Work, models: Path, cells: Cells) -> dict[str, Any]:
    """How the models of a table were trained, and what was measured of them.

    Parameters
    ----------
    work : sequence of (Part, list of Unit)
    models : Path
        Folder of the trained models.
    cells : Cells

    Returns
    -------
    known : dict
        For JSON: records by the keys of models, numbers by keys and units.
    """
    records = {
        model.key: _store.record(models, model.key) for part, _ in work for model in part.models
    }
    numbers: dict[str, dict[str, Any]] = {}
    for model, unit in _measurements(work):
        content = cells.read(model.key, unit.name)
        if content is not None:
            numbers.setdefault(model.key, {})[unit.name] = content
    trained = {key: record for key, record in records.items() if record is not None}
    return {"trained": trained, "measured": numbers}


def take_over(result: Path, work: Work, models: Path, cells: Cells) -> None:
    """Put into a work folder what a result's file has for a plan, and the folder has not.

    Parameters
    ----------
    result : Path
        A JSON file that a run has written.
    work : sequence of (Part, list of Unit)
        The plan; only its own models and units are looked for.
    models : Path
    cells : Cells

    Raises
    ------
    ValueError
        If the file is no such result, or has nothing for this plan.
    """
    known = _read(result)
    found = 0
    for model, unit in _measurements(work):
        content = known["measured"].get(model.key, {}).get(unit.name)
        if content is not None:
            found += 1
            cells.take_over(model.key, unit.name, content)
    if not found:
        raise ValueError(
            f"{result} has no number for this plan: paper, table, epochs, images and all else that "
            "its command has must be the same, except for --seeds, --methods and --ablations"
        )
    for part, _ in work:
        for model in part.models:
            if model.key in known["trained"]:
                _store.take_over(models, model.key, known["trained"][model.key])
    log.info("%s: %d numbers of it are known", result.name, found)


def _read(result: Path) -> dict[str, Any]:
    try:
        content = json.loads(result.read_text(encoding="utf-8"))
        return {name: content["known"][name] for name in ("trained", "measured")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{result} is no result of this command that another run can go on from: {error!r}"
        ) from None


def _measurements(work: Work) -> Iterator[tuple[Model, Unit]]:
    for part, units in work:
        for model in part.targets:
            for unit in units:
                yield model, unit
