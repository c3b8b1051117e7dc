"""Several processes that train one ensemble together, each on a share of every batch.

`DataParallel` is what training sees of it, and `robust_ensembles.parallel.data_parallel` alone
imports it.
"""

from .ranks import Ranks
from .strategy import DataParallel

__all__ = ["DataParallel", "Ranks"]
