"""Arrays by their content."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def digest_of_array(values: ArrayLike | Tensor) -> str:
    """Digest of the type, shape and content of an array, the same in another process.

    Parameters
    ----------
    values : array-like or Tensor
        Objects other than numbers are told apart by their ``repr``.

    Returns
    -------
    digest : str
    """
    if isinstance(values, Tensor):
        kind, shape = str(values.dtype), list(values.shape)
        # as bytes, because NumPy lacks some of torch's types
        content = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    else:
        content = np.ascontiguousarray(values)
        kind, shape = str(content.dtype), list(np.shape(values))
    hashed = hashlib.sha256(f"{kind} {shape} ".encode())
    if content.dtype.kind in "biufc":
        hashed.update(content.reshape(-1).view(np.uint8).data)
    else:
        hashed.update(repr(content.ravel().tolist()).encode())
    return hashed.hexdigest()
