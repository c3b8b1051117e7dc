"""Train, measure and write a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from robust_ensembles._plain import described

from .. import _report, _store
from . import _costs, _known, _measured, _tables, _training
from ._budget import Budget
from ._cells import Cells, Unit, evaluate
from ._figures import Figure
from ._plan import Model, Part
from ._published import PAPERS, PublishedTable
from ._units import Surrogates, units

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workshop:
    """Where work is done and kept.

    Parameters
    ----------
    folder : Path
        Of trained models and measured numbers.
    device : str
    """

    folder: Path
    device: str = "auto"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def cells(self) -> Cells:
        return Cells(self.folder / "cells")

    def fitted(self, model: Model) -> Any:
        """The estimator, trained."""
        return model.load(self.models, self.device).model


@dataclass(frozen=True)
class Task:
    """A table at a budget.

    Parameters
    ----------
    table : PublishedTable
    budget : Budget
    parts : list of Part
    ablations : bool
    name : str
        Of the files.
    command : str
        That makes them again.
    figure : Figure, default=None
        What is drawn; None for a table.
    """

    table: PublishedTable
    budget: Budget
    parts: list[Part]
    ablations: bool
    name: str
    command: str
    figure: Figure | None = None

    def units(self, part: Part, surrogates: Surrogates) -> list[Unit]:
        """What is measured of a part; surrogates are asked for when they are needed."""
        if self.figure is not None:
            return self.figure.units(part)
        return units(part, surrogates, ablations=self.ablations)

    @property
    def title(self) -> str:
        """Of the result, with the budget."""
        one = self.parts[0]
        what = one.label
        if len(self.parts) > 1:
            labels = dict.fromkeys(p.images.label for p in self.parts)
            what = f"{', '.join(labels)}, {len(self.parts)} settings"
        epochs = {
            row.method.estimator(p.setting).max_epochs
            for p in self.parts
            for row in p.rows
            if row.method
        }
        budget = self.budget.title(
            self.table.paper,
            epochs=epochs,
            images=len(one.images.y_test),
            of_images=one.of_images,
            train=self.budget.trained_on(one.of_train),
        )
        return f"{PAPERS[self.table.paper]}, {self.table.title}: {what}, {budget}"


def dry_run(task: Task, shop: Workshop) -> list[dict[str, Any]]:
    """What would be done, and how long it takes.

    Returns
    -------
    rows : list of dict
        The last one is the sum.
    """
    rows = []
    seen: set[str] = set()
    for whole in task.parts:
        part = _without(whole, _training.failures(whole.models, shop.models))
        costs = _costs.estimate(part, task.units, shop.models, shop.cells, shop.device)
        for cost in costs:
            what = f"{part.label}: {cost.what}"
            if what not in seen:
                rows.append(_cost_row(what, cost.number, cost.seconds))
            seen.add(what)
    total = sum(row["seconds"] for row in rows)
    rows.append({"what": f"all: {total / 3600:.2f} hours", "number": "", "seconds each": ""})
    rows[-1]["seconds"] = round(total)
    return rows


def take_over(results: Sequence[Path], task: Task, shop: Workshop) -> None:
    """Go on from results that were written elsewhere."""
    for result in results:
        _known.take_over(result, _work(task, shop), shop.models, shop.cells)


def run(task: Task, shop: Workshop, *, so_far: bool = False) -> None:
    """Train and measure what is missing, and write the table.

    Parameters
    ----------
    task : Task
    shop : Workshop
    so_far : bool, default=False
        Write what there is, and do nothing else.
    """
    lines: list[list[_measured.Line]] = []
    parts = []
    for part in task.parts:
        made = _units_of(part, task, shop)
        failed = _training.failures(part.models, shop.models)
        if not so_far:
            needed = _training.needed(part, made, shop.cells)
            failed |= _training.train(needed, shop.models, shop.device)
        part = _without(part, failed)
        for unit in made if not so_far else ():
            evaluate(unit, part.targets, shop.cells, shop.fitted)
        parts.append(part)
        lines.append(_measured.lines(part, made, shop.cells))
    write(replace(task, parts=parts), lines, shop, so_far=so_far)


def write(
    task: Task, lines: Sequence[Sequence[_measured.Line]], shop: Workshop, *, so_far: bool
) -> None:
    """Write the files of a table."""
    rows, texts = [], []
    for part, mine in zip(task.parts, lines, strict=True):
        what = task.figure.what if task.figure else None
        summary, text = _tables.sections(part, mine, what)
        if task.figure and any(line.measured for line in mine):
            task.figure.draw(part, mine, _report.RESULTS / f"reproduce/{task.name}.png")
        several = len(task.parts) > 1
        rows += [{"setting": part.label, **row} if several else row for row in summary]
        texts.append(text)
    _report.write(
        f"reproduce/{task.name}",
        task.title + (", so far" if so_far else ""),
        task.command,
        rows,
        text="\n\n".join(texts),
        about=_about(task, lines, shop),
        quirks="\n".join(f"- {quirk}" for quirk in _quirks(task, shop)),
        numbers=[
            {"setting": part.label, "cells": _tables.cells(mine)}
            for part, mine in zip(task.parts, lines, strict=True)
        ],
        estimators={
            f"{part.label}: {row.name}": described(row.models[0].estimator)
            for part in task.parts
            for row in part.rows
            if row.models
        },
        known=_known.gathered(_work(task, shop), shop.models, shop.cells),
    )
    log.info("%s", _report.markdown_table(rows))


def _without(part: Part, failed: dict[str, str]) -> Part:
    """The part without models that could not be trained."""
    if any(model.key in failed for model in part.surrogates):
        raise RuntimeError(f"a surrogate could not be trained: {failed}")
    rows = []
    for row in part.rows:
        errors = [failed[model.key] for model in row.models if model.key in failed]
        kept = [model for model in row.models if model.key not in failed]
        note = f"{len(errors)} of {len(row.models)} trainings failed: {errors[0]}" if errors else ""
        rows.append(replace(row, models=kept, note=note or row.note))
    return replace(part, rows=rows)


def _about(task: Task, lines: Sequence[Sequence[_measured.Line]], shop: Workshop) -> str:
    """Time and machine."""
    planned = task.budget.seeds_of(task.table.paper)
    seeds = sorted({seed for mine in lines for line in mine for seed in line.complete})
    keys = dict.fromkeys(model.key for part in task.parts for model in part.models)
    records = [_store.record(shop.models, key) for key in keys]
    trained = [record for record in records if record is not None]
    seconds, cpu = (sum(one[name] for one in trained) for name in ("seconds", "cpu_seconds"))
    measured = [content for content in _contents(task, shop) if content is not None]
    evaluation = sum(content["seconds"] for content in measured)
    machines = {content["machine"] for content in [*trained, *measured]}
    labels = ", ".join(dict.fromkeys(part.images.label for part in task.parts))
    return (
        f"Data: {labels}. Seeds: {seeds}{'' if seeds == planned else f' of {planned}'}. "
        f"{len(trained)} models were trained in {seconds / 3600:.2f} hours "
        f"({cpu / 3600:.2f} of the processor), and measured in {evaluation / 3600:.2f}, "
        f"on {'; '.join(sorted(machines)) or 'no machine'}."
    )


def _quirks(task: Task, shop: Workshop) -> list[str]:
    """What the protocol has to say of the numbers."""
    found = [content["quirks"] for content in _contents(task, shop) if content is not None]
    return list(dict.fromkeys(quirk for quirks in found for quirk in quirks))


def _contents(task: Task, shop: Workshop) -> list[dict[str, Any] | None]:
    return [
        shop.cells.read(model.key, unit.name)
        for part in task.parts
        for unit in _units_of(part, task, shop)
        for model in part.targets
    ]


def _work(task: Task, shop: Workshop) -> _known.Work:
    return [(part, _units_of(part, task, shop)) for part in task.parts]


def _units_of(part: Part, task: Task, shop: Workshop) -> list[Unit]:
    return task.units(part, lambda: [shop.fitted(model) for model in part.surrogates])


def _cost_row(what: str, number: int, seconds: float) -> dict[str, Any]:
    each, total = round(seconds, 1), round(number * seconds)
    return {"what": what, "number": number, "seconds each": each, "seconds": total}
