"""Files of checkpoints: written whole or not at all, and known to be whole when they are read."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from skorch.callbacks import Callback, PrintLog
from torch import Tensor

from .._checks import warn
from .._strategy import current_strategy
from .._system import write_whole

if TYPE_CHECKING:
    from ..training.net import EnsembleNet

LAST_KEPT = 2
"""How many of the last checkpoints are kept, beside the best one."""

# the content's digest is part of the name: torch.load does not notice altered numbers
_NAME = re.compile(r"epoch-(\d+)\.([0-9a-f]{16})\.pt")
_UNFINISHED = ".epoch-*.tmp"
_BEST = "best.pt"


class CheckpointFolder:
    """The checkpoints of one fit: the last ones, the best one, and a link ``best.pt`` to it.

    Parameters
    ----------
    path : path-like
        Made with the first checkpoint, if it does not exist.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read_newest(self) -> dict[str, Any] | None:
        """What the newest whole checkpoint holds.

        Files that are torn or altered are skipped with a warning. What a writer that was killed
        has left behind is removed.

        Returns
        -------
        state : dict or None
            None if there is no checkpoint.
        """
        for left_over in self.path.glob(_UNFINISHED):
            left_over.unlink(missing_ok=True)
        for _, file in reversed(self._files()):
            state = _read(file)
            if state is not None:
                return state
        return None

    def write(self, epoch: int, state: dict[str, Any], *, best: int | None = None) -> None:
        """Add a checkpoint, then remove those that are no longer needed.

        Parameters
        ----------
        epoch : int
            Finished epochs.
        state : dict
            Of tensors and plain values only.
        best : int, default=None
            The epoch whose checkpoint is kept whatever its age.

        Raises
        ------
        OSError
            If the disk is full or cannot be written to. The former checkpoints are untouched.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        file = self.path / f"epoch-{epoch:05d}.{_digest(content)}.pt"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_whole(file, content)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the checkpoint of epoch {epoch} cannot be written to {self.path} "
                f"({_reason(error)}; it takes {len(content) / 1e6:.3g} MB). The checkpoints before "
                "it are kept. Make room, or let this process write there, then call fit again: "
                "training goes on from the last one",
            ) from error
        self._tidy(epoch, file, best)

    def _files(self) -> list[tuple[int, Path]]:
        """Epochs and files of all checkpoints, the oldest first."""
        if not self.path.is_dir():
            return []
        named = ((_NAME.fullmatch(file.name), file) for file in self.path.iterdir())
        return sorted((int(match[1]), file) for match, file in named if match)

    def _tidy(self, epoch: int, newest: Path, best: int | None) -> None:
        """Keep the newest checkpoints up to this epoch and the best one, which gets its link."""
        # of an epoch that was trained again there may be a torn one beside
        files = [(n, file) for n, file in self._files() if n != epoch] + [(epoch, newest)]
        earlier = sorted({number for number, _ in files if number <= epoch})
        kept = {best, *earlier[-LAST_KEPT:]}
        of_best = [file for number, file in files if number == best]
        if of_best:
            with suppress(OSError):  # not every file system has links
                self._link_best(of_best[-1])
        needed = {file for number, file in files if number in kept}
        for _, file in self._files():
            if file not in needed:
                with suppress(OSError):  # in use elsewhere: the next checkpoint tries again
                    file.unlink(missing_ok=True)

    def _link_best(self, file: Path) -> None:
        link = self.path / _BEST
        if link.is_symlink() and os.readlink(link) == file.name:
            return
        beside = link.with_name(f".{file.stem}.tmp")
        beside.unlink(missing_ok=True)
        os.symlink(file.name, beside)
        os.replace(beside, link)


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read(file: Path) -> dict[str, Any] | None:
    """What a checkpoint holds, or None, with a warning, if it is not what was written."""
    match = _NAME.fullmatch(file.name)
    assert match is not None
    try:
        content = file.read_bytes()
        if _digest(content) != match[2]:
            raise ValueError("its content is not what was written")
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
    except Exception as error:  # whatever is wrong with it, an earlier one may be good
        warn(
            f"the checkpoint {file} is skipped, since it cannot be read: {error}. Training goes "
            "on from the one before it, if there is one."
        )
        return None
    return state


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def state_of_callbacks(net: EnsembleNet) -> dict[str, dict[str, Any]]:
    """What callbacks have learned: attributes that skorch does not take for parameters."""
    states = {}
    for name, callback in _resumable_callbacks(net).items():
        state = {}
        for attribute, value in vars(callback).items():
            if attribute.endswith("_"):
                state.update(_if_plain(attribute, _inner_state(value)))
        states[name] = state
    return states


def restore_callbacks(net: EnsembleNet, states: dict[str, dict[str, Any]]) -> None:
    """Let callbacks go on with what they had learned; others than those are left alone."""
    callbacks = _resumable_callbacks(net)
    for name in callbacks.keys() & states.keys():
        for attribute, value in states[name].items():
            present: Any = getattr(callbacks[name], attribute, None)
            if hasattr(present, "load_state_dict"):
                present.load_state_dict(value)
            else:
                setattr(callbacks[name], attribute, value)


def plain(value: Any) -> Any:
    """The same, of types that `torch.load` reads without trusting the file."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}: {value!r}")


