"""Checkpoints of a fit: saved models with the additional state that the fit needs to resume."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from skorch.callbacks import Callback, PrintLog
from torch import Tensor

from .._strategy import current_strategy
from .folder import LAST_KEPT, CheckpointFolder
from .model_file import FitState, Header, model_bytes
from .net_state import CALLBACKS, METHOD, TrainedNet, describe_net, restore_net
from .values import NotStorableError, TensorsAside, decode_with

_LOGGER = logging.getLogger("robust_ensembles")


class Checkpointed(Protocol):
    """Interface of an estimator with checkpoints."""

    def _method_state(self) -> dict[str, Tensor]: ...

    def _restore_method_state(self, state: dict[str, Tensor]) -> None: ...

    def _stored_description(self) -> dict[str, Any] | str: ...


class CheckpointedNet(TrainedNet, Protocol):
    """Interface of the net of such an estimator."""

    callbacks_: list[tuple[str, Callback]]


class Checkpoints:
    """Checkpoints of one fit, which can be killed at any time and resumes with the same result.

    A checkpoint is the file of a saved model with the optimizer's state. It also contains the state
    of callbacks and of the method, and the seed. Random streams have no state: they follow from the
    seed and the epoch.

    Parameters
    ----------
    path : path-like
        Folder for this fit only.
    about : dict of plain values
        Data and parameters, by name.
    estimator : Checkpointed

    Raises
    ------
    ValueError
        If the folder has epochs of another fit, or of a later version of this package.
    """

    def __init__(
        self, path: str | os.PathLike[str], about: dict[str, Any], estimator: Checkpointed
    ) -> None:
        self._folder, self._about, self._estimator = CheckpointFolder(path), about, estimator
        self._epochs: int | None = None
        self._saved = current_strategy().on_first_rank(self._folder.read_newest)
        if self._saved is None:
            return
        fit = _fit_of(self._saved[0])
        different = differences(about, fit.about)
        if different and fit.epoch:
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
        """Seed of a resumed fit, or None for a new one."""
        return None if self._saved is None else _fit_of(self._saved[0]).seed

    def begin(self, seed: int) -> None:
        """Store the seed of a new fit, so that its pretraining can be resumed."""
        if self._saved is not None:
            return
        fit = FitState(self._about, epoch=0, seed=seed, finished=False, callbacks={})
        reason = "an estimator without a finished epoch"
        current_strategy().on_first_rank(
            lambda: self._folder.write(0, model_bytes(reason, None, {}, fit))
        )

    def resume(self, net: CheckpointedNet, epochs: int) -> int:
        """Restore the state of the last checkpoint in a new net, at the beginning of its training.

        Parameters
        ----------
        net : CheckpointedNet
        epochs : int
            Number of epochs of the fit.

        Returns
        -------
        epochs : int
            Number of remaining epochs.
        """
        saved, self._saved, self._epochs = self._saved, None, epochs
        if saved is None or saved[0].net is None:
            return epochs
        state, tensors, fit = saved[0].net, saved[1], _fit_of(saved[0])
        with _readable(self._folder.path):
            best_epoch(state.rows())  # which the next checkpoint asks for
            restore_net(net, state, tensors)
            restore_callbacks(net, fit.callbacks, tensors)
            self._estimator._restore_method_state(
                {n.removeprefix(METHOD): t for n, t in tensors.items() if n.startswith(METHOD)}
            )
        _LOGGER.info("training goes on after epoch %d, from %s", fit.epoch, self._folder.path)
        return 0 if fit.finished else epochs - fit.epoch

    def save(self, net: CheckpointedNet, *, finished: bool = False) -> None:
        """Write a checkpoint of the epochs so far.

        Parameters
        ----------
        net : CheckpointedNet
        finished : bool, default=False
            Whether training has ended early on purpose. Only the last and the best checkpoint of
            a finished fit are kept.

        Raises
        ------
        OSError
            If it cannot be written.
        TypeError, ValueError
            If a module or the optimizer has a state that cannot be stored.
        """
        epoch = len(net.history)
        finished = finished or epoch == self._epochs
        aside = TensorsAside(CALLBACKS)
        callbacks = state_of_callbacks(net, aside)
        fit = FitState(self._about, epoch, int(net.seed), finished, callbacks)
        state, tensors = describe_net(net, memory=True)
        method = {METHOD + name: t for name, t in self._estimator._method_state().items()}
        tensors = {**tensors, **aside.tensors, **method}
        estimator = self._estimator._stored_description()
        best, last = best_epoch(net.history), 1 if finished else LAST_KEPT

        def write() -> None:
            content = model_bytes(estimator, state, tensors, fit)
            self._folder.write(epoch, content, best=best, last=last)

        current_strategy().on_first_rank(write)


def _fit_of(header: Header) -> FitState:
    assert header.fit is not None  # or it would not have been read as a checkpoint
    return header.fit


@contextmanager
def checkpointed(net: CheckpointedNet, checkpoints: Checkpoints | None) -> Iterator[None]:
    """Within the context, write a checkpoint after each epoch of a net.

    Parameters
    ----------
    net : CheckpointedNet
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
        # a copy of the net made by another callback writes none
        return Callback, ()

    def on_epoch_end(self, net: CheckpointedNet, **kwargs: Any) -> None:
        """Write a checkpoint; called by skorch."""
        self.checkpoints.save(net)


