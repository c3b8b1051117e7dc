"""What happens out of sight, told once: the logger ``robust_ensembles``."""

import logging
from functools import cache

_LOGGER = logging.getLogger("robust_ensembles")


@cache
def tell_once(message: str) -> None:
    """Log that something is slower or otherwise done than asked for, the first time in a process.

    Parameters
    ----------
    message : str
        What, and why.
    """
    _LOGGER.info(message)