def _resumable_callbacks(net: EnsembleNet) -> dict[str, Callback]:
    # a table that goes on in another process begins with its head again
    return {name: c for name, c in net.callbacks_ if not isinstance(c, PrintLog)}


def _inner_state(value: Any) -> Any:
    """The plain part of a schedule's state; other values as they are."""
    if isinstance(value, type) or not hasattr(value, "load_state_dict"):
        return value
    inner: dict[str, Any] = {}
    for name, part in value.state_dict().items():
        inner.update(_if_plain(name, part))
    return inner


def _if_plain(name: str, value: Any) -> dict[str, Any]:
    """The value under its name, or nothing if a checkpoint cannot hold it."""
    try:
        return {name: plain(value)}
    except TypeError:
        return {}


_LOGGER = logging.getLogger("robust_ensembles")
_FORMAT = 1
# of an optimizer's settings, those that say how it computes: they belong to the machine
_MACHINERY = ("capturable", "foreach", "fused")


class Remembering(Protocol):
    """A method with a state of its own beside the weights."""

    def _method_state(self) -> dict[str, Tensor]: ...

    def _restore_method_state(self, state: dict[str, Tensor]) -> None: ...


class Checkpoints:
    """Checkpoints of one fit, to be killed at any time and go on to the same result.

    A checkpoint holds the finished epochs' weights, the state of optimizer, schedule, callbacks
    and method, and the history. Random streams have no state: they follow from the seed, which is
    in it too, and the epoch.

    Parameters
    ----------
    path : path-like
        Folder of this fit alone.
    about : dict of plain values
        Data and parameters, by name.
    method : Remembering

    Raises
    ------
    ValueError
        If the folder holds epochs of another fit.
    """

    def __init__(
        self, path: str | os.PathLike[str], about: dict[str, Any], method: Remembering
    ) -> None:
        self._folder, self._about, self._method = CheckpointFolder(path), about, method
        self._saved = current_strategy().on_first_rank(self._folder.read_newest)
        if self._saved is None:
            return
        _check_format(self._saved, path)
        with _readable(self._folder.path):
            _check_kinds(self._saved)
            different = differences(about, json.loads(self._saved["about"]))
        if different and self._saved["epoch"]:
            raise ValueError(
                f"checkpoint_dir={os.fspath(path)!r} holds the training of another fit: "
                f"{'; '.join(different)}. To go on with that one, give the same data and "
                "parameters; else give this fit a folder of its own, or empty this one. (In a "
                'search, where each fit needs its own: checkpoint_dir="some/folder/{fit}")'
            )
        if different:  # no epoch was finished, so nothing is lost
            self._saved = None

    @property
    def seed(self) -> int | None:
        """Seed of the fit that goes on, or None if it begins."""
        return None if self._saved is None else int(self._saved["seed"])

    def begin(self, seed: int) -> None:
        """Write down the seed, unless a fit goes on, so that pretraining can be resumed."""
        if self._saved is None:
            self._write({"epoch": 0, "seed": seed})

    def resume(self, net: EnsembleNet, epochs: int) -> int:
        """Bring a new net, for which training has just begun, to where the last one was.

        Parameters
        ----------
        net : EnsembleNet
        epochs : int
            All epochs of the fit.

        Returns
        -------
        epochs : int
            Those that are left.
        """
        saved, self._saved = self._saved, None
        if saved is None or not saved["epoch"]:
            return epochs
        with _readable(self._folder.path):
            for name, state in saved["modules"].items():
                getattr(net, f"{name}_").load_state_dict(state)
            _restore_optimizer(net, saved["optimizer"])
            restore_callbacks(net, saved["callbacks"])
            net.batch_size = saved["batch_size"]
            rows = json.loads(saved["history"])
            _best_epoch(rows)  # which the next checkpoint asks for
            if len(rows) != saved["epoch"]:
                raise ValueError(f"{len(rows)} rows of history for {saved['epoch']} epochs")
            net.history.clear()
            net.history.extend(rows)
            self._method._restore_method_state(saved["method"])
        _LOGGER.info("training goes on after epoch %d, from %s", saved["epoch"], self._folder.path)
        return 0 if saved["finished"] else epochs - int(saved["epoch"])

    def save(self, net: EnsembleNet, *, finished: bool = False) -> None:
        """Write a checkpoint of the epochs so far.

        Parameters
        ----------
        net : EnsembleNet
        finished : bool, default=False
            Whether training has ended before all epochs, on purpose.

        Raises
        ------
        OSError
            If it cannot be written.
        TypeError
            If a module or the optimizer has a state that is more than tensors and plain values.
        """
        modules = {name: getattr(net, f"{name}_").state_dict() for name in net._modules}
        plain(modules)  # or it could not be read
        state = {
            "epoch": len(net.history),
            "seed": net.seed,
            "batch_size": net.batch_size,
            "finished": finished,
            "modules": modules,
            "optimizer": plain(net.optimizer_.state_dict()),
            "callbacks": state_of_callbacks(net),
            "history": json.dumps(list(net.history), default=_json_value),
            "method": self._method._method_state(),
        }
        self._write(state, best=_best_epoch(net.history))

    def _write(self, state: dict[str, Any], *, best: int | None = None) -> None:
        header = {"format": _FORMAT, "about": json.dumps(self._about)}
        content = {**header, **state}
        current_strategy().on_first_rank(
            lambda: self._folder.write(state["epoch"], content, best=best)
        )


