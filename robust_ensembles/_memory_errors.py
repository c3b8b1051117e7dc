"""What running out of memory looks like, and how to let go of what it holds."""

from __future__ import annotations

import traceback

import torch

# what torch says where running out of memory has no exception class of its own
_MESSAGES = (
    "can't allocate memory",  # a CPU
    "not enough memory",  # a CPU, Windows
    "bad_alloc",  # a CPU, in libraries
    "CUDA error: out of memory",  # by the driver, past torch's allocator
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
    "MPS backend out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is no more memory, on a CPU or an accelerator.

    Parameters
    ----------
    error : exception

    Returns
    -------
    out_of_memory : bool
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MESSAGES)


def let_go(error: BaseException) -> None:
    """Free what an exception keeps in memory: all tensors of the calls that it has ended.

    Its traceback still says where they were. Frees torch's reserve on CUDA devices, too.

    Parameters
    ----------
    error : exception
        Caught where the calls that it comes from have ended.
    """
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
