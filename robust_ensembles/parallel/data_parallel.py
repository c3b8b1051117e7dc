"""One fit over several GPUs or hosts, by torch.distributed."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from .._strategy import trained_by
from ..distributed import DataParallel, Ranks

_LOGGER = logging.getLogger("robust_ensembles")
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_BEGUN = itertools.count()


@contextmanager
def data_parallel(*, timeout: float = 1800.0) -> Iterator[None]:
    """Let several processes train one ensemble together, each on a share of every batch.

    In a script that `torchrun` starts once for each GPU, on one host or on several::

        with data_parallel():
            clf.fit(X, y)

    Every process runs the whole script, with the same data and the same parameters. `batch_size`
    stays that of the whole ensemble's step: more processes make a step faster and do not change
    the result, which is that of one process, up to rounding. That holds for every method: batch
    normalisations use the statistics of the whole batch, and input gradients and attacks inside
    the step are those of the whole batch. In the end all processes have the same fitted estimator.

    Parameters
    ----------
    timeout : float, default=1800.0
        Seconds that a process waits for the others before it gives up with an error. They wait
        for each other at every batch, so none may be busy alone for longer.

    Raises
    ------
    RuntimeError
        If the processes do not know of each other: the script was not started by `torchrun`, and
        there is no process group of torch.distributed.
    ValueError
        From `fit` and `partial_fit`, on all processes and before any training: if their data or
        parameters differ; for a batch normalisation of another kind than torch's; for
        ``accelerate="vmap"`` or ``"cuda_graph"``; if processes share a GPU.

    Notes
    -----
    If there is no process group, one is begun from what `torchrun` says, and ended with the
    context (after an error, with the process): with NCCL between GPUs, of which each process takes
    the one numbered by its ``LOCAL_RANK``, and gloo between CPUs. A group that exists is used as
    it is.

    What each process computes alone is its rows' way through the members. The rest of a step, such
    as augmentation and the loss, is repeated by all on the whole batch.

    The first process alone writes and reads checkpoints (`checkpoint_dir` may be a folder of its
    host), prints tables and logs what is below a warning. SIGTERM to one process ends the training
    of all at the same batch. If a process fails, `torchrun` ends the others.

    Callbacks run in all processes, and must be the same: one that writes a file should do so only
    where ``torch.distributed.get_rank() == 0``. Predictions and scores, in callbacks too, are
    computed by each process for itself. A search with ``n_jobs=1`` inside the context makes its
    fits one after the other, each of them data-parallel; its splits must be the same everywhere.

    The result is another one than a single process's if the members contain layers that draw random
    numbers, such as dropout, of which each process draws its own, or layers other than batch
    normalisation that look at several samples at once: those see the rows of one process.

    Examples
    --------
    ``torchrun --nproc-per-node=2 script.py`` runs this script in two processes:

    >>> from robust_ensembles import CEATEnsembleClassifier
    >>> from robust_ensembles.datasets import load_digits_images
    >>> from robust_ensembles.parallel import data_parallel
    >>> if __name__ == "__main__":  # doctest: +SKIP
    ...     X, y = load_digits_images()
    ...     with data_parallel():
    ...         clf = CEATEnsembleClassifier(random_state=0).fit(X, y)
    """
    with ExitStack() as stack:
        if not (dist.is_available() and dist.is_initialized()):
            stack.enter_context(_process_group(timedelta(seconds=timeout)))
        ranks = stack.enter_context(_ranks(timedelta(seconds=timeout)))
        if ranks.rank > 0:
            stack.enter_context(_quiet())
        stack.enter_context(trained_by(DataParallel(ranks)))
        yield


@contextmanager
def _process_group(timeout: timedelta) -> Iterator[None]:
    """Begin and end a process group as torchrun's environment says."""
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing or not dist.is_available():
        reason = f"{', '.join(missing)} not set" if missing else "torch has no distributed package"
        raise RuntimeError(
            f"data_parallel() needs several processes that know of each other ({reason}): start "
            "the script by `torchrun --nproc-per-node=2 script.py`, with the number of GPUs for "
            "2, or call torch.distributed.init_process_group first"
        )
    # not everywhere, like what is checked above
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    # the store outlives the group: a second one must not find the first one's addresses
    store = PrefixStore(f"data_parallel/{next(_BEGUN)}", store)
    dist.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=timeout)
    yield
    # not after an error: NCCL might wait here for processes that wait for this one
    dist.destroy_process_group()


def _backend() -> str:
    """Name of torch's for how processes talk; takes this process's GPU, where each has one."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not torch.cuda.is_available() or torch.cuda.device_count() < local_size:
        return "gloo"
    torch.cuda.set_device(local_rank)
    return "cpu:gloo,cuda:nccl"


@contextmanager
def _ranks(timeout: timedelta) -> Iterator[Ranks]:
    # on CPUs, so that the host need not wait for a GPU to be told something
    control = dist.new_group(backend="gloo", timeout=timeout)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), control)
    finally:
        dist.destroy_process_group(control)


@contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing below a warning."""

    def is_warning(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    _LOGGER.addFilter(is_warning)
    try:
        yield
    finally:
        _LOGGER.removeFilter(is_warning)