@contextmanager
def checkpointed(net: EnsembleNet, checkpoints: Checkpoints | None) -> Iterator[None]:
    """Write a checkpoint after each epoch of a net, for as long as the context lasts.

    Parameters
    ----------
    net : EnsembleNet
    checkpoints : Checkpoints or None
        None writes none.
    """
    if checkpoints is None:
        yield
        return
    entry = ("checkpoints", _AfterEachEpoch(checkpoints))
    net.callbacks_.append(entry)  # the last one: the others' state is then of this epoch
    try:
        yield
    finally:
        net.callbacks_.remove(entry)


class _AfterEachEpoch(Callback):
    """Writes the checkpoints."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy of the net, made meanwhile by another callback, writes none
        return Callback, ()

    def on_epoch_end(self, net: EnsembleNet, **kwargs: Any) -> None:
        """Write one; called by skorch."""
        self.checkpoints.save(net)


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say of a state that nothing can be made of where it came from."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint_dir={os.fspath(path)!r}: the newest checkpoint does not hold the state of "
            f"this fit: {str(error)[:500]}. Remove it to go on from the one before it"
        ) from error


def _check_kinds(saved: dict[str, Any]) -> None:
    """Raise for a state that lacks something, or holds it as something else."""
    kinds: dict[str, type] = {"epoch": int, "seed": int, "about": str}
    if saved.get("epoch"):
        kinds |= {"finished": bool, "history": str, "batch_size": int}
        kinds |= dict.fromkeys(("modules", "optimizer", "callbacks", "method"), dict)
    for name, kind in kinds.items():
        if type(saved.get(name)) is not kind:
            raise ValueError(f"it has {name}={str(saved.get(name))[:80]}")
    if saved["epoch"] < 0 or not 0 <= saved["seed"] < 2**63:
        raise ValueError(f"it has epoch={saved['epoch']} and seed={saved['seed']}")


def _check_format(saved: Any, path: str | os.PathLike[str]) -> None:
    if not isinstance(saved, dict) or saved.get("format") != _FORMAT:
        raise ValueError(
            f"checkpoint_dir={os.fspath(path)!r} holds checkpoints of another version of "
            "robust_ensembles; go on with that version, or give another folder"
        )


def differences(
    here: dict[str, Any], there: dict[str, Any], places: tuple[str, str] = ("here", "there")
) -> list[str]:
    """What differs between two fits, in words.

    Parameters
    ----------
    here, there : dict
        From `describe_fit`.
    places : tuple of two str, default=("here", "there")
        What they are called in the words.

    Returns
    -------
    differences : list of str
        One for each name whose values differ.
    """
    pairs = {name: (here.get(name), there.get(name)) for name in {**here, **there}}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return [_difference(name, pair, places) for name, pair in different.items()]


def _difference(name: str, values: tuple[Any, Any], places: tuple[str, str]) -> str:
    if any(isinstance(value, dict | list) for value in values):
        return f"{name} differs"
    return f"{name} is {values[0]!r} {places[0]} and {values[1]!r} {places[1]}"


def _best_epoch(history: Any) -> int:
    """The epoch with the lowest loss on what was held back, or else in training."""
    rows = list(history)
    column = "valid_loss" if all("valid_loss" in row for row in rows) else "train_loss"
    losses = [float(row[column]) for row in rows]
    return 1 + losses.index(min(losses))


def _check_group(group: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise for settings of another kind than the optimizer has; schedules change numbers."""
    if set(group) - {"decayed_in", "initial_lr"} != set(own) - {"decayed_in", "initial_lr"}:
        raise ValueError(f"its optimizer has the settings {sorted(map(str, group))}")
    for name in set(own) & set(group) - {"params", *_MACHINERY}:
        kinds = {type(plain(part)) for part in (group[name], own[name])}
        if len(kinds) > 1 and not kinds <= {int, float}:
            raise ValueError(f"its optimizer has {name}={str(group[name])[:80]}")


