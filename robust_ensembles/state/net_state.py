"""The state of a trained net as tensors and plain values, shared by models and checkpoints.

Per-batch values of the history are not stored, so that an epoch adds one short row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from .optimizer import OPTIMIZER, restore_state, split_state
from .values import NotStorableError, TensorsAside, decode, decode_with, encode

MODULE, AUXILIARY, ASIDE = "module.", "auxiliary.", "values."
"""Prefixes of tensor names: of the members, of the auxiliary module, of tensors within values."""

METHOD, CALLBACKS = "method.", "callbacks."
"""Prefixes in checkpoints: of the state of the method, and of callbacks."""

MAX_SEED = np.iinfo(np.int32).max
"""The largest seed of a fit."""

_BATCHES = "batches"
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\]")


class TrainedNet(Protocol):
    """Interface of a net whose state is stored."""

    module_: Any
    auxiliary_: Any
    has_auxiliary_: bool
    optimizer_: Optimizer
    history: Any
    seed: int
    batch_size: int


@dataclass(frozen=True)
class NetState:
    """The plain part of a net's state, in values for JSON.

    Parameters
    ----------
    seed : int
        Seed of the random streams of the fit.
    batch_size : int or None
        None in files of the former format for fits without an epoch.
    history : list of dict
        One row for each epoch, with encoded values.
    optimizer : dict
        Its parameter groups, and the parts of its state that are not tensors.
    extra : dict
        Entries of the modules' states that are not tensors, by full name, encoded.
    """

    seed: int
    batch_size: int | None
    history: list[Any]
    optimizer: dict[str, Any]
    extra: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """The history in skorch's form, without batches.

        Raises
        ------
        ValueError
        """
        return [
            {_BATCHES: [], **{name: decode(value) for name, value in row.items()}}
            for row in self.history
        ]


def read_net_state(plain: Any) -> NetState:
    """Check the state of a net from a file.

    Parameters
    ----------
    plain : object
        From JSON.

    Returns
    -------
    state : NetState

    Raises
    ------
    ValueError
    """
    names = {field.name for field in fields(NetState)}
    if not isinstance(plain, dict) or set(plain) != names:
        raise ValueError(f"net in its header has other fields than {sorted(names)}")
    for name, kind in {"history": list, "optimizer": dict, "extra": dict}.items():
        if not isinstance(plain[name], kind):
            raise ValueError(f"{name} in its header is no {kind.__name__}")
    if not all(isinstance(row, dict) for row in plain["history"]):
        raise ValueError("its history has something else than rows")
    check_seed(plain["seed"])
    size = plain["batch_size"]
    if size is not None and (type(size) is not int or size < 1):
        raise ValueError(f"its batch_size is {str(size)[:80]}, not a whole number from 1")
    return NetState(**plain)


def check_seed(seed: Any) -> None:
    """Raise for an invalid seed of a fit."""
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise ValueError("its seed is no whole number of 32 bits")


def describe_net(net: TrainedNet, *, memory: bool) -> tuple[NetState, dict[str, Tensor]]:
    """Split the state of a net into plain values and tensors.

    Parameters
    ----------
    net : TrainedNet
    memory : bool
        Whether to include the optimizer's state of past gradients.

    Returns
    -------
    state : NetState
    tensors : dict of str to Tensor

    Raises
    ------
    NotStorableError
        If the modules or the optimizer have a state other than tensors and plain values.
    """
    parts = {MODULE: net.module_.state_dict()}
    if net.has_auxiliary_:
        parts[AUXILIARY] = net.auxiliary_.state_dict()
    return describe_parts(
        parts,
        net.optimizer_.state_dict(),
        memory=memory,
        seed=int(net.seed),
        batch_size=int(net.batch_size),
        history=net.history,
    )


def describe_parts(
    modules: Mapping[str, Mapping[str, Any]],
    optimizer: Mapping[str, Any],
    *,
    memory: bool,
    seed: int,
    batch_size: int,
    history: Iterable[Mapping[str, Any]],
) -> tuple[NetState, dict[str, Tensor]]:
    """The same from the states of a net's parts.

    Parameters
    ----------
    modules : mapping
        States by prefix.
    optimizer : mapping
    memory : bool
    seed, batch_size : int
    history : iterable of mapping

    Returns
    -------
    state : NetState
    tensors : dict of str to Tensor

    Raises
    ------
    NotStorableError
    """
    aside = TensorsAside(ASIDE)
    tensors: dict[str, Tensor] = {}
    extra: dict[str, Any] = {}
    named = ((p + storable_name(n), value) for p, s in modules.items() for n, value in s.items())
    for name, value in named:
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            extra[name] = _encode_extra(name, value, aside)
    plain, remembered = split_state(optimizer, aside, memory=memory)
    rows = [_encode_row(row) for row in history]
    state = NetState(seed, batch_size, rows, plain, extra)
    return state, {**tensors, **remembered, **aside.tensors}


def storable_name(name: str) -> str:
    """The name of a module's tensor in a file, where it must not look like a path."""
    return _UNSAFE.sub(lambda match: f"%{ord(match[0]):02X}", name)


