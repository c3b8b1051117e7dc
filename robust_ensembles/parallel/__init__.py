"""Parallel training: one fit on several devices, or many fits on many workers."""

from .data_parallel import data_parallel
from .killed_workers import survive_killed_workers
from .one_fit_per_gpu import one_fit_per_gpu

__all__ = ["data_parallel", "one_fit_per_gpu", "survive_killed_workers"]
