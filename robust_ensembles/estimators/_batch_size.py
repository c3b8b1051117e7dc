"""Batches that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from .._memory_errors import let_go
from ..exceptions import TrainingMemoryError
from ..modules import Ensemble
from ..training import EnsembleNet

if TYPE_CHECKING:
    from .base import BaseEnsembleClassifier

_LOGGER = logging.getLogger("robust_ensembles")
_T = TypeVar("_T")

LARGEST = 128
"""Where ``batch_size="auto"`` begins."""


def train_in_memory(estimator: BaseEnsembleClassifier, train: Callable[[], _T]) -> _T:
    """Train; if batches may shrink, begin again with half of them as often as memory runs out.

    What training then gives is what it had given with that size from the start. So they shrink
    only as long as no epoch is finished.

    Parameters
    ----------
    estimator : BaseEnsembleClassifier
        With a `net_` that `train` trains.
    train : callable

    Returns
    -------
    trained : object
        What `train` returns.

    Raises
    ------
    TrainingMemoryError
        Nothing of the failed step is left in memory.
    """
    start = _on_host(estimator.net_) if estimator.batch_size == "auto" else None
    while True:
        try:
            return train()
        except TrainingMemoryError as error:
            let_go(error)
            smaller = error.batch_size
            if start is None or estimator.n_iter_ or not smaller:
                raise
        net = estimator.net_
        _LOGGER.warning(
            "out of memory with batches of %d; training begins again with %d",
            net.batch_size,
            smaller,
        )
        # a new one, because schedules and other callbacks have seen the steps that failed
        estimator.net_ = estimator._make_net(net.seed, smaller).build(lambda: deepcopy(start))


def _on_host(net: EnsembleNet) -> tuple[Ensemble, nn.Module | None] | None:
    """A copy of what a net trains, while it is untrained."""
    if len(net.history):
        return None
    modules: tuple[Ensemble, nn.Module | None] = deepcopy(
        (net.module_, net.auxiliary_ if net.has_auxiliary_ else None)
    )
    for module in modules:
        if module is not None:
            module.cpu()
    return modules