def _restore_optimizer(net: EnsembleNet, state: dict[str, Any]) -> None:
    for group, own in zip(state["param_groups"], net.optimizer_.param_groups, strict=True):
        _check_group(group, own)
        group.update({name: own[name] for name in _MACHINERY if name in own})
    net.optimizer_.load_state_dict(state)


def _json_value(value: Any) -> Any:
    """A value of the history that JSON does not know: numbers of NumPy and torch, else text."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    return str(value)


_LOCK = ".lock"


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other fits, here or in other processes, out of a folder; death of the process frees it.

    Where the file system has no locks, or nothing can be written, there is none.

    Parameters
    ----------
    folder : path-like
        Made if it does not exist.

    Raises
    ------
    RuntimeError
        If another fit is at work in it.
    """
    file = Path(folder) / _LOCK
    lock = FileLock(file, timeout=0)
    current_strategy().on_first_rank(lambda: _acquire(lock, file))
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                file.unlink()
            lock.release()


def _acquire(lock: FileLock, file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise RuntimeError(
            f"another fit is writing its checkpoints to {file.parent} at this moment: wait for its "
            'end, or give each fit a folder of its own, such as checkpoint_dir="runs/{fit}". (If '
            f"none is, remove {file})"
        ) from None
    except (OSError, NotImplementedError) as error:
        _LOGGER.info("%s cannot be locked: %s", file.parent, error)
