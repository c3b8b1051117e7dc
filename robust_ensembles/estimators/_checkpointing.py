"""A fit that can be killed at any time, and goes on from its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..training import Checkpoints, locked
from .identity import describe_fit, fit_folder


class CheckpointingMixin:
    """Where the checkpoints of a fit are, and what a method adds to them."""

    checkpoint_dir: str | os.PathLike[str] | None
    warm_start: bool

    def _method_state(self) -> dict[str, Tensor]:
        """What the method remembers from epoch to epoch beside the weights."""
        return {}

    def _restore_method_state(self, state: dict[str, Tensor]) -> None:
        """Remember it again."""

    @contextmanager
    def _checkpoints(
        self, X: NDArray[Any], y: NDArray[np.int64], sample_weight: NDArray[np.float32] | None
    ) -> Iterator[Checkpoints | None]:
        """The checkpoints of this fit, if it has a folder for them; raise if another one's."""
        if self.checkpoint_dir is None:
            yield None
            return
        if self.warm_start:
            raise ValueError(
                "warm_start=True goes on from what is in memory, checkpoint_dir from what is on "
                "the disk: set warm_start=False or checkpoint_dir=None"
            )
        about = describe_fit(self, X, y, sample_weight)
        self.checkpoint_dir_ = fit_folder(self.checkpoint_dir, about)
        with locked(self.checkpoint_dir_):
            yield Checkpoints(self.checkpoint_dir_, about, self)