def state_of_callbacks(net: CheckpointedNet, aside: TensorsAside) -> dict[str, dict[str, Any]]:
    """State of callbacks: the attributes that skorch does not regard as parameters.

    Parameters
    ----------
    net : CheckpointedNet
    aside : TensorsAside
        Takes their tensors.

    Returns
    -------
    states : dict
        Encoded, without attributes that cannot be stored.
    """
    states = {}
    for name, callback in _resumable_callbacks(net).items():
        learned = {n: v for n, v in vars(callback).items() if n.endswith("_")}
        inner = {n: _inner_state(v, aside) for n, v in learned.items()}
        states[name] = _storable(inner, aside)
    return states


def restore_callbacks(
    net: CheckpointedNet, states: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> None:
    """Restore the state of callbacks; other callbacks are left unchanged.

    Parameters
    ----------
    net : CheckpointedNet
    states : mapping
        From `state_of_callbacks`.
    tensors : mapping of str to Tensor
    """
    callbacks, decode = _resumable_callbacks(net), decode_with(tensors)
    for name in callbacks.keys() & states.keys():
        for attribute, encoded in states[name].items():
            value = decode(encoded)
            present: Any = getattr(callbacks[name], attribute, None)
            if hasattr(present, "load_state_dict"):
                present.load_state_dict(value)
            else:
                setattr(callbacks[name], attribute, value)


def _resumable_callbacks(net: CheckpointedNet) -> dict[str, Callback]:
    # a table that continues in another process prints its header again
    return {name: c for name, c in net.callbacks_ if not isinstance(c, PrintLog)}


def _inner_state(value: Any, aside: TensorsAside) -> Any:
    """The storable part of a schedule's state; other values unchanged."""
    if isinstance(value, type) or not hasattr(value, "load_state_dict"):
        return value
    state = value.state_dict()
    kept = _storable(state, TensorsAside(aside.prefix))
    return {name: state[name] for name in kept}


def _storable(values: Mapping[str, Any], aside: TensorsAside) -> dict[str, Any]:
    """The values that can be stored, encoded."""
    encoded = {}
    for name, value in values.items():
        try:
            encoded[name] = aside.encode(value)
        except NotStorableError:
            continue
    return encoded


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors in restoring a state name its checkpoint folder."""
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint_dir={os.fspath(path)!r}: the newest checkpoint does not hold the state of "
            f"this fit: {str(error)[:500]}. Remove it to go on from the one before it"
        ) from error


def differences(
    here: dict[str, Any], there: dict[str, Any], places: tuple[str, str] = ("here", "there")
) -> list[str]:
    """Differences between two fits, in words.

    Parameters
    ----------
    here, there : dict
        From `describe_fit`.
    places : tuple of two str, default=("here", "there")
        Names of the two fits in the words.

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


def best_epoch(history: Any) -> int:
    """The epoch with the lowest validation loss, or else training loss."""
    rows = list(history)
    column = "valid_loss" if all("valid_loss" in row for row in rows) else "train_loss"
    losses = [float(row[column]) for row in rows]
    return 1 + losses.index(min(losses))
