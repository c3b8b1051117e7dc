"""The models of a table are trained, each once, also if that cannot be done."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from robust_ensembles.exceptions import NonFiniteLossError

from .. import _store
from ._cells import Cells, Unit, unmeasured
from ._plan import Model, Part

log = logging.getLogger(__name__)


def needed(part: Part, units: Sequence[Unit], cells: Cells) -> list[Model]:
    """Models that the missing numbers of a part take."""
    targets = unmeasured(part.targets, units, cells)
    keys = {model.key for model in [*part.surrogates, *targets] if targets}
    return [model for model in part.models if model.key in keys]


def failures(models: Sequence[Model], folder: Path) -> dict[str, str]:
    """What happened to those models whose loss became infinite, by their keys."""
    known = {model.key: _store.failure(folder, model.key) for model in models}
    return {key: error for key, error in known.items() if error is not None}


def train(models: Sequence[Model], folder: Path, device: str) -> dict[str, str]:
    """Train what is not there yet and did not fail; what others train now comes last.

    Returns
    -------
    failed : dict of str
        By the key of a model whose loss became infinite, what happened.
    """
    failed = failures(models, folder)
    for key in failed:
        log.warning("%s could not be trained; without its .failed.json it is tried again", key)
    done = {model.key for model in models if _store.is_trained(folder, model.key)}
    todo = [model for model in models if model.key not in done | failed.keys()]
    turns = _store.unlocked_first(todo, lambda model: _store.lock_of(folder, model.key))
    for number, one in enumerate(turns):
        log.info("model %d of %d to train", number + 1, len(todo))
        one.estimator.set_params(device=device)
        try:
            _store.train(one.estimator, one.images.X, one.images.y, folder, one.key)
        except NonFiniteLossError as error:
            log.warning("%s: %s", one.key, error)
            failed[one.key] = str(error)
    return failed
