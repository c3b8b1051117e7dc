"""What a run would cost here, from a few timed steps."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone

from robust_ensembles._plain import described
from robust_ensembles.attacks import PGD

from .. import _store
from . import _training
from ._cells import Cells, Unit
from ._plan import Model, Part
from ._units import Surrogates

log = logging.getLogger(__name__)

MakeUnits = Callable[[Part, Surrogates], list[Unit]]

# images that units are timed on, steps of a timed attack, steps of a timed training and, where
# those are long, of a shorter one
_IMAGES, _STEPS, _TRAINING_STEPS, _FEWEST, _LONG = 16, 4, 5, 1, 3.0
# AutoAttack on an image that survives, in gradients of the ensemble: 1,000 of APGD, 900 of FAB
# that cost a little more, 5,000 forward passes of Square
_AUTOATTACK_GRADIENTS = 4000
_SURVIVORS = 0.45
# of CLDL's black box: 36 forward passes on each further model, beside 306 gradients of larger
# ensembles that the examples take
_FURTHER_MODEL = 0.03
_RADIUS = re.compile(r"-eps[\d.]+")


class Cost(NamedTuple):
    """What a model or a unit costs.

    Parameters
    ----------
    what : str
    number : int
        How many are left to do.
    seconds : float
        Each.
    """

    what: str
    number: int
    seconds: float


def estimate(
    part: Part, make_units: MakeUnits, models: Path, cells: Cells, device: str
) -> list[Cost]:
    """What is left to do for a part of a table.

    Parameters
    ----------
    part : Part
    make_units : callable
        From a part, and a function that returns the surrogates, to what is measured.
    models : Path
        Folder of the trained models.
    cells : Cells
    device : str

    Returns
    -------
    costs : list of Cost
    """
    timings = _Timings(cells.folder.parent / "timings.json")
    groups: dict[str, list[Model]] = {}
    for model in part.models:
        groups.setdefault(_kind(model), []).append(model)
    needed = {model.key for model in _training.needed(part, make_units(part, list), cells)}
    costs, fitted = [], {}
    for kind, several in groups.items():
        left = [m for m in several if m.key in needed and not _store.is_trained(models, m.key)]
        fit = _Fit(several[0], device)
        per_image = timings.get(f"train {kind}", fit.seconds_per_image)
        epochs = several[0].estimator.max_epochs
        seconds = per_image * len(part.images.y) * epochs
        costs.append(Cost(f"train {_label(part, several[0])}, {epochs} epochs", len(left), seconds))
        fitted[several[0].key] = fit
    targets = {model.key for model in part.targets}
    example = next((fit for key, fit in fitted.items() if key in targets), None)
    if example is not None:
        surrogates = [fitted[model.key] for model in part.surrogates]
        costs += _evaluations(part, example, surrogates, cells, timings, make_units)
    return costs


def _evaluations(
    part: Part,
    example: _Fit,
    surrogates: list[_Fit],
    cells: Cells,
    timings: _Timings,
    make_units: MakeUnits,
) -> list[Cost]:
    """Units, timed on a few images with a model that is hardly trained."""
    n_few = min(_IMAGES, len(part.images.y_test))
    few = replace(part, images=part.images.head(len(part.images.y), np.arange(n_few)))
    factor = len(part.images.y_test) / n_few
    costs = []
    for whole, unit in zip(
        *(make_units(one, lambda: [fit.estimator for fit in surrogates]) for one in (part, few)),
        strict=True,
    ):
        left = sum(cells.read(model.key, whole.name) is None for model in part.targets)
        name = f"{_RADIUS.sub('', unit.name)} {part.label}"  # all radii cost the same
        if whole.name.endswith("-AA"):
            gradient = timings.get(f"gradient {part.label}", partial(_gradient, few, example))
            seconds = gradient * _AUTOATTACK_GRADIENTS * _SURVIVORS * len(part.images.y_test)
            costs.append(Cost(f"{whole.name} (AutoAttack: a rough guess)", left, seconds))
            continue
        alone = factor * timings.get(name, partial(_time_unit, unit, example))
        if not unit.joint:
            costs.append(Cost(whole.name, left, alone))
            continue
        costs.append(Cost(f"{whole.name}, the examples", min(left, 1), alone))
        costs.append(Cost(f"{whole.name}, each model", left, _FURTHER_MODEL * alone))
    return costs


class _Fit:
    """A model that is trained for a moment, once it is needed."""

    def __init__(self, model: Model, device: str) -> None:
        self.model, self.device = model, device

    @cached_property
    def estimator(self) -> Any:
        """The fitted estimator."""
        return self._fit(_FEWEST)

    def seconds_per_image(self) -> float:
        """Of an epoch of one batch: what a longer fit takes more than a shorter one."""
        _ = self.estimator  # the first fit also chooses kernels, which the difference would lack
        start = _clock()
        self._fit(_FEWEST)
        short = _clock() - start
        more = _FEWEST if short > _LONG else _TRAINING_STEPS
        start = _clock()
        self._fit(_FEWEST + more)
        return max(_clock() - start - short, 0.0) / more / self._n_images

    @property
    def _n_images(self) -> int:
        return min(self.model.estimator.batch_size, len(self.model.images.y))

    def _fit(self, epochs: int) -> Any:
        log.info("timing a few steps of %s", self.model.key)
        estimator = clone(self.model.estimator).set_params(
            max_epochs=epochs, lr_milestones=None, device=self.device
        )
        n, images = self._n_images, self.model.images
        return estimator.fit(images.X[:n], images.y[:n])


class _Timings:
    """Seconds that were measured on this machine, kept in a file that several may write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, what: str, measure: Callable[[], float]) -> float:
        key = f"{_store.machine()}: {what}"
        known = self._read()
        if key not in known:
            seconds = measure()
            with _store.locked(self.path.with_suffix(".lock")):
                known = {key: seconds, **self._read()}
                _store.write_json(self.path, known)
        return known[key]

    def _read(self) -> dict[str, float]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}


def _time_unit(unit: Unit, example: _Fit) -> float:
    estimator = example.estimator
    start = _clock()
    unit.run({"example": estimator})
    return _clock() - start


def _gradient(part: Part, example: _Fit) -> float:
    """Seconds of a gradient of the ensemble for one image."""
    module = example.estimator.as_module()
    device = next(module.parameters()).device
    x = torch.from_numpy(part.images.X_test).float().to(device) / 255
    y = torch.from_numpy(part.images.y_test).to(device)
    attack = PGD(eps=0.03, n_steps=_STEPS, clip_values=(0.0, 1.0))
    start = _clock()
    attack(module, x, y, stop_when_broken=False)
    return (_clock() - start) / _STEPS / len(y)


def _clock() -> float:
    """Seconds: of the processor if it computes, so that other work beside does not count."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def _kind(model: Model) -> str:
    """Everything that decides how long an epoch takes."""
    anyhow = clone(model.estimator).set_params(random_state=None, max_epochs=1, device="auto")
    return f"{described(anyhow)} {model.images.identity}"


def _label(part: Part, model: Model) -> str:
    for row in part.rows:
        if model.key in [one.key for one in row.models]:
            return row.name
    return f"surrogate of {model.estimator.n_estimators}"
