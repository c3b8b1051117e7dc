"""Messages for bad input that are worded alike everywhere."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def one_of(value: Any, allowed: Iterable[str], what: str) -> None:
    """Raise a ValueError that names the nearest allowed value unless `value` is allowed.

    Parameters
    ----------
    value : object
    allowed : iterable of str
    what : str
        What the value is, for the message.

    Raises
    ------
    ValueError
    """
    names = list(allowed)
    if value in names:
        return
    near = get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} must be one of {names}; got {value!r}.{hint}")
