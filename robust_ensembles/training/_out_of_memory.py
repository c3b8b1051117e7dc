"""Training that runs out of memory: what is said, and what is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .._memory_errors import is_out_of_memory
from ..exceptions import TrainingMemoryError
from .data import MiniBatches


@contextmanager
def explained_out_of_memory(batches: MiniBatches) -> Iterator[None]:
    """Say which batch size to try, if memory runs out within the block.

    Parameters
    ----------
    batches : MiniBatches
        That are trained on.

    Raises
    ------
    TrainingMemoryError
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _explained(error, batches) from error


def _explained(error: Exception, batches: MiniBatches) -> TrainingMemoryError:
    size, finished = batches.batch_size, batches.epoch
    smaller = size // 2
    said = str(error).partition("\n")[0] or type(error).__name__
    what = [f"out of memory on {batches.device} with batches of {size} samples ({said})"]
    if finished:
        what.append(
            f"There was enough before, and the weights of the finished epochs ({finished}) are "
            "kept: does something else take memory now? fit goes on from them with "
            "warm_start=True, or from the disk with checkpoint_dir"
        )
    if smaller:
        what.append(f'Try batch_size={smaller}, or "auto", which halves it until it fits')
    what.append(
        "Fewer members or smaller networks need less memory as well, on a GPU also "
        'precision="bfloat16"'
    )
    return TrainingMemoryError(". ".join(what), batch_size=smaller)
