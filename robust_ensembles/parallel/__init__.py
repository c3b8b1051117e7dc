"""One fit on many machines."""

from ._data_parallel import data_parallel

__all__ = ["data_parallel"]