def module_state(prefix: str, state: NetState, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state of a module in a file, by the names from `storable_name`.

    Parameters
    ----------
    prefix : str
        `MODULE` or `AUXILIARY`.
    state : NetState
    tensors : mapping of str to Tensor
        Including those that values refer to.

    Returns
    -------
    state : dict
    """
    decode_extra = decode_with(tensors)
    stored: dict[str, Any] = {n: t for n, t in tensors.items() if n.startswith(prefix)}
    extra = {n: decode_extra(v) for n, v in state.extra.items() if n.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in {**stored, **extra}.items()}


def load_module(module: nn.Module, stored: Mapping[str, Any], *, assign: bool = False) -> None:
    """Load a stored state into a module.

    Parameters
    ----------
    module : nn.Module
    stored : mapping
        From `module_state`.
    assign : bool, default=False
        Whether to use the tensors themselves instead of copying their values.

    Raises
    ------
    RuntimeError
        If it is the state of another module.
    """
    names = {storable_name(name): name for name in module.state_dict()}
    module.load_state_dict({names.get(n, n): value for n, value in stored.items()}, assign=assign)


def restore_net(net: TrainedNet, state: NetState, tensors: Mapping[str, Tensor]) -> None:
    """Restore a stored state in a new net.

    Parameters
    ----------
    net : TrainedNet
        With modules and an optimizer of the same kind.
    state : NetState
    tensors : mapping of str to Tensor

    Raises
    ------
    ValueError, RuntimeError, LookupError
        If it is the state of another net.
    """
    load_module(net.module_, module_state(MODULE, state, tensors))
    if net.has_auxiliary_:
        load_module(net.auxiliary_, module_state(AUXILIARY, state, tensors))
    memory = {n: t for n, t in tensors.items() if n.startswith((OPTIMIZER, ASIDE))}
    restore_state(net.optimizer_, state.optimizer, memory, whole=True)
    if state.batch_size is not None:
        net.batch_size = state.batch_size
    rows = state.rows()
    net.history.clear()
    net.history.extend(rows)


def _encode_extra(name: str, value: Any, aside: TensorsAside) -> Any:
    try:
        return aside.encode(value)
    except NotStorableError as error:
        raise NotStorableError(
            f"{name!r} in the state of the modules is a {error}, which a file cannot hold: "
            "get_extra_state must return tensors and plain values"
        ) from None


def _encode_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The storable entries of an epoch's row, without its batches."""
    encoded = {}
    for name, value in row.items():
        if name == _BATCHES:
            continue
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        try:
            encoded[name] = encode(number)
        except NotStorableError:  # a callback's own object
            continue
    return encoded
