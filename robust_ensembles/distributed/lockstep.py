"""Checks before several processes train one net together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from skorch.callbacks import PrintLog
from torch import Tensor

from .._plain import digest_of_array
from .ranks import Ranks
from .sharding import check_batch_norms

_IMPOSSIBLE = {
    "vmap": "runs members as one network, whose calls cannot be shared out",
    "cuda_graph": "repeats a step without what the processes tell each other",
}


class Trained(Protocol):
    """The part of an `EnsembleNet` that is used here."""

    techniques: frozenset[str]
    callbacks_: list[tuple[str, Any]]
    device: Any
    seed: int
    history: Any
    optimizer_: Any

    @property
    def trained_modules(self) -> list[torch.nn.Module]:
        """The ensemble, and the module that its method trains beside it."""


@contextmanager
def in_lockstep(net: Trained, ranks: Ranks) -> Iterator[None]:
    """Check that the processes can train a net together, and let only the first one print.

    Parameters
    ----------
    net : EnsembleNet
    ranks : Ranks

    Raises
    ------
    ValueError
        In all processes, if they cannot.
    """
    _check_techniques(net.techniques)
    for module in net.trained_modules:
        check_batch_norms(module)
    _check_exchange(torch.device(net.device))
    check_same(_summary(net), _explain, ranks)
    before = net.callbacks_
    if ranks.rank > 0:
        net.callbacks_ = [entry for entry in before if not isinstance(entry[1], PrintLog)]
    try:
        yield
    finally:
        net.callbacks_ = before


def check_same(value: Any, explain: Callable[[Any, Any, int], str], ranks: Ranks) -> None:
    """Raise in all processes unless they have the same value.

    Parameters
    ----------
    value : object
        A plain value.
    explain : callable
        Takes the first process's value, another one's, and the number of that one; returns the
        difference in words.
    ranks : Ranks

    Raises
    ------
    ValueError
    """
    values = ranks.collect(value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise ValueError(
                f"data_parallel: process {rank} differs from process 0: "
                f"{explain(values[0], other, rank)}. All processes must call fit on estimators "
                "with the same parameters and with the same, whole data; each then computes its "
                "share"
            )


def _check_techniques(techniques: frozenset[str]) -> None:
    for name, reason in _IMPOSSIBLE.items():
        if name in techniques:
            raise ValueError(
                f"accelerate: {name!r} cannot be used with data_parallel, since it {reason}; "
                "leave it out, or use accelerate='auto'"
            )


def _check_exchange(device: torch.device) -> None:
    """Try to exchange a tensor from the training device."""
    try:
        dist.all_reduce(torch.zeros(1, device=device))
    except RuntimeError as error:
        raise ValueError(
            f"data_parallel: the processes cannot exchange tensors that lie on {device}: {error}. "
            "On GPUs each process needs one of its own: start as many per host as it has GPUs, "
            "with device='auto'. To compute on CPUs, set device='cpu'"
        ) from error


def _summary(net: Trained) -> dict[str, Any]:
    """Summary of the state of a net."""
    state = net.optimizer_.state_dict()["state"]
    return {
        "seed": net.seed,
        "number of epochs so far": len(net.history),
        "state of the weights": [
            _short(value)
            for module in net.trained_modules
            for value in module.state_dict().values()
        ],
        "state of the optimizer": [
            _short(value) for of_weight in state.values() for value in of_weight.values()
        ],
    }


def _short(value: Any) -> Any:
    return digest_of_array(value) if isinstance(value, Tensor) else value


def _explain(first: dict[str, Any], other: dict[str, Any], _rank: int) -> str:
    names = [f"the {name}" for name in first if first[name] != other[name]]
    return f"{', '.join(names)} (was this estimator fitted before, in each process by itself?)"
