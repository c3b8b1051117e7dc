"""`data_parallel`: one fit over several GPUs or hosts, with torch.distributed."""

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

    Every process runs the whole script, with the same data and the same parameters. `batch_size` is
    the size of the whole batch: more processes make a step faster and do not change the result,
    which is that of one process, up to rounding. This holds for every method: batch normalisation
    uses the statistics of the whole batch, and input gradients and attacks inside the step are
    those of the whole batch. At the end, all processes have the same fitted estimator.

    Parameters
    ----------
    timeout : float, default=1800.0
        Seconds that a process waits for the others before it raises an error. They wait for each
        other at every batch, so no process may work alone for longer.

    Raises
    ------
    RuntimeError
        If the processes are not connected: the script was not started by `torchrun`, and there is
        no process group of torch.distributed.
    ValueError
        From `fit` and `partial_fit`, in all processes and before any training: if their data or
        parameters differ; for batch normalisation other than torch's; for ``accelerate="vmap"`` or
        ``"cuda_graph"``; if processes share a GPU.

    Notes
    -----
    Without a process group, one is created from the environment set by `torchrun`, and destroyed at
    the end of the context (after an error, with the process): with NCCL between GPUs, where each
    process takes the GPU of its ``LOCAL_RANK``, and gloo between CPUs. An existing group is used as
    it is.

    Each process runs its own rows through the members. The rest of a step, such as augmentation
    and the loss, is repeated by all processes on the whole batch.

    Only the first process writes and reads checkpoints (`checkpoint_dir` may be a folder of its
    host), prints tables and logs messages below a warning. SIGTERM to one process ends the training
    of all at the same batch. If a process fails, `torchrun` ends the others.

    Callbacks run in all processes and must be the same: one that writes a file should do so only
    if ``torch.distributed.get_rank() == 0``. Each process computes predictions and scores, in
    callbacks too, for itself. A search with ``n_jobs=1`` inside the context runs its fits one after
    the other, each of them data-parallel; its splits must be the same everywhere.

    The result differs from that of a single process if members contain layers with random numbers,
    such as dropout, which each process draws separately, or layers other than batch normalisation
    that combine samples: they only see the rows of one process.

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
    """Create and destroy a process group from torchrun's environment."""
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing or not dist.is_available():
        reason = f"{', '.join(missing)} not set" if missing else "torch has no distributed package"
        raise RuntimeError(
            f"data_parallel() needs several processes that know of each other ({reason}): start "
            "the script by `torchrun --nproc-per-node=2 script.py`, with the number of GPUs for "
            "2, or call torch.distributed.init_process_group first"
        )
    # imported here, because not every torch has it, as checked above
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    # the store outlives the group: a second group must not find the first one's addresses
    store = PrefixStore(f"data_parallel/{next(_BEGUN)}", store)
    dist.init_process_group(_backend(), store=store, rank=rank, world_size=size, timeout=timeout)
    yield
    # not after an error: NCCL might wait here for processes that wait for this one
    dist.destroy_process_group()


def _backend() -> str:
    """Name of torch's backend; selects this process's GPU if each has one."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not torch.cuda.is_available() or torch.cuda.device_count() < local_size:
        return "gloo"
    torch.cuda.set_device(local_rank)
    return "cpu:gloo,cuda:nccl"


@contextmanager
def _ranks(timeout: timedelta) -> Iterator[Ranks]:
    # on CPUs, so that messages between hosts do not wait for a GPU
    control = dist.new_group(backend="gloo", timeout=timeout)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), control)
    finally:
        dist.destroy_process_group(control)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the context, log nothing below a warning."""

    def is_warning(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING

    _LOGGER.addFilter(is_warning)
    try:
        yield
    finally:
        _LOGGER.removeFilter(is_warning)
