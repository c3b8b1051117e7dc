"""Functions that several processes run together, and what they give to each other in tests."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
import warnings
from datetime import timedelta
from pathlib import Path
from queue import Empty

import torch
import torch.distributed as dist

from robust_ensembles.parallel import data_parallel

# seconds; a hang is a failure, and not the end of the tests
PATIENCE = 300


def run_together(size, function, *args):
    """What a function of this folder returns in each of some gloo processes, or raise its error.

    It runs inside of `data_parallel`.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = (Path(folder) / "store").as_uri()
        processes = [
            context.Process(target=_run, args=(rank, size, store, results, function, args))
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        try:
            received = dict(_receive(results) for _ in processes)
            for process in processes:
                process.join(PATIENCE)
        finally:
            for process in processes:
                process.kill()
                process.join()
    return [received[rank] for rank in range(size)]


def _receive(results):
    try:
        rank, result, error = results.get(timeout=PATIENCE)
    except Empty:
        raise AssertionError("the processes hang") from None
    if error is not None:
        raise AssertionError(f"process {rank}: {error}")
    return rank, result


def _run(rank, size, store, results, function, args):
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    result = error = None
    try:
        dist.init_process_group(
            "gloo",
            init_method=store,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=PATIENCE),
        )
        with data_parallel(timeout=PATIENCE):
            result = function(*args)
        dist.destroy_process_group()
    except BaseException:
        error = traceback.format_exc()
    results.put((rank, result, error))
