"""What has to hold before processes train one net together, and what the first does for all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from skorch.callbacks import PrintLog
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .._plain import digest_of_array
from .ranks import check_same, current_ranks, is_first, share_tensors
from .sharding import check_batch_norms

if TYPE_CHECKING:
    from ..training.net import EnsembleNet

_IMPOSSIBLE = {
    "vmap": "runs members as one network, whose calls cannot be shared out",
    "cuda_graph": "repeats a step without what the processes tell each other",
}


def share_weights(net: EnsembleNet) -> None:
    """Give all processes the first one's weights, of a net that was just made.

    Parameters
    ----------
    net : EnsembleNet
    """
    share_tensors(t for module in _modules(net) for t in module.state_dict().values())


@contextmanager
def in_lockstep(net: EnsembleNet) -> Iterator[None]:
    """Check that processes can train a net together; only the first prints meanwhile.

    Nothing happens if this process trains alone.

    Parameters
    ----------
    net : EnsembleNet

    Raises
    ------
    ValueError
        If they cannot, on all of them.
    """
    if current_ranks() is None:
        yield
        return
    _check_techniques(net.techniques)
    for module in _modules(net):
        check_batch_norms(module)
    _check_exchange(torch.device(net.device))
    check_same(_summary(net), _explain)
    before = net.callbacks_
    if not is_first():
        net.callbacks_ = [entry for entry in before if not isinstance(entry[1], PrintLog)]
    try:
        yield
    finally:
        net.callbacks_ = before


def check_same_batches(iterator: Any) -> None:
    """Raise, on all processes, unless they draw their batches from the same samples.

    Parameters
    ----------
    iterator : MiniBatches
    """
    if current_ranks() is not None:
        check_same(
            digest_of_array(iterator.indices), lambda *_: "train_split has chosen other samples"
        )


def share_buffers(net: EnsembleNet) -> None:
    """Give all processes what the first one's layers remember beside their weights.

    Batch normalisations remember the same anyway.

    Parameters
    ----------
    net : EnsembleNet
    """
    share_tensors(
        buffer
        for layer in net.module_.modules()
        if not isinstance(layer, _BatchNorm)
        for buffer in layer.buffers(recurse=False)
    )


def _modules(net: EnsembleNet) -> list[torch.nn.Module]:
    return [getattr(net, f"{name}_") for name in net._modules]


def _check_techniques(techniques: frozenset[str]) -> None:
    for name, reason in _IMPOSSIBLE.items():
        if name in techniques:
            raise ValueError(
                f"accelerate: {name!r} cannot be used with data_parallel, since it {reason}; "
                "leave it out, or use accelerate='auto'"
            )


def _check_exchange(device: torch.device) -> None:
    """Try to send something from where the tensors will be."""
    try:
        dist.all_reduce(torch.zeros(1, device=device))
    except RuntimeError as error:
        raise ValueError(
            f"data_parallel: the processes cannot exchange tensors that lie on {device}: {error}. "
            "On GPUs each process needs one of its own: start as many per host as it has GPUs, "
            "with device='auto'. To compute on CPUs, set device='cpu'"
        ) from error


def _summary(net: EnsembleNet) -> dict[str, Any]:
    """The state of a net in short."""
    state = net.optimizer_.state_dict()["state"]
    return {
        "seed": net.seed,
        "number of epochs so far": len(net.history),
        "state of the weights": [
            _short(value) for module in _modules(net) for value in module.state_dict().values()
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
