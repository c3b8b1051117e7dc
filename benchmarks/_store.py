"""Trained ensembles in a folder: each is trained once, and goes on where a killed run was.

Several processes may share a folder: who finds a training under way waits for it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from skorch.callbacks import Callback

from robust_ensembles._system import replacing
from robust_ensembles.exceptions import NonFiniteLossError
from robust_ensembles.persistence import load as load_estimator

from . import _report

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Stored:
    """A trained ensemble.

    Parameters
    ----------
    model : fitted estimator
    seconds, cpu_seconds : float
        All epochs, also those before an interruption: elapsed, and of the processor.
    machine : str
        What it was trained on, last.
    """

    model: Any
    seconds: float
    cpu_seconds: float
    machine: str


class _ProcessorTime(Callback):
    """Writes each epoch's processor seconds into the history, which outlives a kill."""

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        self.began_ = time.process_time()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        net.history.record("cpu_dur", time.process_time() - self.began_)


def is_trained(folder: Path, name: str) -> bool:
    """Whether the folder has the model of that name."""
    return _record(folder, name).exists() and _weights(folder, name).exists()


def record(folder: Path, name: str) -> dict[str, Any] | None:
    """How the model was trained: settings, seconds, machine; None if nothing is known."""
    path = _record(folder, name)
    return json.loads(path.read_text()) if path.exists() else None


def take_over(folder: Path, name: str, known: dict[str, Any]) -> None:
    """Keep the record of a model that was trained elsewhere, without its weights."""
    if not _record(folder, name).exists():
        write_json(_record(folder, name), known)


def train(estimator: Any, X: NDArray[Any], y: NDArray[Any], folder: Path, name: str) -> None:
    """Train a model and keep it as ``folder/name.*``, unless it is there already.

    A loss that becomes infinite would do so again from the same seed, so that is kept too; without
    ``folder/name.failed.json`` the training is tried again.

    Parameters
    ----------
    estimator : unfitted estimator
        Changed in place.
    X, y : ndarray
    folder : Path
        There is one subfolder for each training under way.
    name : str

    Raises
    ------
    NonFiniteLossError
        Now or at an earlier try.
    """
    with locked(lock_of(folder, name)):
        if is_trained(folder, name):
            return
        before = failure(folder, name)
        if before is not None:
            raise NonFiniteLossError(before)
        checkpoints = folder / f"{name}.checkpoints"
        log.info("%s: training", name)
        try:
            estimator.set_params(callbacks=[_ProcessorTime()], checkpoint_dir=checkpoints).fit(X, y)
        except NonFiniteLossError as error:
            write_json(_failed(folder, name), {"error": str(error), "machine": machine()})
            raise
        _keep(estimator, len(y), folder, name)
        shutil.rmtree(checkpoints)


def _keep(estimator: Any, n_train: int, folder: Path, name: str) -> None:
    """Write the weights and, last, what tells that the model is trained."""
    estimator.set_params(callbacks=None, checkpoint_dir=None).save(_weights(folder, name))
    history = estimator.history_
    made = {
        "estimator": " ".join(repr(estimator).split()),
        "n_train": n_train,
        "seconds": sum(history[:, "dur"]),
        "cpu_seconds": sum(history[:, "cpu_dur"]),
        "machine": machine(),
    }
    write_json(_record(folder, name), made)
    last = {k: round(float(v), 4) for k, v in history[-1].items() if k.startswith("train_")}
    log.info("%s: %.0f s, %s", name, made["seconds"], last)


def failure(folder: Path, name: str) -> str | None:
    """What is wrong with the loss of a model that cannot be trained; None if nothing is known."""
    path = _failed(folder, name)
    return str(json.loads(path.read_text())["error"]) if path.exists() else None


def load(folder: Path, name: str, **params: Any) -> Stored:
    """A trained model.

    Parameters
    ----------
    folder : Path
    name : str
    **params
        What a file cannot hold, such as a network of one's own; see `persistence.load`.

    Returns
    -------
    stored : Stored
    """
    made = json.loads(_record(folder, name).read_text())
    model = load_estimator(_weights(folder, name), **params)
    return Stored(model, made["seconds"], made["cpu_seconds"], made["machine"])


def lock_of(folder: Path, name: str) -> Path:
    """The file that whoever trains this holds."""
    return folder / f"{name}.lock"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock, which a killed process loses; waits for who else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Whether some process holds a file's lock."""
    if not path.exists():
        return False
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def unlocked_first(todo: Iterable[T], lock: Callable[[T], Path]) -> Iterator[T]:
    """Each once; at every turn one that no other process holds, as long as there is such a one."""
    left = list(todo)
    while left:
        free = (index for index, one in enumerate(left) if not is_locked(lock(one)))
        yield left.pop(next(free, 0))


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n")


def machine() -> str:
    """This one, in a line."""
    here = _report.environment()
    where = here["gpu"] or here["processor"]
    return f"{where}, {torch.get_num_threads()} threads, torch {here['torch']}"


def _weights(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _failed(folder: Path, name: str) -> Path:
    return folder / f"{name}.failed.json"


def _record(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
