"""Data-parallel training: several processes train one ensemble, each on a share of every batch.

Training only uses the strategy `DataParallel`; `robust_ensembles.parallel.data_parallel` is the
only module that imports it.
"""

from .ranks import Ranks
from .strategy import DataParallel

__all__ = ["DataParallel", "Ranks"]
